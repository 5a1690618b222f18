"""Pictures of results: precision-recall curves, confusion matrix, AP of each class, and how a training went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effdense import plots
from effdense.plots import ACCENT, INK, PALE, clean, draw_confusion, line_color, new_figure, say, shown
from effdense.tasks.detection.metrics.coco_metrics import CocoResult
from effdense.tasks.detection.metrics.confusion import ConfusionMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMED = 12
"""With more classes than this a legend would be longer than the picture: only the ends of the ranking are named."""


def plot_precision_recall(result: CocoResult) -> Figure:
    """Draw precision over recall at IoU 0.5 and as the mean over IoU 0.50:0.95, for each class and their mean."""
    known = np.flatnonzero(np.isfinite(result.ap))
    ranked = known[np.argsort(-result.ap[known], kind="stable")].tolist()
    all_named = len(ranked) <= MOST_NAMED
    named = set(ranked if all_named else [*ranked[:4], *ranked[-4:]])
    figure = new_figure(11.0, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, curves, title in (
        (panels[0], result.precision50, "IoU 0.50"),
        (panels[1], result.precision_mean, "mean over IoU 0.50:0.95"),
    ):
        for row in ranked:
            style: dict[str, Any] = {"color": PALE, "linewidth": 0.8, "zorder": 1}
            if row in named:
                numbers = f"{result.ap50[row]:.3f}  {result.ap[row]:.3f}"
                style = {"color": line_color(row), "linewidth": 1.4, "zorder": 2}
                style["label"] = f"{numbers}  {shown(result.class_names[row])}"
            axes.plot(result.recall_grid, curves[:, row], **style)
        if ranked:
            numbers = f"{result.ap50[known].mean():.3f}  {result.ap[known].mean():.3f}"
            mean = curves[:, known].mean(1)
            axes.plot(
                result.recall_grid, mean, color=INK, linewidth=2.4, label=f"{numbers}  mean of {len(ranked)}", zorder=3
            )
        else:
            say(axes, "no object to find")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", title=title)
        clean(axes)
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
    figure = new_figure(8.0, 1.4 + 0.22 * max(3, len(ranked)))
    axes = figure.subplots()
    places = np.arange(len(ranked))
    axes.barh(places, result.ap[ranked], height=0.72, color=ACCENT, label="AP, IoU 0.50:0.95")
    axes.plot(result.ap50[ranked], places, "o", color=INK, markersize=4, label="AP50", clip_on=False)
    for place, row in zip(places.tolist(), ranked.tolist(), strict=True):
        inside = result.ap[row] > 0.12
        axes.text(
            result.ap[row] + (-0.008 if inside else 0.008), place, f"{result.ap[row]:.3f}", va="center", fontsize=7,
            ha="right" if inside else "left", color="white" if inside else INK,
        )  # fmt: skip
    names = [f"{shown(result.class_names[row])}  ({result.instances[row]})" for row in ranked]
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(max(len(ranked), 1) - 0.4, -0.6), xlabel="average precision")
    if len(ranked):
        mean = float(result.ap[ranked].mean())
        axes.axvline(mean, color=INK, linewidth=1, linestyle="--", label=f"mean AP {mean:.3f}", zorder=0.5)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)
    else:
        say(axes, "no object to find")
    absent = len(result.ap) - len(ranked)
    if absent:
        axes.set_xlabel(f"average precision   ({absent} of {len(result.ap)} classes have no object here)")
    clean(axes)
    return figure


def plot_confusion(confusion: ConfusionMatrix) -> Figure:
    """Draw a confusion matrix: colour is the share of the row, numbers are counts where there is room for them."""
    title = f"score at least {confusion.score_threshold:g}, IoU at least {confusion.iou_threshold:g}"
    names = (*confusion.class_names, "background")
    figure = draw_confusion(confusion.counts, names, predicted="detected", title=title)
    axes = figure.axes[0]
    axes.axhline(len(names) - 1.5, color=INK, linewidth=0.8)
    axes.axvline(len(names) - 1.5, color=INK, linewidth=0.8)
    return figure


def plot_training(metrics_file: Path | str, *, loss_terms: Sequence[str] = ("total", "class", "box")) -> Figure:
    """Draw a run's losses, mAP and learning rate over its epochs.

    Args:
        metrics_file: metrics.jsonl, one JSON object an epoch.
        loss_terms: keys drawn as losses, those that the file has.

    Raises:
        UserError: the file cannot be read, or a line of it is not a JSON object.
    """
    return plots.plot_training(metrics_file, losses=loss_terms, scores={"AP": "mAP", "AP50": "mAP50", "AP75": "mAP75"})
