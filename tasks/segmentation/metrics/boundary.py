"""Boundary IoU: how well outlines agree, whatever the size of what they enclose.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021, arXiv 2103.16562. The
paper compares objects one by one; here a class takes the place of an object, and intersections and unions are added up
over the data set before they are divided, as for mIoU: an image in which a class is a speck weighs as a speck.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from effdense.json_files import jsonable
from effdense.tasks.segmentation.metrics.labels import LabelMap, check_alike, check_labels, check_num_classes, on_host
from effdense.tasks.segmentation.metrics.processes import summed
from effdense.tasks.segmentation.metrics.scores import Float64, mean_of_known
from effdense.types import IGNORE_INDEX, Bool, Int64, UInt8


class BoundaryIou:
    """IoU of the bands along the inside of the outlines of each class, in the truth and in the prediction.

    The band of a class holds its pixels that lie within d pixels of another class or of the frame of the image: what an
    erosion with a 3x3 square takes away in d iterations. d is 2 % of the image's diagonal, at least one pixel.

    Pixels whose truth is 255 belong to no class in either map: they are in no band, and where a class meets them is an
    outline of both maps. So a prediction that is right wherever the truth counts scores 1, whatever it says elsewhere.

    Attributes:
        num_classes: K.
        dilation_ratio: d over the diagonal.
        intersections: (K,), pixels in both bands of a class, over all images.
        unions: (K,), pixels in either.
    """

    def __init__(self, num_classes: int, *, dilation_ratio: float = 0.02) -> None:
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"expected a dilation_ratio between 0 and 1, got {dilation_ratio}")
        self.num_classes = check_num_classes(num_classes)
        self.dilation_ratio = dilation_ratio
        self.intersections: Int64 = np.zeros(num_classes, np.int64)
        self.unions: Int64 = np.zeros(num_classes, np.int64)

    @property
    def iou(self) -> Float64:
        """(K,), NaN for a class that is neither in the truth nor predicted."""
        iou = np.full(self.num_classes, np.nan)
        np.divide(self.intersections, self.unions, out=iou, where=self.unions > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that occur."""
        return mean_of_known(self.iou)

    def update(self, truth: LabelMap, predicted: LabelMap, *, where: str = "") -> None:
        """Add one image, or a batch of images of one size.

        Args:
            truth: uint8, (..., H, W); 255 is ignored.
            predicted: uint8, the same shape.
            where: what the maps are of, such as a file name; errors begin with it.

        Raises:
            UserError: the shapes differ, or a label is no class; nothing of the pair is counted then.
            ValueError: the labels are not uint8, or no image.
        """
        check_alike(truth, predicted, where)
        if truth.ndim < 2:
            raise ValueError(f"expected label maps (..., H, W), got {tuple(truth.shape)}")
        truths, predictions = on_host(truth), on_host(predicted)
        counted = check_labels(truths, predictions, self.num_classes, where)
        if not truths.size:
            return
        predictions = np.where(counted, predictions, np.uint8(IGNORE_INDEX))
        size_hw = truths.shape[-2:]
        for one_truth, one_prediction in zip(
            truths.reshape(-1, *size_hw), predictions.reshape(-1, *size_hw), strict=True
        ):
            self._add(one_truth, one_prediction)

    def merge(self, other: BoundaryIou) -> None:
        """Add what another one has counted.

        Raises:
            ValueError: it is of another number of classes or another width of the band.
        """
        if (other.num_classes, other.dilation_ratio) != (self.num_classes, self.dilation_ratio):
            raise ValueError(
                f"{other.num_classes} classes and ratio {other.dilation_ratio:g} do not merge with "
                f"{self.num_classes} classes and ratio {self.dilation_ratio:g}"
            )
        self.intersections += other.intersections
        self.unions += other.unions

    def all_reduce(self) -> None:
        """Add up what all processes of a distributed run have counted; each then holds the whole. Call it once."""
        self.intersections, self.unions = summed(np.stack((self.intersections, self.unions)))

    def jsonable(self) -> dict[str, Any]:
        """Return plain values for JSON, classes in their order: NaN is None."""
        return {
            "dilation_ratio": self.dilation_ratio,
            "mIoU": jsonable(self.miou),
            "per_class": jsonable(self.iou),
        }

    def _add(self, truth: UInt8, predicted: UInt8) -> None:
        width = band_width(truth.shape, self.dilation_ratio)
        true_band, predicted_band = outline_band(truth, width), outline_band(predicted, width)
        both = self._by_class(truth[true_band & predicted_band & (truth == predicted)])
        self.intersections += both
        self.unions += self._by_class(truth[true_band]) + self._by_class(predicted[predicted_band]) - both

    def _by_class(self, labels: UInt8) -> Int64:
        """Return how many of the labels are of each class, (K,)."""
        return np.bincount(labels, minlength=IGNORE_INDEX + 1)[: self.num_classes].astype(np.int64)


def band_width(size_hw: tuple[int, ...], dilation_ratio: float) -> int:
    """Return d, in pixels, for an image of a size."""
    return max(1, round(dilation_ratio * math.hypot(*size_hw)))


def outline_band(labels: UInt8, width: int) -> Bool:
    """Return the bands of all classes at once, (H, W): a pixel is in its class's band where labels near it differ.

    For the class of a pixel, the erosion keeps it where the square of 2 * width + 1 pixels around it holds that class
    alone; it does where the least label of the square is also the greatest. So two passes serve any number of classes.

    Args:
        labels: (H, W), 255 for no class; its pixels may or may not be in the result.
        width: d, in pixels.
    """
    framed = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(IGNORE_INDEX,))
    square = np.ones((3, 3), np.uint8)
    greatest, least = (step(framed, square, iterations=width)[1:-1, 1:-1] for step in (cv2.dilate, cv2.erode))
    return np.asarray(greatest != least, np.bool_)
