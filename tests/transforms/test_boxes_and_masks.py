"""Boxes and masks of the same rectangles move together; what is padded is ignored; no class fills a crop."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from effdense.errors import UserError
from effdense.transforms import (
    RANDAUGMENT_OPERATIONS,
    Compose,
    Flip,
    Pad,
    Photometric,
    RandAugment,
    RandomScaleCrop,
    Transform,
    eval_transform,
    train_transform,
)
from effdense.types import Sample

FILL = (124, 116, 104)
TILTING = ("rotate", "shear_x", "shear_y")
GEOMETRIC = (*TILTING, "translate_x", "translate_y")
BOXES = [[5, 8, 45, 60], [60, 4, 100, 40], [110, 10, 155, 110], [20, 70, 90, 112], [48, 44, 100, 66]]
TARGET = (96, 112)


def extent(mask: npt.NDArray[np.uint8], value: int) -> npt.NDArray[np.float64]:
    """Bounds of the pixels of one value, as xyxy with exclusive right and bottom."""
    rows, columns = np.nonzero(mask == value)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)


def drawn(sample_of: Any) -> Sample:
    """Five rectangles as boxes, of which none may stay as a sliver, in the image and in the mask."""
    sample: Sample = sample_of((120, 160), BOXES, drawn=True)
    return sample.replace(crowd=np.zeros(5, np.bool_), difficult=np.zeros(5, np.bool_))


def differences(sample: Sample) -> npt.NDArray[np.float64]:
    """How far each box reaches beyond the region of its label in the mask, on its four sides, in pixels, (N, 4)."""
    assert sample.mask is not None
    regions = [extent(sample.mask, int(label) + 1) for label in sample.labels]
    outwards = np.array([-1, -1, 1, 1])
    return (sample.boxes_xyxy - np.array(regions).reshape(-1, 4)) * outwards


def whole_transform(**settings: Any) -> Transform:
    given = {"scale": (0.5, 2.0), "vflip": 0.5, "photometric": 0.7, "max_class_share": 0.75, **settings}
    return train_transform(image_size_hw=TARGET, fill=FILL, **given)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="fitted"),
        pytest.param({"scene_size_hw": (200, 230)}, id="window on a scene"),
        pytest.param({"own_size": True}, id="window on its own pixels"),
        pytest.param({"scale": (0.1, 0.6)}, id="mostly padding"),
    ],
)
def test_boxes_and_masks_agree_after_the_whole_training_transform(sample_of: Any, settings: dict[str, Any]) -> None:
    sample = drawn(sample_of)
    transform = whole_transform(**settings)
    checked = 0
    for seed in range(80):
        result = transform(sample, np.random.default_rng(seed))
        assert result.mask is not None
        assert result.mask.shape == result.image.shape[:2] == TARGET
        assert (np.abs(differences(result)) <= 1).all(), seed
        checked += len(result.labels)
    assert checked > 120


def test_boxes_enclose_masks_after_the_whole_training_transform_with_randaugment(sample_of: Any) -> None:
    sample = drawn(sample_of)
    transform = whole_transform(randaugment_ops=2, randaugment_magnitude=6.0)
    checked = 0
    for seed in range(120):
        result = transform(sample, np.random.default_rng(seed))
        assert (differences(result) >= -1).all(), seed
        checked += len(result.labels)
    assert checked > 300


@pytest.mark.parametrize("name", RANDAUGMENT_OPERATIONS)
def test_boxes_and_masks_agree_after_every_operation(sample_of: Any, name: str) -> None:
    sample = drawn(sample_of)
    augment = RandAugment(1, 5.0, FILL, operations=[name])
    transform = Compose((RandomScaleCrop(TARGET, (0.5, 2.0)), Flip(0.5, 0.5), augment, Pad(TARGET, FILL)))
    for seed in range(40):
        apart = differences(transform(sample, np.random.default_rng(seed)))
        assert (apart >= -1).all(), seed
        assert name in TILTING or (apart <= 1).all(), seed


@pytest.mark.parametrize("name", GEOMETRIC)
def test_image_and_mask_are_moved_to_the_same_pixel(sample_of: Any, name: str) -> None:
    sample = drawn(sample_of)
    augment = RandAugment(1, 5.0, FILL, operations=[name])
    for seed in range(4):
        result = augment(sample, np.random.default_rng(seed))
        assert result.mask is not None
        inside = (result.mask > 0) & (result.mask < 255)
        white = (result.image > 128).all(axis=2)
        assert set(np.unique(result.mask)) <= {0, 1, 2, 3, 4, 5, 255}
        between = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert not ((white != inside) & ~between).any()


@pytest.mark.parametrize("name", [name for name in RANDAUGMENT_OPERATIONS if name not in GEOMETRIC])
def test_operations_on_colours_leave_the_mask_alone(sample_of: Any, name: str) -> None:
    sample = sample_of((40, 50), BOXES, drawn=True)
    for seed in range(4):
        assert RandAugment(1, 9.0, FILL, operations=[name])(sample, np.random.default_rng(seed)).mask is sample.mask
        assert Photometric(p=1.0)(sample, np.random.default_rng(seed)).mask is sample.mask


# --- padding

BRINGING_IN = [
    *(pytest.param(RandAugment(1, 8.0, FILL, operations=[name]), id=name) for name in RANDAUGMENT_OPERATIONS),
    pytest.param(RandAugment(4, 6.0, FILL), id="four at random"),
    pytest.param(Pad((90, 100), FILL), id="pad"),
    pytest.param(whole_transform(photometric=1.0), id="whole transform"),
    pytest.param(whole_transform(photometric=1.0, randaugment_ops=3), id="whole transform with RandAugment"),
]


@pytest.mark.parametrize("transform", BRINGING_IN)
def test_padding_is_the_image_mean_and_255_in_the_mask_in_every_operation(sample_of: Any, transform: Transform) -> None:
    rows = np.linspace(150, 255, 60).astype(np.uint8)
    grey = np.ascontiguousarray(np.broadcast_to(rows[:, None, None], (60, 80, 3)))  # which no operation tints
    sample = sample_of((60, 80)).replace(image=grey, mask=np.full((60, 80), 3, np.uint8))
    for seed in range(30):
        result = transform(sample, np.random.default_rng(seed))
        assert result.mask is not None
        assert set(np.unique(result.mask)) <= {3, 255}
        filled = (result.image == FILL).all(axis=2)
        assert (result.mask[filled] == 255).all(), seed
        # At the rim bilinear interpolation mixes both.
        rim = cv2.dilate((result.mask == 3).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert filled[(result.mask == 255) & ~rim].all(), seed


def test_operations_that_move_pixels_come_after_those_that_recolour(sample_of: Any) -> None:
    sample = sample_of((60, 80))
    augment = RandAugment(6, 8.0, FILL, operations=["translate_x", "solarize"])
    results = [augment(sample, np.random.default_rng(seed)).image for seed in range(20)]
    assert sum((image == FILL).all(axis=2).all(axis=0).any() for image in results) > 15


# --- the cap on one class's share


class Replay:
    """A generator whose draws are known beforehand: the scale is the least, then these shares."""

    def __init__(self, *shares: float) -> None:
        self.shares = list(shares)

    def random(self) -> float:
        return self.shares.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low


def halves(sample_of: Any, size_hw: tuple[int, int] = (20, 100)) -> Sample:
    """Class 0 to the left and class 1 to the right."""
    mask = np.zeros(size_hw, np.uint8)
    mask[:, size_hw[1] // 2 :] = 1
    sample: Sample = sample_of(size_hw).replace(mask=mask)
    return sample


def capped(share: float, size_hw: tuple[int, int] = (20, 20)) -> RandomScaleCrop:
    return RandomScaleCrop(size_hw, (1.0, 1.0), own_size=True, max_class_share=share)


@pytest.mark.parametrize(
    ("share", "shares", "left", "unused"),
    [
        pytest.param(0.75, [0, 0.5, 9, 9], 40, 2, id="the first obeys"),
        pytest.param(0.75, [0, 0.1, 0, 0.9, 0, 0.45, 9], 36, 1, id="the third obeys"),
        pytest.param(0.5, [0, 0.45, 0, 0.5], 40, 0, id="a share of exactly the cap obeys"),
        pytest.param(0.75, [0, 0.1] * 9 + [0, 0.9, 9], 72, 1, id="none of ten obeys: the last"),
        pytest.param(1.0, [0, 0.1, 9, 9], 8, 2, id="off"),
    ],
)
def test_windows_are_drawn_until_one_obeys(
    sample_of: Any, share: float, shares: list[float], left: int, unused: int
) -> None:
    sample = halves(sample_of)
    generator: Any = Replay(*shares)
    result = capped(share)(sample, generator)
    np.testing.assert_array_equal(result.image, sample.image[:, left : left + 20])
    assert sample.mask is not None
    np.testing.assert_array_equal(result.mask, sample.mask[:, left : left + 20])
    assert len(generator.shares) == unused


def test_the_cap_is_obeyed_where_it_can_be(sample_of: Any) -> None:
    sample = halves(sample_of)

    def obeyed(share: float) -> float:
        results = [capped(share)(sample, np.random.default_rng(seed)).mask for seed in range(200)]
        return float(np.mean([np.bincount(mask.ravel()).max() <= 0.75 * mask.size for mask in results]))

    assert obeyed(1.0) < 0.25
    assert obeyed(0.75) > 0.7


@pytest.mark.parametrize("masked", [True, False], ids=["cap of one", "no mask"])
@pytest.mark.parametrize("scale", [(0.3, 0.9), (0.5, 2.0)], ids=["smaller", "mixed"])
def test_without_a_cap_or_a_mask_not_one_number_more_is_drawn(
    sample_of: Any, masked: bool, scale: tuple[float, float]
) -> None:
    unlabelled = sample_of((60, 80)).replace(mask=np.full((60, 80), 255, np.uint8))  # no window of it obeys
    given, share = (unlabelled, 1.0) if masked else (unlabelled.replace(mask=None), 0.01)
    for seed in range(10):
        expected, rng = np.random.default_rng(seed), np.random.default_rng(seed)
        expected.random(3)  # the factor, the top and the left
        RandomScaleCrop((48, 48), scale, max_class_share=share)(given, rng)
        assert rng.random() == expected.random()


@pytest.mark.parametrize(
    ("labelled", "draws"),
    [pytest.param([0, 1], 1, id="two classes in a corner"), pytest.param([], 10, id="nothing labelled")],
)
def test_ignored_pixels_are_not_counted(sample_of: Any, labelled: list[int], draws: int) -> None:
    mask = np.full((20, 100), 255, np.uint8)
    for row, label in enumerate(labelled):
        mask[row] = label
    generator: Any = Replay(*[0.0] * 20)
    capped(0.6)(sample_of((20, 100)).replace(mask=mask), generator)
    assert len(generator.shares) == 20 - 2 * draws


def test_an_image_without_room_for_another_window_is_not_drawn_again(sample_of: Any) -> None:
    generator: Any = Replay(0.0, 0.0)
    result = capped(0.4, (120, 120))(halves(sample_of), generator)
    assert result.image.shape == (20, 100, 3)


# --- what scale 1 is


@pytest.mark.parametrize(
    ("settings", "scale", "before_crop"),
    [
        pytest.param({}, 1.0, (48, 64), id="the target"),
        pytest.param({"scene_hw": (64, 64)}, 1.0, (48, 64), id="the target by name"),
        pytest.param({"scene_hw": (240, 160)}, 1.0, (120, 160), id="a scene"),
        pytest.param({"scene_hw": (240, 160)}, 0.5, (60, 80), id="half a scene"),
        pytest.param({"own_size": True}, 1.0, (60, 80), id="its own size"),
        pytest.param({"own_size": True}, 2.0, (120, 160), id="twice its own size"),
        pytest.param({"own_size": True}, 0.5, (30, 40), id="half its own size"),
    ],
)
def test_the_scale_is_of_the_scene(
    sample_of: Any, settings: dict[str, Any], scale: float, before_crop: tuple[int, int]
) -> None:
    sample = sample_of((60, 80), [[0, 0, 80, 60]])
    crop = RandomScaleCrop((64, 64), (scale, scale), **settings)
    generator: Any = Replay(0.0, 0.0)
    result = crop(sample, generator)
    shown = tuple(min(side, 64) for side in before_crop)
    assert result.image.shape[:2] == result.resized_size_hw == shown
    assert result.boxes_xyxy.tolist() == [[0, 0, shown[1], shown[0]]]
    whole = RandomScaleCrop(before_crop, (1.0, 1.0))(sample, np.random.default_rng(0)).image
    np.testing.assert_array_equal(result.image, whole[: shown[0], : shown[1]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"own_size": True, "scene_size_hw": (9, 9)}, "not both", id="two scenes"),
        pytest.param({"scene_size_hw": (0, 9)}, "image size", id="scene without height"),
        pytest.param({"max_class_share": 0.0}, "max_class_share", id="share of zero"),
        pytest.param({"max_class_share": 1.1}, "max_class_share", id="share above one"),
        pytest.param({"max_class_share": float("nan")}, "max_class_share", id="share not a number"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_transform(image_size_hw=(9, 9), fill=FILL, **settings)


@pytest.mark.parametrize("has_boxes", [True, False])
def test_no_transform_forgets_whether_boxes_are_known(sample_of: Any, has_boxes: bool) -> None:
    sample = sample_of((120, 160), BOXES if has_boxes else (), drawn=True).replace(has_boxes=has_boxes)
    everything = train_transform(
        image_size_hw=TARGET, fill=FILL, scale=(0.1, 2.0), vflip=0.5, photometric=1.0, randaugment_ops=9
    )
    for transform in (everything, eval_transform(TARGET, FILL)):
        for seed in range(10):
            assert transform(sample, np.random.default_rng(seed)).has_boxes == has_boxes
