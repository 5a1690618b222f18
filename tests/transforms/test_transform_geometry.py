"""Resize, scale jitter, flip and padding: image, boxes and mask move together, by effdet's rounding."""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from effdense.errors import UserError
from effdense.transforms import (
    BoxRule,
    Compose,
    Flip,
    Pad,
    RandomScaleCrop,
    Resize,
    Transform,
    keep_boxes,
    mean_fill,
    resized_size,
)
from effdense.transforms.geometry import resized, resized_corner
from effdense.types import Sample

FILL = (124, 116, 104)
BOXES = [[4, 6, 30, 40], [50, 10, 75, 55]]


def extent(mask: npt.NDArray[np.uint8], value: int) -> npt.NDArray[np.int64]:
    """Bounds of the pixels of one value, as xyxy with exclusive right and bottom."""
    rows, columns = np.nonzero(mask == value)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def assert_sound(sample: Sample) -> None:
    count = len(sample.boxes_xyxy)
    assert sample.image.dtype == np.uint8
    assert sample.image.flags.c_contiguous
    assert sample.boxes_xyxy.dtype == np.float32
    assert sample.boxes_xyxy.shape == (count, 4)
    assert sample.labels.dtype == np.int64
    assert sample.crowd.dtype == sample.difficult.dtype == np.bool_
    assert len(sample.labels) == len(sample.crowd) == len(sample.difficult) == count
    if sample.mask is not None:
        assert sample.mask.dtype == np.uint8
        assert sample.mask.shape == sample.image.shape[:2]
        assert sample.mask.flags.c_contiguous


def to_square(side: int) -> Transform:
    return Compose((Resize((side, side)), Pad((side, side), FILL)))


@pytest.mark.parametrize(
    ("size_hw", "target_hw", "expected"),
    [
        pytest.param((480, 640), (320, 320), (240, 320), id="landscape"),
        pytest.param((640, 480), (320, 320), (320, 240), id="portrait"),
        pytest.param((333, 500), (512, 512), (340, 512), id="product is cut, not rounded"),
        pytest.param((100, 100), (320, 640), (320, 320), id="target not square"),
        pytest.param((1, 5000), (320, 320), (1, 320), id="no side below one pixel"),
        pytest.param((320, 320), (320, 320), (320, 320), id="already there"),
    ],
)
def test_resized_size_keeps_the_aspect_and_fits(
    size_hw: tuple[int, int], target_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(size_hw, target_hw) == expected


@pytest.mark.parity
@pytest.mark.parametrize("size_hw", [(480, 640), (640, 427), (333, 500), (97, 31), (512, 512), (20, 20)], ids=str)
@pytest.mark.parametrize("side", [320, 512, 77])
def test_resize_and_pad_have_the_geometry_of_effdet(sample_of: Any, size_hw: tuple[int, int], side: int) -> None:
    effdet_transforms = pytest.importorskip("effdet.data.transforms")
    from PIL import Image

    height, width = size_hw
    sample = sample_of(size_hw, [[1, 2, width / 2, height / 3], [0, 0, width, height]])
    annotation = {"bbox": sample.boxes_xyxy[:, [1, 0, 3, 2]].copy(), "cls": np.ones(2)}
    theirs, annotation = effdet_transforms.ResizePad(side, fill_color=FILL)(Image.fromarray(sample.image), annotation)
    ours = to_square(side)(sample, np.random.default_rng(0))
    content = np.array(theirs)
    new_height, new_width = ours.resized_size_hw
    assert (content[new_height:] == FILL).all()
    assert (content[:, new_width:] == FILL).all()
    assert (ours.image[new_height:] == FILL).all()
    assert (ours.image[:, new_width:] == FILL).all()
    assert not (content[:new_height, new_width - 1] == FILL).all()
    assert not (content[new_height - 1, :new_width] == FILL).all()
    np.testing.assert_allclose(ours.boxes_xyxy[:, [1, 0, 3, 2]], annotation["bbox"], atol=1.0)


class Replay:
    """A generator whose draws are known beforehand."""

    def __init__(self, *shares: float) -> None:
        self.shares = list(shares)

    def random(self) -> float:
        return self.shares.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.shares.pop(0)


@pytest.mark.parity
@pytest.mark.parametrize("shares", [(0.0, 0.5, 0.5), (0.3, 0.1, 0.9), (0.8, 0.7, 0.2), (1.0, 0.99, 0.0)], ids=str)
def test_scale_jitter_has_the_geometry_of_effdet(
    sample_of: Any, shares: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    effdet_transforms = pytest.importorskip("effdet.data.transforms")
    from PIL import Image

    sample = sample_of((120, 160), [[10, 10, 60, 100], [100, 30, 159, 119], [40, 40, 80, 80]])
    annotation = {"bbox": sample.boxes_xyxy[:, [1, 0, 3, 2]].copy(), "cls": sample.labels.copy()}
    monkeypatch.setattr(random, "uniform", Replay(*shares).uniform)
    theirs = effdet_transforms.RandomResizePad(64, interpolation="bilinear", fill_color=FILL)
    image, annotation = theirs(Image.fromarray(sample.image), annotation)
    everything = BoxRule(min_size=0, min_visible=0)
    ours = RandomScaleCrop((64, 64), boxes=everything)(sample, Replay(*shares))  # type: ignore[arg-type]
    ours = Pad((64, 64), FILL)(ours, np.random.default_rng(0))
    np.testing.assert_array_equal(ours.labels, annotation["cls"])
    np.testing.assert_allclose(ours.boxes_xyxy[:, [1, 0, 3, 2]], annotation["bbox"], atol=1.0)
    padding = (ours.image == FILL).all(axis=2)
    np.testing.assert_array_equal(padding, (np.array(image) == FILL).all(axis=2))


@pytest.mark.parametrize("side", [512, 513, 504], ids=["8x", "9x", "7.9x"])
@pytest.mark.parametrize("jittered", [False, True], ids=["resize", "jitter"])
def test_shrinking_averages_what_it_cannot_show(sample_of: Any, side: int, jittered: bool) -> None:
    board = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    target = {512: 64, 513: 57, 504: 64}[side]
    sample = sample_of((side, side)).replace(image=np.repeat(board[..., None], 3, axis=2), mask=board)
    transform = RandomScaleCrop((2 * target,) * 2, (0.5, 0.5)) if jittered else Resize((target, target))
    shrunk = transform(sample, np.random.default_rng(0))
    assert shrunk.image.shape == (target, target, 3)
    assert np.abs(shrunk.image.astype(int) - 128).max() <= 4
    assert shrunk.mask is not None
    assert set(np.unique(shrunk.mask)) <= {0, 255}


@pytest.mark.parity
@pytest.mark.parametrize("target", [40, 64, 100, 160, 250])
def test_a_shrunk_image_is_near_that_of_pillow_which_published_weights_saw(sample_of: Any, target: int) -> None:
    from PIL import Image

    sample = sample_of((320, 320))  # noise, the worst there is
    ours = Resize((target, target))(sample, np.random.default_rng(0)).image
    theirs = Image.fromarray(sample.image).resize((target, target), Image.Resampling.BILINEAR)
    assert np.abs(ours.astype(int) - np.array(theirs)).mean() < 20


@pytest.mark.parametrize("size_hw", [(480, 640), (333, 500), (31, 97), (1000, 30)], ids=str)
@pytest.mark.parametrize("side", [64, 320])
def test_the_inverse_of_resize_gives_the_original_boxes(sample_of: Any, size_hw: tuple[int, int], side: int) -> None:
    height, width = size_hw
    boxes = np.random.default_rng(1).uniform(0, 1, (20, 4)) * [width, height, width, height]
    sample = sample_of(size_hw, boxes)
    resized = to_square(side)(sample, np.random.default_rng(0))
    back = np.array([width / resized.resized_size_hw[1], height / resized.resized_size_hw[0]] * 2)
    np.testing.assert_allclose(resized.boxes_xyxy * back, sample.boxes_xyxy, atol=1e-3)
    assert resized.original_size_hw == size_hw
    assert_sound(resized)


def test_evaluation_geometry_keeps_boxes_without_area_and_outside(sample_of: Any) -> None:
    sample = sample_of((60, 80), [[10, 10, 10, 30], [-0.5, -0.5, 20, 20], [90, 90, 99, 99]])
    assert len(to_square(40)(sample, np.random.default_rng(0)).labels) == 3


@pytest.mark.parametrize(
    ("horizontal", "vertical"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=["left-right", "top-bottom", "both"]
)
def test_flipping_twice_changes_nothing(sample_of: Any, horizontal: float, vertical: float) -> None:
    sample = sample_of((61, 83), [*BOXES, [0, 0, 83, 61], [-0.5, 3, 3, 3]])
    sample = sample.replace(mask=sample.image[..., 0].copy())
    flip = Flip(horizontal, vertical)
    once = flip(sample, np.random.default_rng(0))
    assert not (once.image == sample.image).all()
    assert not np.allclose(once.boxes_xyxy, sample.boxes_xyxy)
    twice = flip(once, np.random.default_rng(0))
    np.testing.assert_array_equal(twice.image, sample.image)
    np.testing.assert_array_equal(twice.boxes_xyxy, sample.boxes_xyxy)
    assert sample.mask is not None
    np.testing.assert_array_equal(twice.mask, sample.mask)
    assert_sound(once)


GEOMETRIES = [
    pytest.param(Flip(1.0, 0.0), 0.0, id="left-right"),
    pytest.param(Flip(0.0, 1.0), 0.0, id="top-bottom"),
    pytest.param(Flip(1.0, 1.0), 0.0, id="both"),
    pytest.param(to_square(160), 1.0, id="larger"),
    pytest.param(to_square(48), 1.0, id="smaller"),
    pytest.param(RandomScaleCrop((64, 64), (0.6, 0.6)), 1.0, id="jitter down"),
    pytest.param(RandomScaleCrop((64, 64), (1.7, 1.7)), 1.0, id="jitter up and crop"),
    pytest.param(Pad((90, 100), FILL), 0.0, id="pad"),
]


@pytest.mark.parametrize(("transform", "tolerance"), GEOMETRIES)
@pytest.mark.parametrize("seed", range(4))
def test_image_boxes_and_mask_move_together(sample_of: Any, transform: Transform, tolerance: float, seed: int) -> None:
    sample = sample_of((60, 80), BOXES, drawn=True)
    moved = transform(sample, np.random.default_rng(seed))
    assert_sound(moved)
    assert moved.mask is not None
    for box, label in zip(moved.boxes_xyxy, moved.labels, strict=True):
        np.testing.assert_allclose(extent(moved.mask, int(label) + 1), box, atol=tolerance)
    inside = np.isin(moved.mask, moved.labels + 1)
    assert moved.image[inside].mean() > 250 - 60 * (tolerance > 0)


def test_padding_is_the_fill_and_ignored_in_the_mask(sample_of: Any) -> None:
    padded = Pad((70, 90), FILL)(sample_of((60, 80), drawn=True), np.random.default_rng(0))
    assert padded.image.shape == (70, 90, 3)
    assert (padded.image[60:] == FILL).all()
    assert (padded.image[:, 80:] == FILL).all()
    assert padded.mask is not None
    assert (padded.mask[60:] == 255).all()
    assert (padded.mask[:, 80:] == 255).all()
    assert (padded.mask[:60, :80] == 0).all()
    assert padded.resized_size_hw == (60, 80)


def test_scale_jitter_covers_its_range_and_never_exceeds_the_target(sample_of: Any) -> None:
    sample = sample_of((60, 80), BOXES)
    jitter = RandomScaleCrop((64, 64), (0.1, 2.0))
    sizes = np.array([jitter(sample, np.random.default_rng(seed)).image.shape[:2] for seed in range(200)])
    assert sizes.max() == 64
    assert sizes[:, 1].min() < 12
    assert (sizes >= 1).all()
    assert (sizes[:, 1] == 64).mean() == pytest.approx(1 / 1.9, abs=0.1)


@pytest.mark.parametrize("seed", range(60))
def test_only_what_is_shown_is_resized_and_every_pixel_is_that_of_the_whole(sample_of: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old_hw, factor = rng.integers(1, 200, 2), rng.choice([rng.uniform(0.05, 3), rng.uniform(0.97, 1.03)])
    size_hw = (max(1, int(old_hw[0] * factor)), max(1, int(old_hw[1] * factor)))
    shown_hw = (int(rng.integers(1, size_hw[0] + 1)), int(rng.integers(1, size_hw[1] + 1)))
    image = sample_of(tuple(old_hw), seed=seed).image
    whole = resized(image, size_hw)
    assert whole.shape[:2] == size_hw
    assert np.array_equal(resized_corner(image, size_hw, shown_hw), whole[: shown_hw[0], : shown_hw[1]])


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.01, 1.7, 2.9])
def test_a_crop_is_a_window_on_the_resized_image(sample_of: Any, scale: float) -> None:
    sample = sample_of((90, 121), [[10, 20, 60, 80]], drawn=True)
    sample = sample.replace(image=sample_of((90, 121)).image)
    for seed in range(20):
        found = RandomScaleCrop((64, 64), (scale, scale))(sample, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.uniform()
        size_hw = resized_size((90, 121), (64 * scale, 64 * scale))
        top, left = (int(max(0, side - 64) * rng.random()) for side in size_hw)
        window = (slice(top, top + 64), slice(left, left + 64))
        assert np.array_equal(found.image, resized(sample.image, size_hw)[window])
        mask = cv2.resize(sample.mask, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        assert np.array_equal(found.mask, mask[window])


def test_a_crop_offset_reaches_every_edge(sample_of: Any) -> None:
    sample = sample_of((64, 64), [[0, 0, 64, 64]])
    jitter = RandomScaleCrop((64, 64), (2.0, 2.0))
    corners = [jitter(sample, np.random.default_rng(seed)).image[0, 0] for seed in range(50)]
    assert len(np.unique(corners, axis=0)) > 30


@pytest.mark.parametrize(
    ("box", "rule", "expected"),
    [
        pytest.param([-0.5, -0.5, 20, 20], BoxRule(), [0, 0, 20, 20], id="half a pixel outside: clipped"),
        pytest.param([10, 10, 10, 30], BoxRule(), None, id="zero width: dropped"),
        pytest.param([10, 10, 10, 30], BoxRule(0, 0), None, id="zero width: dropped whatever the rule"),
        pytest.param([10, 10, 30, 10], BoxRule(), None, id="zero height: dropped"),
        pytest.param([30, 10, 20, 20], BoxRule(0, 0), None, id="inside out: dropped"),
        pytest.param([75, 10, 115, 20], BoxRule(1, 0.1), [75, 10, 80, 20], id="an eighth visible: kept at a tenth"),
        pytest.param([75, 10, 115, 20], BoxRule(1, 0.2), None, id="an eighth visible: dropped at a fifth"),
        pytest.param([79.5, 10, 82, 20], BoxRule(1, 0), None, id="half a pixel left: dropped"),
        pytest.param([79.5, 10, 80, 20], BoxRule(0.5, 0), [79.5, 10, 80, 20], id="half a pixel left: kept if allowed"),
        pytest.param([90, 10, 99, 20], BoxRule(0, 0), None, id="wholly outside: dropped"),
        pytest.param([float("nan"), 1, 5, 5], BoxRule(0, 0), None, id="not a number: dropped"),
        pytest.param([0, 0, 80, 60], BoxRule(1, 1), [0, 0, 80, 60], id="the whole image"),
    ],
)
def test_which_boxes_stay(sample_of: Any, box: list[float], rule: BoxRule, expected: list[float] | None) -> None:
    sample = sample_of((60, 80), [box])
    kept = keep_boxes(sample, sample.boxes_xyxy, rule)
    assert kept.boxes_xyxy.tolist() == ([] if expected is None else [expected])
    assert_sound(kept)


@pytest.mark.parametrize("flag", ["crowd", "difficult"])
def test_a_crop_that_leaves_a_twentieth_of_an_ignored_box_keeps_it(sample_of: Any, flag: str) -> None:
    boxes = [[76, 10, 156, 20], [79.5, 10, 89.5, 20], [80, 10, 99, 20], [20, 10, 20, 30]]
    sample = sample_of((60, 80), boxes)
    plain = {"crowd": np.zeros(4, np.bool_), "difficult": np.zeros(4, np.bool_)}
    rule = BoxRule(min_size=1, min_visible=0.1)
    assert len(keep_boxes(sample.replace(**plain), sample.boxes_xyxy, rule).labels) == 0
    ignored = sample.replace(**plain | {flag: np.ones(4, np.bool_)})
    kept = keep_boxes(ignored, sample.boxes_xyxy, rule)
    assert kept.boxes_xyxy.tolist() == [
        [76, 10, 80, 20],
        [79.5, 10, 80, 20],
    ]  # nothing left of the third, nothing ever of the fourth
    assert getattr(kept, flag).all()
    assert_sound(kept)


def test_labels_and_flags_follow_their_boxes_when_others_are_dropped(sample_of: Any) -> None:
    boxes = [[5, 5, 20, 20], [90, 5, 99, 20], [30, 5, 40, 40], [50, 5, 50, 20], [60, 5, 70, 9], [3, 3, 9, 9]]
    sample = sample_of((60, 80), boxes)
    kept = keep_boxes(sample, sample.boxes_xyxy, BoxRule())
    assert kept.labels.tolist() == [0, 2, 4, 5]
    assert kept.crowd.tolist() == [False, False, False, True]
    assert kept.difficult.tolist() == [False, True, False, True]
    assert_sound(kept)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (60, 80)], ids=str)
@pytest.mark.parametrize("boxes", [[], [[0, 0, 1, 1]]], ids=["no box", "one box"])
def test_tiny_images_and_empty_ones_pass(sample_of: Any, size_hw: tuple[int, int], boxes: list[list[float]]) -> None:
    transform = Compose((RandomScaleCrop((32, 48)), Flip(0.5, 0.5), Pad((32, 48), FILL)))
    for seed in range(10):
        result = transform(sample_of(size_hw, boxes, drawn=True), np.random.default_rng(seed))
        assert result.image.shape == (32, 48, 3)
        assert_sound(result)


def test_no_transform_writes_into_its_input(sample_of: Any) -> None:
    sample = sample_of((60, 80), BOXES, drawn=True)
    before = [array.copy() for array in (sample.image, sample.boxes_xyxy, sample.labels, sample.mask)]
    transform = Compose((RandomScaleCrop((64, 64), (1.0, 1.0)), Flip(1.0, 1.0), Pad((64, 64), FILL)))
    transform(sample, np.random.default_rng(0))
    for array, old in zip((sample.image, sample.boxes_xyxy, sample.labels, sample.mask), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_the_fill_is_the_mean_of_the_weights() -> None:
    assert mean_fill((0.485, 0.456, 0.406)) == (124, 116, 104)
    assert mean_fill((0.5, 0.5, 0.5)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: Resize((0, 10)), "image size", id="size zero"),
        pytest.param(lambda: Resize((10.5, 10)), "image size", id="size not whole"),  # type: ignore[list-item]
        pytest.param(lambda: RandomScaleCrop((9, 9), (2.0, 1.0)), "scale", id="range reversed"),
        pytest.param(lambda: RandomScaleCrop((9, 9), (0.0, 1.0)), "scale", id="factor zero"),
        pytest.param(lambda: RandomScaleCrop((9, 9), (0.5, float("inf"))), "scale", id="factor infinite"),
        pytest.param(lambda: Flip(1.5), "horizontal flip", id="probability above one"),
        pytest.param(lambda: Flip(0.5, float("nan")), "vertical flip", id="probability not a number"),
        pytest.param(lambda: Pad((9, 9), (0, 0)), "fill", id="two colours"),
        pytest.param(lambda: Pad((9, 9), (0, 0, 256)), "fill", id="colour above 255"),
        pytest.param(lambda: Pad((9, 9), (0.485, 0.456, 0.406)), "fill", id="colour not in 0..255"),  # type: ignore[arg-type]
        pytest.param(lambda: BoxRule(min_visible=2), "min_visible", id="share above one"),
        pytest.param(lambda: BoxRule(min_size=-1), "min_size", id="size below zero"),
    ],
)
def test_senseless_parameters_are_refused_on_construction(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_padding_an_image_that_is_too_large_is_refused(sample_of: Any) -> None:
    with pytest.raises(UserError, match="resize it first"):
        Pad((50, 90), FILL)(sample_of((60, 80)), np.random.default_rng(0))
