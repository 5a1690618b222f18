"""The curves as one picture, a panel each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from effdense.plots import ACCENT, clean, new_figure, save_figure
from effdense.tools.benchmarks.rows import Curve, Line

_OURS = (ACCENT, "#4a9a4a", "#8a5cb5", "#3aa3a8", "#b5a13c")
_PEERS = ("#d1602b", "#7a4a2a", "#999999")
_ACROSS = 2
"""Panels side by side."""


def draw_curves(curves: Sequence[tuple[Curve, Sequence[Line]]], path: Path, title: str) -> None:
    """Write the picture; x is logarithmic, and y where the curve says so.

    Args:
        curves: at least one, with its lines.
        path: the file.
        title: over all panels, such as what it was measured on.

    Raises:
        UserError: the file cannot be written.
    """
    down = -(-len(curves) // _ACROSS)
    across = min(_ACROSS, len(curves))
    figure = new_figure(7.0 * across, 5.2 * down)
    for axes, one in zip(figure.subplots(down, across, squeeze=False).flat, [*curves, *[None] * across], strict=False):
        if one is None:
            axes.set_axis_off()
            continue
        curve, lines = one
        ours, peers = iter(_OURS * len(lines)), iter(_PEERS * len(lines))
        for line in lines:
            own = line.label.startswith("effdense")
            axes.plot(
                line.xs,
                line.ys,
                "-o" if own else "--s",
                color=next(ours if own else peers),
                markersize=4,
                linewidth=1.8,
                label=line.label,
            )
        _scales(axes, curve, lines)
        clean(axes)
        axes.set_title(curve.what, fontsize=12, loc="left")
        axes.set_xlabel(curve.x, fontsize=11)
        axes.set_ylabel(curve.y, fontsize=11)
        axes.tick_params(labelsize=10)
        # below the panel, where it hides no line
        axes.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    save_figure(figure, path)


def _scales(axes, curve: Curve, lines: Sequence[Line]) -> None:  # type: ignore[no-untyped-def]
    """Make axes logarithmic where they can be, with plain numbers at the measured places."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    xs = sorted({x for line in lines for x in line.xs})
    if xs[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(xs)
    plain = FuncFormatter(lambda value, _: _short(value))
    axes.xaxis.set_major_formatter(plain)
    ys = [y for line in lines for y in line.ys]
    if curve.log and min(ys) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain)
        few = max(ys) / min(ys) < 30  # less than a decade and a half has hardly a power of ten to label
        axes.yaxis.set_minor_formatter(plain if few else NullFormatter())
        axes.tick_params(axis="y", which="minor", labelsize=9)
    else:
        axes.set_ylim(bottom=0)


def _short(value: float) -> str:
    """Return a number for a tick: 1000000 as 1M, 20000 as 20k."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or abs(value) == unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
