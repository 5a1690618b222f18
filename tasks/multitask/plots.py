"""How a training of both tasks went: losses, scores, learning rate, and the balance between the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from effdense import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TASKS = ("detection", "segmentation")
_SCORES = {"score": "mean of mAP and mIoU", "AP": "mAP", "AP50": "mAP50", "mIoU": "mIoU"}
_TERMS = ("class", "box", "ce", "dice", "lovasz", "focal", "tversky", "auxiliary")


def plot_training(metrics_file: Path | str) -> Figure:
    """Draw a run's losses, scores and learning rate over its epochs; below, terms, weights and gradients of the tasks.

    Args:
        metrics_file: metrics.jsonl, one JSON object an epoch.

    Raises:
        UserError: the file cannot be read, or a line of it is not a JSON object.
    """
    by_task = {
        "loss terms": {term: term for term in _TERMS},
        "weight of the task": {f"weight_{task}": task for task in _TASKS},
        "gradient norm on the backbone": {f"gradient_{task}": task for task in _TASKS},
    }
    return plots.plot_training(metrics_file, losses=(*_TASKS, "total"), scores=_SCORES, more=by_task)
