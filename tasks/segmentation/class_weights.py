"""Weights of the classes from how many pixels each has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from effdense.errors import UserError, nearest
from effdense.types import Int64

Float64 = npt.NDArray[np.float64]


def _median(shares: Float64) -> Float64:
    """Median frequency balancing (Eigen & Fergus 2015, arXiv 1411.4734, section 6.3.2): median share / own share."""
    return np.asarray(np.median(shares) / shares, np.float64)


def _inverse_log(shares: Float64) -> Float64:
    """ENet's bounded weights (Paszke et al. 2016, arXiv 1606.02147, section 4): 1 / ln(1.02 + share), 1.4 to 50."""
    return np.asarray(1.0 / np.log(1.02 + shares), np.float64)


CLASS_WEIGHT_RULES: dict[str, Callable[[Float64], Float64]] = {"median": _median, "inverse_log": _inverse_log}


def class_weights_from_counts(counts: Int64, rule: str) -> list[float]:
    """Weigh rare classes more and frequent ones less.

    The weights are scaled to a mean of 1 over the classes that occur. A class without a pixel gets weight 0: nothing
    is known of it, and by its share of 0 it would get the greatest weight, or an infinite one. A class's share is of
    all counted pixels. Eigen & Fergus count only the images that a class occurs in, which pixel counts cannot tell;
    where every image has every class there is no difference, elsewhere rare classes weigh more here.

    Args:
        counts: pixels of each class, (K,).
        rule: ``"median"``, inverse to the share and without bound, or ``"inverse_log"``, bounded (50 to 1.4 before
            scaling).

    Raises:
        UserError: no such rule, or no class has a pixel.
        ValueError: a count below zero.
    """
    if rule not in CLASS_WEIGHT_RULES:
        known = tuple(CLASS_WEIGHT_RULES)
        raise UserError(
            f"there is no rule {rule!r} for class weights{nearest(rule, known)} (there are {', '.join(known)})"
        )
    counts = np.asarray(counts)
    if counts.ndim != 1 or (counts < 0).any():
        raise ValueError(f"expected one count of pixels a class, none below zero, got {counts.tolist()}")
    present = counts > 0
    if not present.any():
        raise UserError("class weights need counted pixels, but no mask has a pixel of any class: check the masks")
    weights = np.zeros(len(counts))
    weights[present] = CLASS_WEIGHT_RULES[rule](counts[present] / counts.sum())
    return [float(weight) for weight in weights / weights[present].mean()]
