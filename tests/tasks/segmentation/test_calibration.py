from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from effdense.errors import UserError
from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.types import Float32, UInt8


def pixels(count: int, right: int) -> tuple[UInt8, UInt8]:
    """So many pixels, so many of them right."""
    predicted = np.ones(count, np.uint8)
    predicted[:right] = 0
    return np.zeros(count, np.uint8), predicted


def sure(count: int, confidence: float) -> Float32:
    return np.full(count, confidence, np.float32)


def test_numbers_worked_out_by_hand() -> None:
    calibration = CalibrationError(4)
    calibration.update(*pixels(10, 8), sure(10, 0.875))
    calibration.update(*pixels(30, 3), sure(30, 0.375))
    assert calibration.num_pixels == 40
    assert calibration.expected == pytest.approx((10 * 0.075 + 30 * 0.275) / 40)
    assert calibration.greatest == pytest.approx(0.275)
    bins = calibration.reliability
    assert bins.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert bins.pixels.tolist() == [0, 30, 0, 10]
    np.testing.assert_allclose(bins.confidence, [math.nan, 0.375, math.nan, 0.875])
    np.testing.assert_allclose(bins.accuracy, [math.nan, 0.1, math.nan, 0.8])
    np.testing.assert_allclose(bins.gap, [math.nan, 0.275, math.nan, 0.075])


def test_too_sure_and_too_modest_in_one_bin_cancel() -> None:
    calibration = CalibrationError(1)
    calibration.update(*pixels(10, 10), sure(10, 0.5))
    calibration.update(*pixels(10, 0), sure(10, 0.5))
    assert calibration.expected == 0


def test_a_probability_of_1_is_in_the_last_bin() -> None:
    calibration = CalibrationError(15)
    calibration.update(*pixels(4, 4), sure(4, 1.0))
    calibration.update(*pixels(4, 0), sure(4, 0.95))
    assert calibration.reliability.pixels.tolist() == [0] * 14 + [8]
    assert calibration.expected == pytest.approx(0.975 - 0.5)
    edges = CalibrationError(15)
    edges.update(*pixels(2, 2), np.array([0.0, 0.2], np.float32))
    assert np.flatnonzero(edges.reliability.pixels).tolist() == [0, 3]


def test_ignored_pixels_count_nowhere_whatever_they_hold() -> None:
    calibration = CalibrationError()
    truth, predicted = pixels(6, 3)
    truth[4:] = 255
    confidence = sure(6, 0.75)
    confidence[4:] = math.nan
    calibration.update(truth, predicted, confidence)
    assert calibration.num_pixels == 4
    assert calibration.expected == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(0,), (2, 3)], ids=["empty", "all ignored"])
def test_nothing_to_measure_has_no_score(shape: tuple[int, ...]) -> None:
    calibration = CalibrationError()
    calibration.update(np.full(shape, 255, np.uint8), np.zeros(shape, np.uint8), np.zeros(shape, np.float32))
    assert math.isnan(calibration.expected)
    assert math.isnan(calibration.greatest)
    content = json.loads(json.dumps(calibration.jsonable(), allow_nan=False))
    assert content["expected"] is None
    assert content["bins"]["accuracy"] == [None] * 15


def test_batches_shards_and_tensors_count_alike() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (2, 4, 20, 30), dtype=np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    confidence = rng.random(truth.shape, dtype=np.float32)
    whole, shards, tensors = CalibrationError(), CalibrationError(), CalibrationError()
    whole.update(truth, predicted, confidence)
    for one in range(4):
        shard = CalibrationError()
        shard.update(truth[one], predicted[one], confidence[one])
        shards.merge(shard)
    shards.all_reduce()
    tensors.update(*(torch.from_numpy(array) for array in (truth, predicted, confidence)))
    for other in (shards, tensors):
        assert other.reliability.pixels.tolist() == whole.reliability.pixels.tolist()
        assert other.expected == pytest.approx(whole.expected, abs=1e-12)
        assert other.greatest == pytest.approx(whole.greatest, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_probabilities_of_any_precision_are_taken(dtype: torch.dtype) -> None:
    calibration = CalibrationError()
    truth, predicted = (torch.from_numpy(array) for array in pixels(8, 4))
    calibration.update(truth, predicted, torch.full((8,), 0.75, dtype=dtype))
    assert calibration.expected == 0.25


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan, math.inf])
def test_what_is_no_probability_is_refused_and_not_counted(wrong: float) -> None:
    calibration = CalibrationError()
    confidence = sure(3, 0.5)
    confidence[1] = wrong
    with pytest.raises(ValueError, match="expected probabilities"):
        calibration.update(*pixels(3, 1), confidence)
    assert calibration.num_pixels == 0


def test_what_does_not_belong_together_is_refused() -> None:
    calibration = CalibrationError()
    truth, predicted = pixels(3, 1)
    with pytest.raises(ValueError, match="expected confidences of"):
        calibration.update(truth, predicted, sure(4, 0.5))
    with pytest.raises(UserError, match="the truth is 3 and the prediction 2"):
        calibration.update(truth, predicted[:2], sure(3, 0.5))
    with pytest.raises(ValueError, match="10 bins do not merge with 15"):
        calibration.merge(CalibrationError(10))
    with pytest.raises(ValueError, match="at least one bin"):
        CalibrationError(0)
