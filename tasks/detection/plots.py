"""Pictures of results: precision-recall curves, confusion matrix, AP of each class, and how a training went.

Drawn on matplotlib's Figure objects alone; pyplot and its global state are never touched, so that nothing depends on a
display or leaks between calls. matplotlib is imported on first use.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from effdense.drawing import class_color
from effdense.errors import UserError
from effdense.files import write_atomically
from effdense.tasks.detection.metrics.coco_metrics import CocoResult
from effdense.tasks.detection.metrics.confusion import ConfusionMatrix
from effdense.tasks.detection.metrics.files import read_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 12
"""With more classes than this a legend would be longer than the picture: only the ends of the ranking are named."""
MOST_WITH_COUNTS = 25
"""With more classes than this the counts of a confusion matrix would be too small to read."""

_INK, _PALE, _ACCENT = "#222222", "#c8ccd0", "#1f6fb2"


def plot_precision_recall(result: CocoResult) -> Figure:
    """Draw precision over recall at IoU 0.5 and as the mean over IoU 0.50:0.95, for each class and their mean."""
    known = np.flatnonzero(np.isfinite(result.ap))
    ranked = known[np.argsort(-result.ap[known], kind="stable")].tolist()
    all_named = len(ranked) <= MOST_NAMED
    named = set(ranked if all_named else [*ranked[:4], *ranked[-4:]])
    figure = _figure(11.0, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, curves, title in (
        (panels[0], result.precision50, "IoU 0.50"),
        (panels[1], result.precision_mean, "mean over IoU 0.50:0.95"),
    ):
        for row in ranked:
            style: dict[str, Any] = {"color": _PALE, "linewidth": 0.8, "zorder": 1}
            if row in named:
                numbers = f"{result.ap50[row]:.3f}  {result.ap[row]:.3f}"
                style = {"color": _color(row), "linewidth": 1.4, "zorder": 2}
                style["label"] = f"{numbers}  {_shown(result.class_names[row])}"
            axes.plot(result.recall_grid, curves[:, row], **style)
        if ranked:
            numbers = f"{result.ap50[known].mean():.3f}  {result.ap[known].mean():.3f}"
            mean = curves[:, known].mean(1)
            axes.plot(
                result.recall_grid, mean, color=_INK, linewidth=2.4, label=f"{numbers}  mean of {len(ranked)}", zorder=3
            )
        else:
            _say(axes, "no object to find")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", title=title)
        _clean(axes)
    panels[0].set_ylabel("precision")
    if ranked:
        heading = "AP50   AP" if all_named else "AP50   AP   (best and worst four)"
        panels[1].legend(
            title=heading, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, title_fontsize=8,
            frameon=False, alignment="left",
        )  # fmt: skip
    return figure


def plot_class_ap(result: CocoResult) -> Figure:
    """Draw AP (bar) and AP50 (dot) of each class, best first; classes without objects are listed below."""
    known = np.flatnonzero(np.isfinite(result.ap))
    ranked = known[np.argsort(-result.ap[known], kind="stable")]
    figure = _figure(8.0, 1.4 + 0.22 * max(3, len(ranked)))
    axes = figure.subplots()
    places = np.arange(len(ranked))
    axes.barh(places, result.ap[ranked], height=0.72, color=_ACCENT, label="AP, IoU 0.50:0.95")
    axes.plot(result.ap50[ranked], places, "o", color=_INK, markersize=4, label="AP50", clip_on=False)
    for place, row in zip(places.tolist(), ranked.tolist(), strict=True):
        inside = result.ap[row] > 0.12
        axes.text(
            result.ap[row] + (-0.008 if inside else 0.008), place, f"{result.ap[row]:.3f}", va="center", fontsize=7,
            ha="right" if inside else "left", color="white" if inside else _INK,
        )  # fmt: skip
    names = [f"{_shown(result.class_names[row])}  ({result.instances[row]})" for row in ranked]
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(max(len(ranked), 1) - 0.4, -0.6), xlabel="average precision")
    if len(ranked):
        mean = float(result.ap[ranked].mean())
        axes.axvline(mean, color=_INK, linewidth=1, linestyle="--", label=f"mean AP {mean:.3f}", zorder=0.5)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)
    else:
        _say(axes, "no object to find")
    absent = len(result.ap) - len(ranked)
    if absent:
        axes.set_xlabel(f"average precision   ({absent} of {len(result.ap)} classes have no object here)")
    _clean(axes)
    return figure


def plot_confusion(confusion: ConfusionMatrix) -> Figure:
    """Draw a confusion matrix: colour is the share of the row, numbers are counts where there is room for them."""
    counts = confusion.counts
    names = [_shown(name) for name in (*confusion.class_names, "background")]
    size, longest = len(names), max(len(name) for name in names)
    side = float(np.clip(0.55 * size, 4.0, 15.0))
    figure = _figure(side + 0.08 * min(longest, 30) + 1.2, side + 0.08 * min(longest, 30))
    axes = figure.subplots()
    totals = counts.sum(1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    font = float(np.clip(72 * side / size * 0.55, 4.5, 10.0))
    axes.set_xticks(range(size), names, rotation=90 if size > 6 or longest > 10 else 0, fontsize=font)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.set(xlabel="detected", ylabel="ground truth")
    axes.set_title(
        f"score at least {confusion.score_threshold:g}, IoU at least {confusion.iou_threshold:g}", fontsize=10
    )
    if size <= MOST_WITH_COUNTS + 1:
        for row, column in np.argwhere(counts > 0).tolist():
            text = f"{counts[row, column]}"
            color = "white" if share[row, column] > 0.55 else _INK
            small = font * min(1.0, 5 / max(len(text), 4))
            axes.text(column, row, text, ha="center", va="center", fontsize=small, color=color)
    axes.axhline(size - 1.5, color=_INK, linewidth=0.8)
    axes.axvline(size - 1.5, color=_INK, linewidth=0.8)
    axes.tick_params(length=0)
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the row", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def plot_training(metrics_file: Path | str, *, loss_terms: Sequence[str] = ("total", "class", "box")) -> Figure:
    """Draw a run's losses, mAP and learning rate over its epochs.

    Args:
        metrics_file: metrics.jsonl, one JSON object an epoch.
        loss_terms: keys drawn as losses, those that the file has.

    Raises:
        UserError: the file cannot be read, or a line of it is not a JSON object.
    """
    records = _read_lines(Path(metrics_file))
    figure = _figure(12.0, 3.8)
    panels = figure.subplots(1, 3)
    colors = dict(zip(loss_terms, [_INK, _ACCENT, "#d1602b", "#4a9a4a", "#8a5cb5"], strict=False))
    _plot_keys(panels[0], records, {term: (term, colors.get(term, _PALE)) for term in loss_terms})
    panels[0].set_title("loss")
    values = np.concatenate([_series(records, term)[1] for term in loss_terms]) if loss_terms else np.zeros(0)
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        panels[0].set_yscale("log")
    _plot_keys(panels[1], records, {"AP": ("mAP", _INK), "AP50": ("mAP50", _ACCENT), "AP75": ("mAP75", "#d1602b")})
    panels[1].set(title="validation", ylim=(0, 1))
    _mark_best(panels[1], records)
    _plot_keys(panels[2], records, {"lr": ("learning rate", _INK)})
    panels[2].set_title("learning rate")
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
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


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _shown(name: str) -> str:
    """Return a class name as a label: not too long, and without starting a formula."""
    short = name if len(name) <= 30 else f"{name[:29]}…"
    return short.replace("$", r"\$")


def _color(label: int) -> tuple[float, float, float]:
    red, green, blue = class_color(label)
    return 0.88 * red / 255, 0.88 * green / 255, 0.88 * blue / 255  # darker: lines stand on white here


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e8ea", linewidth=0.6)
    axes.set_axisbelow(True)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#888888")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(read_bytes(path).decode(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, one for each epoch")
        records.append(record)
    return records


def _series(records: list[dict[str, Any]], key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return epochs and values where a record has the key; epochs count from 1 where a record names none."""
    pairs = [
        (float(record.get("epoch", number)), float(record[key]))
        for number, record in enumerate(records, start=1)
        if isinstance(record.get(key), (int, float))
    ]
    array = np.array(pairs, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _plot_keys(axes: Axes, records: list[dict[str, Any]], keys: dict[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = 0
    for key, (label, color) in keys.items():
        epochs, values = _series(records, key)
        if len(epochs):
            marker = "o" if len(epochs) <= 30 else ""
            axes.plot(epochs, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=label)
            drawn += 1
    if drawn > 1:
        axes.legend(fontsize=8, frameon=False)
    if not drawn:
        _say(axes, "nothing recorded")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _clean(axes)


def _mark_best(axes: Axes, records: list[dict[str, Any]]) -> None:
    epochs, values = _series(records, "AP")
    if len(values):
        best = int(values.argmax())
        axes.axvline(epochs[best], color=_PALE, linewidth=1, zorder=0.5)
        axes.set_title(f"validation: best mAP {values[best]:.3f} in epoch {epochs[best]:g}")
