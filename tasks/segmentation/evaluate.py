"""Score a segmenter on labelled images. The labels come from `Segmenter.stream`, the very code of prediction."""

from __future__ import annotations

import time
from dataclasses import dataclass

from effdense.datasets.images import read_rgb
from effdense.datasets.index import stated_size
from effdense.datasets.loading import eval_loader
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.tasks.segmentation.metrics.boundary import BoundaryIou
from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.tasks.segmentation.metrics.processes import place
from effdense.tasks.segmentation.metrics.scores import SegmentationScores
from effdense.tasks.segmentation.opening import AnySegmenter
from effdense.types import Sample, Segmentation


@dataclass(frozen=True)
class Evaluation:
    """Scores of a segmenter, in pixels of the original images.

    Attributes:
        scores: what the confusion matrix says.
        boundary: Boundary IoU, where it was asked for.
        calibration: calibration error, where it was asked for.
        images_per_second: from image file to label map and its comparison.
    """

    scores: SegmentationScores
    boundary: BoundaryIou | None
    calibration: CalibrationError | None
    images_per_second: float

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, in 0..1; 0 where nothing is labelled."""
        return self.scores.miou if self.scores.miou == self.scores.miou else 0.0


class Tally:
    """Label maps compared with the masks of a data set, image after image; what is kept does not grow with them."""

    def __init__(self, index: SegmentationIndex, *, boundary: bool = False, calibration: bool = False) -> None:
        """Start with no label map.

        Args:
            index: images with masks.
            boundary: Boundary IoU too.
            calibration: calibration error too.
        """
        self.index = index
        self.confusion = ConfusionMatrix(len(index.class_names))
        self.boundary = BoundaryIou(len(index.class_names)) if boundary else None
        self.calibration = CalibrationError() if calibration else None

    def add(self, position: int, found: Segmentation) -> None:
        """Compare the label map of the image at a position with its mask.

        Args:
            position: in the data set.
            found: in the image's own size; with the confidence, where calibration error is asked for.

        Raises:
            UserError: the mask cannot be read, or does not fit.
        """
        truth = self.index.masks.read(position, (found.mask.shape[0], found.mask.shape[1]))
        where = self.index.masks.where(position)
        self.confusion.update(truth, found.mask, where=where)
        if self.boundary is not None:
            self.boundary.update(truth, found.mask, where=where)
        if self.calibration is not None:
            assert found.confidence is not None
            self.calibration.update(truth, found.mask, found.confidence)

    def result(self, images_per_second: float) -> Evaluation:
        """Return the scores over all images, those that other processes have compared included.

        Args:
            images_per_second: from image file to label map and its comparison.
        """
        for part in (self.confusion, self.boundary, self.calibration):
            if part is not None:
                part.all_reduce()
        scores = SegmentationScores.of(self.confusion, self.index.class_names)
        return Evaluation(scores, self.boundary, self.calibration, images_per_second)


def evaluate(
    segmenter: AnySegmenter,
    index: SegmentationIndex,
    *,
    batch_size: int = 8,
    workers: int = 0,
    boundary: bool = False,
    calibration: bool = False,
) -> Evaluation:
    """Label every image of a data set and compare with its masks.

    In a distributed run each process takes every n-th image, and all return the scores of the whole; all have to call
    this, with the same arguments.

    Args:
        segmenter: its classes must be the data set's, in the same order (``match_segmentation_classes`` sees to that).
        index: images with masks.
        batch_size: images, or windows, in a forward pass.
        workers: processes that load images.
        boundary: Boundary IoU too.
        calibration: calibration error too; there is none of a model that gives no probabilities.

    Raises:
        UserError: an image or a mask cannot be read, or a forward pass does not fit into memory.
    """
    if segmenter.class_names != index.class_names:
        raise ValueError("the data set is not in the order of the model's classes: see match_segmentation_classes")
    calibration = calibration and segmenter.gives_probabilities
    tally = Tally(index, boundary=boundary, calibration=calibration)
    started = time.perf_counter()
    rank, world_size = place()
    positions = iter(range(rank, len(index), world_size))
    loader = eval_loader(
        ImagesAlone(index),
        segmenter.transform,
        batch_size=segmenter.images_per_batch(batch_size),
        workers=workers,
        device=segmenter.device,
        rank=rank,
        world_size=world_size,
    )
    for batch in loader:
        for found in segmenter.stream(batch, batch_size=batch_size, confidence=calibration):
            tally.add(next(positions), found)
    return tally.result(len(index) / max(time.perf_counter() - started, 1e-9))


@dataclass(frozen=True)
class ImagesAlone:
    """The images of an index without their masks, which are compared in their own size and need no transform."""

    index: SegmentationIndex

    def __len__(self) -> int:
        return len(self.index)

    def sample(self, position: int) -> Sample:
        """Read an image; the mask only where it must say whether the image is turned."""
        stated = stated_size(self.index.sizes_hw, position)
        if stated is None:
            return self.index.sample(position).replace(mask=None)
        image = read_rgb(self.index.path(position), stated)
        image_id = int(self.index.image_ids[position])
        return Sample(image=image, image_id=image_id, original_size_hw=stated, resized_size_hw=stated)
