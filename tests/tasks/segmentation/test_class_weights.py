"""Class weights from pixel counts: the rules of the papers, and classes that never occur."""

from __future__ import annotations

import math

import numpy as np
import pytest

from effdense.errors import UserError
from effdense.tasks.segmentation.class_weights import CLASS_WEIGHT_RULES
from effdense.tasks.segmentation.loss import class_weights_from_counts


def test_median_frequency_gives_the_class_in_the_middle_the_weight_between() -> None:
    weights = class_weights_from_counts(np.array([800, 100, 50, 40, 10]), "median")
    unscaled = np.median([0.8, 0.1, 0.05, 0.04, 0.01]) / np.array([0.8, 0.1, 0.05, 0.04, 0.01])
    assert unscaled[2] == 1
    np.testing.assert_allclose(weights, unscaled / unscaled.mean())


def test_inverse_log_is_bounded_as_in_enet() -> None:
    unscaled = np.array([1 / math.log(1.02 + 0.999999), 1 / math.log(1.02 + 1e-6)])
    weights = class_weights_from_counts(np.array([999_999, 1]), "inverse_log")
    np.testing.assert_allclose(weights, unscaled / unscaled.mean())
    assert weights[1] / weights[0] < 36


@pytest.mark.parametrize("rule", CLASS_WEIGHT_RULES)
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([3, 5], id="two"),
        pytest.param([7], id="one class"),
        pytest.param([0, 4, 0], id="one that occurs"),
        pytest.param([0, 900, 90, 10], id="one absent"),
        pytest.param([2**40, 2**60, 1], id="more pixels than a float32 counts"),
        pytest.param([1] * 255, id="the most classes"),
    ],
)
def test_the_mean_over_classes_that_occur_is_one_and_absent_ones_weigh_nothing(rule: str, counts: list[int]) -> None:
    weights = class_weights_from_counts(np.array(counts, np.int64), rule)
    assert all(type(weight) is float for weight in weights)
    present = [weight for weight, count in zip(weights, counts, strict=True) if count]
    assert [weight for weight, count in zip(weights, counts, strict=True) if not count] == [0] * counts.count(0)
    assert np.mean(present) == pytest.approx(1)
    by_count = sorted(zip(counts, weights, strict=True))
    rising = [weight for count, weight in by_count if count]
    assert rising == sorted(rising, reverse=True)


@pytest.mark.parametrize(
    ("counts", "rule", "error", "message"),
    [
        pytest.param([1, 2], "medium", UserError, "no rule 'medium'.*did you mean 'median'", id="unknown rule"),
        pytest.param([0, 0], "median", UserError, "no mask has a pixel of any class", id="no pixel"),
        pytest.param([], "median", UserError, "no mask has a pixel", id="no class"),
        pytest.param([1, -1], "median", ValueError, "none below zero", id="negative"),
        pytest.param([[1, 2]], "median", ValueError, "one count of pixels a class", id="a table"),
    ],
)
def test_senseless_counts_are_refused(counts: list[int], rule: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        class_weights_from_counts(np.array(counts, np.int64), rule)
