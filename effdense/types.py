"""What flows through effdense: Sample, Batch, Detections, Segmentation, both, and the one legend of shape letters.

Shape letters, used in every shape comment:

    B  images in a batch             H, W    height and width of an image, in pixels
    N  boxes of one image            h, w    height and width of a feature map, in cells
    M  the most boxes in a batch     C       channels of a feature map
    K  classes                       A       anchors of an image, over all levels
    L  pyramid levels                D       detections kept for one image

Coordinates: ``boxes_xyxy`` are absolute pixels, x to the right and y down, the right and bottom edge exclusive
(a box that covers the whole image is 0, 0, W, H). Labels are 0-based and contiguous; dataset ids (COCO's 1..90, VOC's
names) are translated on reading and on writing and are known nowhere in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]

IGNORE_INDEX = 255
"""Mask value that no loss and no metric counts."""


def empty_boxes() -> Float32:
    """No boxes, (0, 4)."""
    return np.zeros((0, 4), np.float32)


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        image: RGB, (H, W, 3).
        boxes_xyxy: (N, 4), in pixels of ``image``.
        labels: (N,), 0-based.
        crowd: (N,), the box covers a group (COCO's iscrowd).
        difficult: (N,), VOC's difficult.
        mask: (H, W) class indices with 255 = ignore, or None where there is no mask.
        has_boxes: whether somebody looked for objects. Where False, that there are no boxes says nothing of the image;
            where True, it says that the image shows no object.
        image_id: the dataset's own id of the image; unique within a dataset.
        original_size_hw: size of the image on disk, in pixels, before any transform.
        resized_size_hw: size of the image content inside ``image`` after a resize and before padding to the bottom
            right; equals the size of ``image`` before any transform.
        labels_size_hw: in whose pixels boxes and mask are where ``image`` was decoded at a smaller size; the first
            resize brings them together. None everywhere else: they are in pixels of ``image``.
    """

    image: UInt8
    boxes_xyxy: Float32 = field(default_factory=empty_boxes)
    labels: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    crowd: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))
    difficult: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))
    mask: UInt8 | None = None
    has_boxes: bool = True
    image_id: int = 0
    original_size_hw: tuple[int, int] = (0, 0)
    resized_size_hw: tuple[int, int] = (0, 0)
    labels_size_hw: tuple[int, int] | None = None

    def replace(self, **changes: Any) -> Sample:
        """Return a copy with the given fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Batch:
    """Samples stacked for the model. Images travel as uint8; boxes are padded, never cut.

    Attributes:
        images: uint8, (B, 3, H, W).
        boxes_xyxy: float32, (B, M, 4), padded with -1; M is the batch's most boxes (may be 0).
        labels: int64, (B, M), padded with -1.
        ignore: bool, (B, M): crowd or difficult, to be left out of the loss; False in the padding.
        masks: uint8, (B, H, W), 255 throughout where an image has no mask; None where no image has one.
        image_ids: the dataset's ids, one per image.
        original_sizes_hw: int64, (B, 2), pixels on disk.
        resized_sizes_hw: int64, (B, 2), pixels of image content inside ``images``; with ``original_sizes_hw`` this
            is the geometry that takes a box or a mask back to the original image.
        with_boxes: bool, (B,): the image's boxes are known, be they none; the others have nothing to say of detection.
        with_masks: bool, (B,): the image has a mask.
    """

    images: torch.Tensor
    boxes_xyxy: torch.Tensor
    labels: torch.Tensor
    ignore: torch.Tensor
    masks: torch.Tensor | None
    image_ids: tuple[int, ...]
    original_sizes_hw: torch.Tensor
    resized_sizes_hw: torch.Tensor
    with_boxes: torch.Tensor
    with_masks: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def rows(self, positions: Sequence[int]) -> Batch:
        """Return the batch of the images at some positions."""
        chosen = self._map(lambda tensor: tensor[list(positions)])
        return replace(chosen, image_ids=tuple(self.image_ids[position] for position in positions))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (the DataLoader's hook)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> Batch:
        return replace(
            self,
            images=function(self.images),
            boxes_xyxy=function(self.boxes_xyxy),
            labels=function(self.labels),
            ignore=function(self.ignore),
            masks=None if self.masks is None else function(self.masks),
            original_sizes_hw=function(self.original_sizes_hw),
            resized_sizes_hw=function(self.resized_sizes_hw),
            with_boxes=function(self.with_boxes),
            with_masks=function(self.with_masks),
        )


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, best first, in pixels of the original image.

    Attributes:
        boxes_xyxy: float32, (D, 4).
        scores: float32, (D,), in 0..1.
        labels: int64, (D,), indices into ``class_names``.
        class_names: the model's classes, in order.
    """

    boxes_xyxy: Float32
    scores: Float32
    labels: Int64
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Return the detections that score at least ``score``."""
        keep = self.scores >= score
        return replace(self, boxes_xyxy=self.boxes_xyxy[keep], scores=self.scores[keep], labels=self.labels[keep])


@dataclass(frozen=True)
class Segmentation:
    """What a segmenter says of every pixel of one image, in pixels of the original image.

    Attributes:
        mask: uint8, (H, W), the most probable class of each pixel: an index into ``class_names``, never 255.
        probabilities: float32, (K, H, W), over the classes they add up to 1; None where they were not asked for.
        class_names: the model's classes, in order.
        confidence: float32, (H, W), the probability of each pixel's class; None where it was not asked for.
    """

    mask: UInt8
    probabilities: Float32 | None = None
    class_names: tuple[str, ...] = ()
    confidence: Float32 | None = None


@dataclass(frozen=True)
class MultitaskResult:
    """What a multitask model says of one image, from one forward pass, in pixels of the original image.

    Attributes:
        detections: its objects.
        segmentation: its pixels.
    """

    detections: Detections
    segmentation: Segmentation
