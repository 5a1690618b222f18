"""The names of the loss terms, and sums of them as they are written in a setting. Imports no torch, for ``--help``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from effdense.errors import UserError, nearest

LOSS_TERMS = ("ce", "dice", "lovasz", "focal", "tversky")
"""Cross entropy, Dice, Lovasz-softmax, focal on softmax, Tversky."""


def parse_terms(text: str) -> dict[str, float]:
    """Turn a sum of weighted terms, such as ``"ce+0.5*dice"``, into their weights, in the order written.

    Args:
        text: terms joined by ``+``, each a name or a weight, ``*`` and a name.

    Raises:
        UserError: an unknown name, one that comes twice, a weight that is no number above 0, or nothing at all.
    """
    terms: dict[str, float] = {}
    for part in text.split("+"):
        weight, star, name = (piece.strip() for piece in part.rpartition("*"))
        if not name:
            raise UserError(f"loss is {text!r}: a term is missing; write a sum such as ce+0.5*dice")
        if name in terms:
            raise UserError(f"loss is {text!r}: {name} comes twice; give it one weight")
        terms[name] = _weight(weight, text) if star else 1.0
    check_terms(terms)
    return terms


def _weight(written: str, text: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise UserError(f"loss is {text!r}: {written!r} is no number; write a sum such as ce+0.5*dice") from None


def check_terms(terms: Mapping[str, float]) -> None:
    """Refuse terms that do not exist and weights that make no sense.

    Raises:
        UserError: names the term, and the nearest that exists.
    """
    if not terms:
        raise UserError(f"a loss needs at least one term of {', '.join(LOSS_TERMS)}")
    for name, weight in terms.items():
        if name not in LOSS_TERMS:
            raise UserError(f"there is no loss {name!r}{nearest(name, LOSS_TERMS)} (there are {', '.join(LOSS_TERMS)})")
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"the weight of {name} is {weight}, expected a number above 0; to do without, leave it out")
