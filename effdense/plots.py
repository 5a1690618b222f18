"""What the pictures of every task share: figures, labels, a confusion matrix as a heat map, and how a training went.

Drawn on matplotlib's Figure objects alone; pyplot and its global state are never touched, so that nothing depends on a
display or leaks between calls. matplotlib is imported on first use.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from effdense.drawing import class_color
from effdense.files import write_atomically
from effdense.json_files import read_json_lines
from effdense.types import Int64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_NUMBERS = 26
"""With more rows than this the numbers in a confusion matrix would be too small to read."""

_TITLE = 32
"""Letters that fit above a panel, beside the word before them."""

INK, PALE, ACCENT = "#222222", "#c8ccd0", "#1f6fb2"
_MORE_COLORS = ("#d1602b", "#4a9a4a", "#8a5cb5", "#b5a13c", "#3aa3a8")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path | str, *, dpi: int = 120) -> None:
    """Write a picture beside and rename it; the suffix says the format, PNG where there is none.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it
        figure.savefig(buffer, format=path.suffix.lstrip(".") or "png", dpi=dpi)
    write_atomically(path, buffer.getvalue(), durable=False)


def shown(name: str) -> str:
    """Return a class name as a label: not too long, and without starting a formula."""
    short = name if len(name) <= 30 else f"{name[:29]}…"
    return short.replace("$", r"\$")


def line_color(label: int) -> tuple[float, float, float]:
    """Return a class's colour, darker than in `effdense.drawing`: lines stand on white here."""
    red, green, blue = class_color(label)
    return 0.88 * red / 255, 0.88 * green / 255, 0.88 * blue / 255


def clean(axes: Axes) -> None:
    """Give a panel a light grid and no frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e8ea", linewidth=0.6)
    axes.set_axisbelow(True)


def say(axes: Axes, text: str) -> None:
    """Write a text in the middle of a panel that has nothing to show."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#888888")


def draw_confusion(counts: Int64, names: Sequence[str], *, predicted: str, title: str, percent: bool = False) -> Figure:
    """Draw a confusion matrix: colour is the share of the row, numbers stand where there is room for them.

    Args:
        counts: (R, R), rows the truth, columns what was predicted.
        names: (R,).
        predicted: what the columns are.
        title: above the picture.
        percent: write shares of the row in percent (below half a percent nothing) in place of the counts.
    """
    names = [shown(name) for name in names]
    size, longest = len(names), min(max(len(name) for name in names), 30)
    side = float(np.clip(0.55 * size, 4.0, 15.0))
    figure = new_figure(side + 0.08 * longest + 1.2, side + 0.08 * longest)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    font = float(np.clip(72 * side / size * 0.55, 4.5, 10.0))
    axes.set_xticks(range(size), names, rotation=90 if size > 6 or longest > 10 else 0, fontsize=font)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.set(xlabel=predicted, ylabel="ground truth")
    axes.set_title(title, fontsize=10)
    with_numbers = size <= MOST_WITH_NUMBERS
    if with_numbers:
        for row, column in np.argwhere(share >= 0.005 if percent else counts > 0).tolist():
            text = f"{100 * share[row, column]:.0f}" if percent else f"{counts[row, column]}"
            color = "white" if share[row, column] > 0.55 else INK
            small = font * min(1.0, 5 / max(len(text), 4))
            axes.text(column, row, text, ha="center", va="center", fontsize=small, color=color)
    axes.tick_params(length=0)
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the row, % in the cells" if percent and with_numbers else "share of the row", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def plot_training(
    metrics_file: Path | str,
    *,
    losses: Sequence[str],
    scores: Mapping[str, str],
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> Figure:
    """Draw a run's losses, scores and learning rate over its epochs.

    Args:
        metrics_file: metrics.jsonl, one JSON object an epoch.
        losses: keys drawn as losses, those that the file has.
        scores: keys drawn as scores in 0..1, and what each is called; the epoch in which the first was best is marked.
        more: further panels, below: titles, and for each the keys that are drawn and what each is called.

    Raises:
        UserError: the file cannot be read, or a line of it is not a JSON object.
    """
    records = read_json_lines(Path(metrics_file))
    rows = 1 + -(-len(more or {}) // 3)
    figure = new_figure(12.0, 3.8 * rows)
    panels = figure.subplots(rows, 3).reshape(-1)
    _draw_positive(panels[0], records, {term: term for term in losses}, "loss")
    _draw_keys(panels[1], records, scores)
    panels[1].set(title="validation", ylim=(0, 1))
    for key, name in list(scores.items())[:1]:
        _mark_best(panels[1], records, key, name)
    _draw_keys(panels[2], records, {"lr": "learning rate"})
    panels[2].set_title("learning rate")
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for panel, (title, names) in zip(panels[3:], (more or {}).items(), strict=False):
        _draw_positive(panel, records, names, title)
    for panel in panels[3 + len(more or {}) :]:
        panel.set_axis_off()
    return figure


def _draw_positive(axes: Axes, records: list[dict[str, Any]], names: Mapping[str, str], title: str) -> None:
    """Draw what may range over orders of magnitude: on a logarithmic axis, where it does."""
    _draw_keys(axes, records, names)
    axes.set_title(title)
    values = np.concatenate([np.zeros(0), *(_series(records, key)[1] for key in names)])
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")


def _series(records: list[dict[str, Any]], key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return epochs and values where a record has the key; epochs count from 1 where a record names none."""
    pairs = [
        (float(record.get("epoch", number)), float(record[key]))
        for number, record in enumerate(records, start=1)
        if isinstance(record.get(key), (int, float))
    ]
    array = np.array(pairs, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _draw_keys(axes: Axes, records: list[dict[str, Any]], names: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = 0
    colors = (INK, ACCENT, *_MORE_COLORS)
    for position, (key, name) in enumerate(names.items()):
        epochs, values = _series(records, key)
        if len(epochs):
            marker = "o" if len(epochs) <= 30 else ""
            color = colors[position] if position < len(colors) else PALE
            axes.plot(epochs, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=name)
            drawn += 1
    if drawn and len(names) > 1:
        axes.legend(fontsize=8, frameon=False)
    if not drawn:
        say(axes, "nothing recorded")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    clean(axes)


def _mark_best(axes: Axes, records: list[dict[str, Any]], key: str, name: str) -> None:
    epochs, values = _series(records, key)
    if len(values):
        best = int(values.argmax())
        axes.axvline(epochs[best], color=PALE, linewidth=1, zorder=0.5)
        said = f"best {name} {values[best]:.3f} in epoch {epochs[best]:g}"
        axes.set_title(f"validation{': ' if len(said) <= _TITLE else chr(10)}{said}")
