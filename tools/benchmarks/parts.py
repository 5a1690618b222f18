"""Which parts and curves there are, in the order of the table; modules are imported when they run."""

from __future__ import annotations

import importlib

from effdense.config_values import unknown_name
from effdense.errors import UserError
from effdense.tools.benchmarks.rows import Curve, Part

PARTS: tuple[str, ...] = (
    "inference",
    "segmentation",
    "training",
    "labelling",
    "loss",
    "postprocessing",
    "evaluation",
    "annotations",
    "loading",
    "starting",
)
"""Modules of this folder with a PART, which has the module's name."""
CURVE_MODULES: tuple[str, ...] = ("curves", "training_curves", "labelling", "evaluation", "annotations", "loading")
"""Modules of this folder with CURVES, a tuple of Curve."""


def find_parts(names: tuple[str, ...]) -> list[Part]:
    """Return the parts of these names in the table's order, all without names.

    Raises:
        UserError: there is no part of a name; it says the nearest, and all.
    """
    for name in names:
        if name not in PARTS:
            raise _unknown("part", name, list(PARTS))
    return [_module(name).PART for name in PARTS if not names or name in names]


def find_curves(names: tuple[str, ...]) -> list[Curve]:
    """Return the curves of these names, all without names.

    Raises:
        UserError: there is no curve of a name; it says the nearest, and all.
    """
    curves: list[Curve] = [curve for module in CURVE_MODULES for curve in _module(module).CURVES]
    for name in names:
        if name not in [curve.name for curve in curves]:
            raise _unknown("curve", name, [curve.name for curve in curves])
    return [curve for curve in curves if not names or curve.name in names]


def _unknown(what: str, name: str, known: list[str]) -> UserError:
    return UserError(f"{unknown_name(what, name, known)} Known are {', '.join(known)}.")


def _module(name: str):  # type: ignore[no-untyped-def]  # a part's attributes are known by name only
    return importlib.import_module(f"effdense.tools.benchmarks.{name}")
