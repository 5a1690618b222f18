"""Score both heads in one pass over labelled images, by what prediction finds in them: `Multitask.run_parts`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import distributed

from effdense.datasets.index import DetectionIndex, stated_size
from effdense.datasets.loading import eval_loader
from effdense.datasets.multitask_index import NONE, MultitaskIndex
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.json_files import jsonable
from effdense.tasks.detection import evaluate as detection
from effdense.tasks.multitask.opening import AnyMultitask
from effdense.tasks.segmentation import evaluate as segmentation
from effdense.tasks.segmentation.metrics.processes import place
from effdense.types import Detections, Sample


@dataclass(frozen=True)
class MultitaskEvaluation:
    """Scores of both heads.

    Attributes:
        detection: of the boxes, over the images that have boxes; None where none has.
        segmentation: of the label maps, over the images that have masks; None where none has.
        images_per_second: from image file to what both heads found, and its comparison with the mask.
    """

    detection: detection.Evaluation | None
    segmentation: segmentation.Evaluation | None
    images_per_second: float

    @property
    def score(self) -> float:
        """Mean of mAP and mIoU, in 0..1, or the one of them that there is: by it the best epoch is chosen."""
        scores = [] if self.detection is None else [self.detection.map]
        if self.segmentation is not None:
            scores.append(self.segmentation.miou)
        return sum(scores) / len(scores)

    def summary(self) -> dict[str, float | None]:
        """Return the numbers by the names under which runs record them; None where there is nothing to measure."""
        found: dict[str, float | None] = {"score": self.score}
        if self.detection is not None:
            found |= jsonable(self.detection.coco.metrics)
        if self.segmentation is not None:
            found |= self.segmentation.scores.summary()
        return found

    def line(self) -> str:
        """Return the main numbers in a few words, as ``mAP 0.4012  mAP50 0.6240  mIoU 0.7003``."""
        parts = []
        if self.detection is not None:
            parts.append(f"mAP {self.detection.map:.4f}  mAP50 {self.detection.coco.metrics['AP50']:.4f}")
        if self.segmentation is not None:
            parts.append(f"mIoU {self.segmentation.miou:.4f}")
        return "  ".join(parts)


def evaluate(
    multitask: AnyMultitask,
    with_boxes: DetectionIndex | None,
    with_masks: SegmentationIndex | None,
    *,
    batch_size: int = 8,
    workers: int = 0,
    evaluator: str = "hotcoco",
    boundary: bool = False,
    calibration: bool = False,
) -> MultitaskEvaluation:
    """Detect objects and label pixels in one pass over all images; score each image by the labels that it has.

    An image of both data sets is read and run once. The numbers are those of the two single evaluations.

    In a distributed run each process takes every n-th image, and all return the scores of the whole; all have to call
    this, with the same arguments.

    Args:
        multitask: its classes must be those of the data sets, in the same order.
        with_boxes: images with boxes, or None.
        with_masks: images with masks, or None.
        batch_size: images in a forward pass.
        workers: processes that load images.
        evaluator: of the boxes: ``hotcoco`` or ``pycocotools``.
        boundary: of the masks: Boundary IoU too.
        calibration: of the masks: calibration error too; there is none of a model that gives no probabilities.

    Raises:
        UserError: an image or a mask cannot be read, or a forward pass does not fit into memory.
    """
    _require_classes(multitask, with_boxes, with_masks)
    boxes = None if with_boxes is None else detection.Tally(with_boxes)
    masks, calibration = None, calibration and multitask.gives_probabilities
    if with_masks is not None:
        masks = segmentation.Tally(with_masks, boundary=boundary, calibration=calibration)
    images = MultitaskIndex.of(with_boxes, with_masks)
    started = time.perf_counter()
    rank, world_size = place()
    rows = images.rows[rank::world_size]
    loader = eval_loader(
        _Images(images),
        multitask.transform,
        batch_size=multitask.images_per_batch(batch_size),
        workers=workers,
        device=multitask.device,
        rank=rank,
        world_size=world_size,
    )
    for batch in loader:
        (box_rows, mask_rows), rows = rows[: len(batch.image_ids)].T, rows[len(batch.image_ids) :]
        boxed, masked = (np.flatnonzero(part != NONE).tolist() for part in (box_rows, mask_rows))
        objects, pixels = multitask.run_parts(batch, boxed, masked, confidence=calibration)
        if boxes is not None:
            for row, detections in zip(box_rows[boxed].tolist(), objects, strict=True):
                boxes.add(row, detections)
        if masks is not None:
            for row, found in zip(mask_rows[masked].tolist(), pixels, strict=True):
                masks.add(row, found)
    speed = len(images) / max(time.perf_counter() - started, 1e-9)
    scored = None
    if boxes is not None:
        boxes.found = _of_all_processes(boxes.found)
        most = multitask.detector.selection.max_detections
        scored = boxes.result(speed, max_detections=most, evaluator=evaluator)
    return MultitaskEvaluation(scored, None if masks is None else masks.result(speed), speed)


def _require_classes(
    multitask: AnyMultitask, with_boxes: DetectionIndex | None, with_masks: SegmentationIndex | None
) -> None:
    if with_boxes is None and with_masks is None:
        raise ValueError("neither boxes nor masks are given to score by")
    if with_boxes is not None and with_boxes.class_names != multitask.class_names:
        raise ValueError("the boxes are not in the order of the model's classes: see match_classes")
    if with_masks is not None and with_masks.class_names != multitask.seg_class_names:
        raise ValueError("the masks are not in the order of the model's classes: see match_segmentation_classes")


def _of_all_processes(found: dict[int, Detections]) -> dict[int, Detections]:
    """Return the detections of all processes; every process has to call it."""
    _, world_size = place()
    if world_size == 1:
        return found
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, found)
    return {position: one for part in parts for position, one in part.items()}


@dataclass(frozen=True)
class _Images:
    """The images of an index without their masks, which are compared in their own size and need no transform."""

    index: MultitaskIndex

    def __len__(self) -> int:
        return len(self.index)

    def sample(self, position: int) -> Sample:
        """Read an image in the size that its labels mean; its mask only where nothing else states that size."""
        box_row, mask_row = self.index.rows[position].tolist()
        boxes, masks = self.index.detection, self.index.segmentation
        if mask_row == NONE:
            assert boxes is not None
            return boxes.sample(box_row)
        assert masks is not None
        if box_row == NONE or stated_size(masks.sizes_hw, mask_row):
            return segmentation.ImagesAlone(masks).sample(mask_row)
        return self.index.sample(position).replace(mask=None)
