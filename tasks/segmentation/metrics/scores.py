"""What a confusion matrix says: IoU, Dice, accuracy and precision by class, and their means.

Definitions: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 5 (pixel and mean
accuracy, mean and frequency-weighted IoU); all are of the whole data set's pixels, not means over images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.json_files import jsonable
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.types import Bool, Int64

Float64 = npt.NDArray[np.float64]
_MOST_LISTED = 12


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """Scores of a segmentation, each in 0..1. NaN stands for "there is nothing to measure".

    A class that is neither in the truth nor predicted has no score and is left out of every mean; `notes` names it. A
    class that is predicted but not in the truth has IoU and Dice 0, which count in their means, and no accuracy.

    Attributes:
        matrix: (K, K) pixels, row = truth, column = prediction.
        class_names: (K,).
    """

    matrix: Int64
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.matrix.shape != (len(self.class_names),) * 2:
            raise ValueError(f"{len(self.class_names)} class names for a confusion matrix of {self.matrix.shape}")

    @classmethod
    def of(cls, confusion: ConfusionMatrix, class_names: Sequence[str]) -> SegmentationScores:
        """Return the scores of what has been counted so far."""
        return cls(confusion.matrix.copy(), tuple(class_names))

    @cached_property
    def true_pixels(self) -> Int64:
        """(K,), pixels of the class in the truth."""
        return np.asarray(self.matrix.sum(1), np.int64)

    @cached_property
    def predicted_pixels(self) -> Int64:
        """(K,), pixels that were predicted to be the class."""
        return np.asarray(self.matrix.sum(0), np.int64)

    @cached_property
    def correct_pixels(self) -> Int64:
        """(K,), pixels that are both."""
        return np.asarray(np.diagonal(self.matrix).copy(), np.int64)

    @cached_property
    def num_pixels(self) -> int:
        """Pixels that count."""
        return int(self.matrix.sum())

    @cached_property
    def iou(self) -> Float64:
        """(K,), intersection over union."""
        return _ratio(self.correct_pixels, self.true_pixels + self.predicted_pixels - self.correct_pixels)

    @cached_property
    def dice(self) -> Float64:
        """(K,), twice the intersection over the sum of both: F1 of the pixels."""
        return _ratio(2 * self.correct_pixels, self.true_pixels + self.predicted_pixels)

    @cached_property
    def accuracy(self) -> Float64:
        """(K,), share of the class's pixels that were found: recall."""
        return _ratio(self.correct_pixels, self.true_pixels)

    @cached_property
    def precision(self) -> Float64:
        """(K,), share of the pixels predicted to be the class that are."""
        return _ratio(self.correct_pixels, self.predicted_pixels)

    @cached_property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur."""
        return mean_of_known(self.iou)

    @cached_property
    def mean_dice(self) -> float:
        """Mean of `dice` over the classes that occur."""
        return mean_of_known(self.dice)

    @cached_property
    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes in the truth."""
        return mean_of_known(self.accuracy)

    @cached_property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that have the right class."""
        return float(_ratio(self.correct_pixels.sum(), np.int64(self.num_pixels)))

    @cached_property
    def fwiou(self) -> float:
        """Frequency-weighted IoU: the mean of `iou` over the pixels of the truth."""
        if not self.num_pixels:
            return math.nan
        return float((self.true_pixels * np.nan_to_num(self.iou)).sum() / self.num_pixels)

    @cached_property
    def absent(self) -> Bool:
        """(K,), the class is neither in the truth nor predicted."""
        return np.asarray((self.true_pixels == 0) & (self.predicted_pixels == 0), np.bool_)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers must know."""
        if not self.num_pixels:
            return ("No pixel counts: the truth is ignored everywhere, so there is no score.",)
        said = []
        if self.absent.any():
            said.append(
                f"Left out of every mean, being neither in the truth nor predicted: {self._listed(self.absent)}."
            )
        invented = (self.true_pixels == 0) & (self.predicted_pixels > 0)
        if invented.any():
            said.append(
                f"Predicted but not in the truth, hence in the means of IoU and Dice with 0: {self._listed(invented)}."
            )
        return tuple(said)

    def summary(self) -> dict[str, float | None]:
        """Return the means by the names under which runs record them; None where there is nothing to measure."""
        means = {
            "mIoU": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "fwIoU": self.fwiou,
            "mean_Dice": self.mean_dice,
        }
        return {name: None if math.isnan(value) else value for name, value in means.items()}

    def jsonable(self) -> dict[str, Any]:
        """Return everything but the matrix as plain values for JSON: NaN is None."""
        columns = (self.iou, self.dice, self.accuracy, self.precision, self.true_pixels, self.predicted_pixels)
        keys = ("name", "IoU", "Dice", "accuracy", "precision", "true_pixels", "predicted_pixels")
        rows = zip(self.class_names, *(jsonable(column) for column in columns), strict=True)
        return {
            "metrics": self.summary(),
            "per_class": [dict(zip(keys, row, strict=True)) for row in rows],
            "pixels": self.num_pixels,
            "notes": list(self.notes),
        }

    def _listed(self, which: Bool) -> str:
        rows = np.flatnonzero(which).tolist()
        more = f" and {len(rows) - _MOST_LISTED} more" if len(rows) > _MOST_LISTED else ""
        return ", ".join(self.class_names[row] for row in rows[:_MOST_LISTED]) + more


def mean_of_known(values: Float64) -> float:
    """Return the mean of what is not NaN; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _ratio(part: Int64 | np.int64, whole: Int64 | np.int64) -> Float64:
    """Return part / whole, NaN where whole is 0."""
    above = np.asarray(part, np.float64)
    ratio = np.full(above.shape, np.nan)
    np.divide(above, whole, out=ratio, where=np.asarray(whole) > 0)
    return ratio
