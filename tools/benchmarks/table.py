"""Rows and curves as tables, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from effdense.tools.benchmarks.rows import Curve, Line, Part, Row

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("part", "case", "peer", "effdense", "ratio", "quartiles", "target", "met", "note")
_RIGHT = ("peer", "effdense", "ratio", "quartiles", "target")

Measured = Sequence[tuple[Part, Sequence[Row]]]
"""Parts with their rows."""


def cells(part: Part, row: Row) -> tuple[str, ...]:
    """Return what stands under each of the headings."""
    met = {None: "", True: "yes", False: "**no**"}[row.met]
    target = "" if row.target is None else f"{row.target:g}x" if row.target_is == "ratio" else _value(row.target, row)
    if row.target is not None and row.target_is == "most":
        target = f"at most {target}"
    note = "; ".join(filter(None, (f"beside {row.against}" if row.against else "", row.note)))
    return (
        part.name,
        row.case,
        "" if row.peer is None else _value(row.peer, row),
        _value(row.ours, row),
        "" if row.ratio is None else f"{number(row.ratio)}x",
        "" if row.low is None or row.high is None else f"{number(row.low)} to {number(row.high)}",
        target,
        met,
        note,
    )


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _value(value: float, row: Row) -> str:
    return f"{number(value)} {row.unit}"


def rich_table(measured: Measured, title: str) -> Table:
    """Return the table for a terminal; what a part measures stands in its first row's note."""
    from rich.table import Table

    table = Table(title=title)
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in _RIGHT else "left")
    for part, rows in measured:
        for place, row in enumerate(rows, start=1):
            texts = [text.replace("**", "").replace("[", "\\[") for text in cells(part, row)]
            table.add_row(*texts, end_section=place == len(rows))
    return table


def markdown_table(measured: Measured) -> str:
    """Return the table in Markdown, and below it what each part measures beside what."""
    lines = [_line(HEADINGS), _line(["--:" if heading in _RIGHT else "---" for heading in HEADINGS])]
    lines += [_line(cells(part, row)) for part, rows in measured for row in rows]
    about = [f"- {part.name}: {part.what}; beside {part.peer}" for part, _ in measured]
    return "\n".join([*lines, "", *about])


def curve_table(curve: Curve, lines: Sequence[Line]) -> str:
    """Return a curve's values in Markdown: a row for each x, a column for each line."""
    xs = sorted({x for line in lines for x in line.xs})
    values = [dict(zip(line.xs, line.ys, strict=True)) for line in lines]
    rows = [_line([f"{x:,.10g}", *("" if x not in one else number(one[x]) for one in values)]) for x in xs]
    head = [_line([curve.x, *(line.label for line in lines)]), _line(["--:"] * (1 + len(lines)))]
    return "\n".join([f"**{curve.what}**, {curve.y}:", "", *head, *rows])


def rich_curve(curve: Curve, lines: Sequence[Line]) -> Table:
    """Return a curve's values for a terminal."""
    from rich.table import Table

    table = Table(title=f"{curve.what}, {curve.y}")
    for label in (curve.x, *(line.label for line in lines)):
        table.add_column(label, justify="right")
    values = [dict(zip(line.xs, line.ys, strict=True)) for line in lines]
    for x in sorted({x for line in lines for x in line.xs}):
        table.add_row(f"{x:,.10g}", *("" if x not in one else number(one[x]) for one in values))
    return table


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
