"""Pictures of results: scores of each class, confusion matrix, calibration, and how a training went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from effdense import plots
from effdense.plots import ACCENT, INK, PALE, clean, draw_confusion, new_figure, say, shown
from effdense.tasks.segmentation.metrics.boundary import BoundaryIou
from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.tasks.segmentation.metrics.scores import SegmentationScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = ("total", "ce", "dice", "lovasz", "focal", "tversky", "auxiliary")
"""What a run may record of its loss."""


def plot_class_iou(scores: SegmentationScores, boundary: BoundaryIou | None = None) -> Figure:
    """Draw IoU (bar) and Boundary IoU (dot) of each class, best first; how many classes are absent is said below."""
    known = np.flatnonzero(np.isfinite(scores.iou))
    ranked = known[np.argsort(-scores.iou[known], kind="stable")]
    figure = new_figure(8.0, 1.4 + 0.22 * max(3, len(ranked)))
    axes = figure.subplots()
    places = np.arange(len(ranked))
    axes.barh(places, scores.iou[ranked], height=0.72, color=ACCENT, label="IoU")
    if boundary is not None and len(ranked):
        axes.plot(boundary.iou[ranked], places, "o", color=INK, markersize=4, label="Boundary IoU", clip_on=False)
    for place, row in zip(places.tolist(), ranked.tolist(), strict=True):
        inside = scores.iou[row] > 0.08  # at the foot of the bar: the dot is mostly near its end
        left = 0.008 if inside else scores.iou[row] + 0.008
        color = "white" if inside else INK
        axes.text(left, place, f"{scores.iou[row]:.3f}", va="center", fontsize=7, color=color)
    share = scores.true_pixels / max(scores.num_pixels, 1)
    names = [f"{shown(scores.class_names[row])}  ({_percent(share[row])})" for row in ranked.tolist()]
    axes.set_yticks(places, names, fontsize=8)
    what = "intersection over union   (beside a name: its share of the pixels)"
    axes.set(xlim=(0, 1), ylim=(max(len(ranked), 1) - 0.4, -0.6), xlabel=what)
    if len(ranked):
        axes.axvline(scores.miou, color=INK, linewidth=1, linestyle="--", label=f"mIoU {scores.miou:.3f}", zorder=0.5)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)
    else:
        say(axes, "no pixel to compare")
    absent = int(scores.absent.sum())
    if absent and len(ranked):
        axes.set_xlabel(f"{what}\n{absent} of {len(scores.iou)} classes occur neither in the truth nor predicted")
    clean(axes)
    return figure


def plot_confusion(scores: SegmentationScores) -> Figure:
    """Draw the confusion matrix of the pixels: colour and numbers are shares of the row, of the class's pixels."""
    title = f"{scores.num_pixels:,} pixels, pixel accuracy {scores.pixel_accuracy:.3f}"
    if not scores.num_pixels:
        title = "no pixel to compare"
    return draw_confusion(scores.matrix, scores.class_names, predicted="predicted", title=title, percent=True)


def plot_reliability(calibration: CalibrationError) -> Figure:
    """Draw accuracy over confidence, and how the pixels are spread over the confidences."""
    bins = calibration.reliability
    figure = new_figure(5.0, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / calibration.num_bins
    centers = (bins.edges[:-1] + bins.edges[1:]) / 2
    upper.bar(centers, np.nan_to_num(bins.accuracy), width=0.92 * width, color=ACCENT, label="accuracy")
    known = bins.pixels > 0
    upper.plot(bins.confidence[known], bins.accuracy[known], "o", color=INK, markersize=4, label="at mean confidence")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of the pixels that are right")
    lower.bar(centers, bins.pixels / max(calibration.num_pixels, 1), width=0.92 * width, color=PALE)
    lower.set(xlabel="probability of the predicted class", ylabel="share of pixels", ylim=(0, 1))
    if calibration.num_pixels:
        upper.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle="--", label="calibrated")
        upper.set_title(
            f"calibration error: expected {calibration.expected:.4f}, greatest {calibration.greatest:.4f}", fontsize=10
        )
        upper.legend(loc="upper left", fontsize=8, frameon=False)
    else:
        say(upper, "no pixel to compare")
    clean(upper)
    clean(lower)
    return figure


def plot_training(metrics_file: Path | str, *, loss_terms: Sequence[str] = LOSSES) -> Figure:
    """Draw a run's losses, scores and learning rate over its epochs.

    Args:
        metrics_file: metrics.jsonl, one JSON object an epoch.
        loss_terms: keys drawn as losses, those that the file has.

    Raises:
        UserError: the file cannot be read, or a line of it is not a JSON object.
    """
    scores = {"mIoU": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
    return plots.plot_training(metrics_file, losses=loss_terms, scores=scores)


def _percent(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
