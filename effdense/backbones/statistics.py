"""The mean and std of a backbone's input, one number for each of red, green and blue, in 0..1."""

from __future__ import annotations

from collections.abc import Sequence

from effdense.errors import UserError

Triple = tuple[float, float, float]


def triple(values: Sequence[float], what: str = "a mean or std") -> Triple:
    """Return three numbers as a tuple of floats.

    Raises:
        UserError: there are not three.
    """
    if len(values) != 3:
        raise UserError(f"{what} is {tuple(values)}; it must be three numbers, one for each of red, green and blue")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
