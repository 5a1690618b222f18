"""Ours and the peer's results are the same, or nothing is timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from effdense.tools.benchmarks.rows import Unequal


def check_close(what: str, ours: Any, peer: Any, tolerance: float = 0.0) -> float:
    """Return the largest difference between two arrays.

    Args:
        what: what they are, for the error.
        ours: array or tensor.
        peer: array or tensor of the same shape.
        tolerance: largest difference that passes, relative to the peer's largest value; 0 asks for the same values.

    Raises:
        Unequal: they differ by more, in shape, or in what is not finite.
    """
    mine, theirs = _array(ours), _array(peer)
    if mine.shape != theirs.shape:
        raise Unequal(f"{what}: ours have the shape {mine.shape}, the peer's {theirs.shape}")
    if not mine.size:
        return 0.0
    differ = float(np.abs(mine - theirs).max())
    if not differ <= tolerance * float(np.abs(theirs).max()):  # also where something is not a number
        raise Unequal(f"{what}: ours and the peer's differ by up to {differ:.3g}")
    return differ


def check_same_labels(what: str, ours: Any, peer: Any, least: float = 1.0) -> float:
    """Return the share of equal elements in two arrays of labels.

    Raises:
        Unequal: it is below ``least``, or the shapes differ.
    """
    mine, theirs = _array(ours), _array(peer)
    if mine.shape != theirs.shape:
        raise Unequal(f"{what}: ours have the shape {mine.shape}, the peer's {theirs.shape}")
    share = float((mine == theirs).mean()) if mine.size else 1.0
    if share < least:
        raise Unequal(f"{what}: only {share:.3%} of the labels are the peer's, expected {least:.3%}")
    return share


def _array(value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.asarray(value, np.float64)
