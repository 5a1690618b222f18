from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from effdense.errors import UserError
from effdense.tasks.segmentation.metrics.boundary import BoundaryIou, band_width, outline_band
from effdense.types import Bool, UInt8


def blobs(seed: int, size_hw: tuple[int, int], num_classes: int, *, ignored: float = 0.0) -> tuple[UInt8, UInt8]:
    """Patches of labels, and the same moved and with holes; the last class is in neither."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, max(num_classes - 1, 1), (6, 6), dtype=np.uint8)
    rows, columns = (np.arange(side) * 6 // side for side in size_hw)
    truth = cells[rows][:, columns]
    predicted = np.roll(truth, (2, -3), (0, 1))
    predicted[rng.random(size_hw) < 0.02] = 0
    void = np.roll(truth, 1, 0) != truth
    truth[(void | (rng.random(size_hw) < 0.05)) & (ignored > 0)] = 255
    return truth, predicted


def band_of_one_class(mask: Bool, width: int) -> Bool:
    """The paper's G_d of one mask, within the mask: its pixels that are within d pixels of what is not in it.

    Distance is that of a square, as 3x3 erosions have it; beyond the frame is not in the mask.
    """
    height, side = mask.shape
    band = np.zeros_like(mask)
    for y, x in np.argwhere(mask).tolist():
        outside = y < width or x < width or y + width >= height or x + width >= side
        near = mask[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        band[y, x] = outside or not near.all()
    return band


def plain_boundary_iou(pairs: list[tuple[UInt8, UInt8]], num_classes: int, ratio: float) -> list[float]:
    """Class after class and pixel after pixel; a pixel that is ignored is taken out of both masks first."""
    inside, either = np.zeros((2, num_classes))
    for truth, predicted in pairs:
        height, width = truth.shape
        distance = max(1, round(ratio * math.sqrt(height**2 + width**2)))
        for label in range(num_classes):
            there = band_of_one_class(truth == label, distance)
            said = band_of_one_class((predicted == label) & (truth != 255), distance)
            inside[label] += (there & said).sum()
            either[label] += (there | said).sum()
    return [above / below if below else math.nan for above, below in zip(inside, either, strict=True)]


@pytest.mark.parametrize("ignored", [0.0, 1.0], ids=["all counts", "some ignored"])
@pytest.mark.parametrize(
    ("size_hw", "ratio"),
    [((48, 36), 0.02), ((40, 61), 0.05), ((30, 30), 0.3), ((9, 7), 0.02)],
    ids=["one pixel", "four pixels", "wider than the patches", "tiny"],
)
def test_it_is_what_the_paper_defines(size_hw: tuple[int, int], ratio: float, ignored: float) -> None:
    pairs = [blobs(seed, size_hw, 4, ignored=ignored) for seed in range(3)]
    boundary = BoundaryIou(4, dilation_ratio=ratio)
    for truth, predicted in pairs:
        boundary.update(truth, predicted)
    expected = plain_boundary_iou(pairs, 4, ratio)
    np.testing.assert_allclose(boundary.iou, expected, rtol=0, atol=1e-12)
    assert math.isnan(boundary.iou[3])
    assert boundary.miou == pytest.approx(np.mean(expected[:3]), abs=1e-12)


@pytest.mark.parametrize(
    ("size_hw", "width"),
    [((1, 1), 1), ((30, 40), 1), ((480, 640), 16), ((375, 500), 12), ((1024, 2048), 46)],
    ids=str,
)
def test_the_band_is_2_percent_of_the_diagonal_and_at_least_a_pixel(size_hw: tuple[int, int], width: int) -> None:
    assert band_width(size_hw, 0.02) == width


def test_the_frame_is_an_outline() -> None:
    band = outline_band(np.zeros((7, 8), np.uint8), 2)
    assert not band[2:-2, 2:-2].any()
    assert band.sum() == 7 * 8 - 3 * 4


def test_pixels_that_are_ignored_are_in_neither_band_and_their_edge_is_in_both() -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 18:22] = 255
    outside = np.zeros((40, 40), np.uint8)
    outside[12:28, 19:21] = 1
    alike, other = BoundaryIou(2), BoundaryIou(2)
    alike.update(truth, np.zeros((40, 40), np.uint8))
    other.update(truth, outside)
    assert alike.iou[0] == other.iou[0] == 1
    assert alike.unions[0] == other.unions[0] == band_of_one_class(truth == 0, 1).sum()
    assert other.unions[1] == 0


def test_a_shift_costs_more_at_the_outline_than_in_the_area() -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[20:80, 20:80] = 1
    predicted = np.roll(truth, 2, 1)
    boundary = BoundaryIou(2)
    boundary.update(truth, predicted)
    area = ((truth == 1) & (predicted == 1)).sum() / ((truth == 1) | (predicted == 1)).sum()
    assert area > 0.93
    assert 0.4 < boundary.iou[1] < 0.6


def test_batches_shards_and_tensors_count_alike() -> None:
    truths, predictions = (np.stack(maps) for maps in zip(*(blobs(s, (33, 47), 5) for s in range(4)), strict=True))
    whole, singles, tensors = BoundaryIou(5), BoundaryIou(5), BoundaryIou(5)
    whole.update(truths, predictions)
    for one in range(4):
        shard = BoundaryIou(5)
        shard.update(truths[one], predictions[one])
        singles.merge(shard)
    tensors.update(torch.from_numpy(truths)[None], torch.from_numpy(predictions)[None])
    singles.all_reduce()
    for other in (singles, tensors):
        np.testing.assert_array_equal(whole.intersections, other.intersections)
        np.testing.assert_array_equal(whole.unions, other.unions)


@pytest.mark.filterwarnings("error")
def test_nothing_to_compare_has_no_score() -> None:
    boundary = BoundaryIou(2)
    boundary.update(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    boundary.update(np.full((5, 5), 255, np.uint8), np.full((5, 5), 255, np.uint8))
    assert np.isnan(boundary.iou).all()
    assert math.isnan(boundary.miou)
    assert json.loads(json.dumps(boundary.jsonable(), allow_nan=False))["mIoU"] is None


def test_a_single_pixel_is_all_outline() -> None:
    boundary = BoundaryIou(1)
    boundary.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    assert boundary.unions.tolist() == [1]
    assert boundary.miou == 1


def test_what_cannot_be_compared_is_refused_and_not_counted() -> None:
    boundary = BoundaryIou(2)
    zeros = np.zeros((4, 4), np.uint8)
    for truth, predicted, said in (
        (zeros, zeros + 2, "a: the prediction has the label 2"),
        (zeros + 2, zeros, "a: the truth has the label 2"),
        (zeros, zeros + 255, "without a class"),
        (zeros, zeros[1:], "4 x 4 and the prediction 3 x 4"),
    ):
        with pytest.raises(UserError, match=said):
            boundary.update(truth, predicted, where="a")
    with pytest.raises(ValueError, match="expected label maps"):
        boundary.update(zeros[0], zeros[0])
    with pytest.raises(ValueError, match="do not merge"):
        boundary.merge(BoundaryIou(2, dilation_ratio=0.01))
    with pytest.raises(ValueError, match="dilation_ratio"):
        BoundaryIou(2, dilation_ratio=0)
    assert boundary.unions.sum() == 0
