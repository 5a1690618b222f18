"""How far a model's confidence can be trusted: expected and greatest calibration error.

Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; Guo et al., "On Calibration
of Modern Neural Networks", ICML 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from effdense.json_files import jsonable
from effdense.tasks.segmentation.metrics.labels import LabelMap, check_alike, on_host
from effdense.tasks.segmentation.metrics.processes import summed
from effdense.tasks.segmentation.metrics.scores import Float64
from effdense.types import IGNORE_INDEX, Int64

if TYPE_CHECKING:
    import torch

Floats: TypeAlias = "npt.NDArray[np.floating[Any]]"


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence and accuracy by bin, from the least confident; NaN in a bin without pixels.

    Attributes:
        edges: (bins + 1,), from 0 to 1.
        pixels: (bins,).
        confidence: (bins,), mean probability of the predicted class.
        accuracy: (bins,), share of the pixels that are right.
    """

    edges: Float64
    pixels: Int64
    confidence: Float64
    accuracy: Float64

    @property
    def gap(self) -> Float64:
        """(bins,), how much the confidence exceeds the accuracy; below 0 where the model is too modest."""
        return self.confidence - self.accuracy


class CalibrationError:
    """Calibration of the probability of the predicted class, over all pixels that count, in bins of equal width.

    A probability on an edge belongs to the bin above it, and 1 to the last bin. (torchmetrics gives pixels of
    probability 1, of which a trained segmenter has many, a bin of their own beyond the last.)

    Attributes:
        num_bins: bins between 0 and 1.
    """

    def __init__(self, num_bins: int = 15) -> None:
        if num_bins < 1:
            raise ValueError(f"expected at least one bin, got {num_bins}")
        self.num_bins = num_bins
        self._pixels: Int64 = np.zeros(num_bins, np.int64)
        self._correct: Int64 = np.zeros(num_bins, np.int64)
        self._confidence: Float64 = np.zeros(num_bins, np.float64)

    def update(self, truth: LabelMap, predicted: LabelMap, confidence: Floats | torch.Tensor) -> None:
        """Add one image or a batch.

        Args:
            truth: uint8, (..., H, W); 255 is ignored.
            predicted: uint8, the same shape.
            confidence: floats in 0..1, the same shape: the probability of the predicted class.

        Raises:
            UserError: the shapes of truth and prediction differ.
            ValueError: the labels are not uint8, or the confidence has another shape or is no probability; nothing of
                the maps is added then.
        """
        check_alike(truth, predicted)
        if tuple(confidence.shape) != tuple(truth.shape):
            raise ValueError(f"expected confidences of {tuple(truth.shape)}, got {tuple(confidence.shape)}")
        counted = on_host(truth) != IGNORE_INDEX
        array = confidence if isinstance(confidence, np.ndarray) else confidence.detach().cpu().double().numpy()
        sure = np.asarray(array[counted], np.float64)
        if not len(sure):
            return
        if not (sure.min() >= 0 and sure.max() <= 1 + 1e-3):  # also NaN; a sum of fp16 probabilities may pass 1
            raise ValueError(f"expected probabilities in 0..1, got {sure.min():g} to {sure.max():g}")
        bins = np.minimum((sure * self.num_bins).astype(np.intp), self.num_bins - 1)
        right = on_host(truth)[counted] == on_host(predicted)[counted]
        self._pixels += np.bincount(bins, minlength=self.num_bins)
        self._correct += np.bincount(bins[right], minlength=self.num_bins)
        self._confidence += np.bincount(bins, weights=sure, minlength=self.num_bins)

    @property
    def num_pixels(self) -> int:
        """Pixels that count."""
        return int(self._pixels.sum())

    @property
    def reliability(self) -> Reliability:
        """Confidence and accuracy by bin, for a reliability diagram."""
        known = self._pixels > 0
        confidence, accuracy = (
            np.divide(total, self._pixels, out=np.full(self.num_bins, np.nan), where=known)
            for total in (self._confidence, self._correct)
        )
        return Reliability(np.linspace(0, 1, self.num_bins + 1), self._pixels.copy(), confidence, accuracy)

    @property
    def expected(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy, weighted by pixels."""
        if not self.num_pixels:
            return math.nan
        return float(np.abs(self._confidence - self._correct).sum() / self.num_pixels)

    @property
    def greatest(self) -> float:
        """Maximum calibration error: the greatest gap of a bin, however few its pixels."""
        return float(np.nanmax(np.abs(self.reliability.gap))) if self.num_pixels else math.nan

    def merge(self, other: CalibrationError) -> None:
        """Add what another one has counted.

        Raises:
            ValueError: it has another number of bins.
        """
        if other.num_bins != self.num_bins:
            raise ValueError(f"{other.num_bins} bins do not merge with {self.num_bins}")
        self._pixels += other._pixels
        self._correct += other._correct
        self._confidence += other._confidence

    def all_reduce(self) -> None:
        """Add up what all processes of a distributed run have counted; each then holds the whole. Call it once."""
        self._pixels, self._correct = summed(np.stack((self._pixels, self._correct)))
        self._confidence = summed(self._confidence)

    def jsonable(self) -> dict[str, Any]:
        """Return plain values for JSON: NaN is None."""
        bins = self.reliability
        return {
            "expected": jsonable(self.expected),
            "greatest": jsonable(self.greatest),
            "pixels": self.num_pixels,
            "bins": {
                "edges": jsonable(bins.edges),
                "pixels": jsonable(bins.pixels),
                "confidence": jsonable(bins.confidence),
                "accuracy": jsonable(bins.accuracy),
            },
        }
