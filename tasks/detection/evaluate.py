"""Score a detector on a labelled data set. The boxes come from `Detector.detect`, the very code of prediction."""

from __future__ import annotations

import time
from dataclasses import dataclass

from effdense.datasets.index import DetectionIndex
from effdense.datasets.loading import eval_loader
from effdense.tasks.detection.metrics.coco_metrics import CocoResult, coco_metrics
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.opening import Detecting
from effdense.types import Detections


@dataclass(frozen=True)
class Evaluation:
    """Scores, and what they were computed from.

    Attributes:
        coco: COCO's numbers.
        truth: the labelled boxes.
        detections: what the detector found, in the data set's own ids.
        images_per_second: from image file to detections.
    """

    coco: CocoResult
    truth: GroundTruthTable
    detections: DetectionTable
    images_per_second: float

    @property
    def map(self) -> float:
        """COCO's mAP, IoU 0.50 to 0.95, in 0..1; 0 where there is nothing to find."""
        return max(0.0, self.coco.metrics["AP"]) if self.coco.metrics["AP"] == self.coco.metrics["AP"] else 0.0


class Tally:
    """What was detected in the images of a data set, kept until all of it can be ranked and scored."""

    def __init__(self, index: DetectionIndex) -> None:
        """Start with no detections.

        Args:
            index: a labelled data set.

        Raises:
            UserError: an image whose annotation states no size cannot be read.
        """
        self.index = index
        self.truth = GroundTruthTable.from_index(index)
        self.found: dict[int, Detections] = {}

    def add(self, position: int, found: Detections) -> None:
        """Take what was detected in the image at a position."""
        self.found[position] = found

    def result(self, images_per_second: float, *, max_detections: int, evaluator: str) -> Evaluation:
        """Score the detections, once those of every image are there.

        Args:
            images_per_second: from image file to detections.
            max_detections: the most that the detector keeps of an image.
            evaluator: ``hotcoco`` or ``pycocotools``.
        """
        found = [self.found[position] for position in range(len(self.index))]
        table = DetectionTable.from_detections(found, self.index.image_ids.tolist(), self.index.category_ids)
        coco = coco_metrics(self.truth, table, backend=evaluator, max_detections=limits_of(max_detections))
        return Evaluation(coco, self.truth, table, images_per_second)


def evaluate(
    detector: Detecting,
    index: DetectionIndex,
    *,
    batch_size: int = 8,
    workers: int = 0,
    evaluator: str = "hotcoco",
) -> Evaluation:
    """Detect on every image of a data set and score the detections.

    Args:
        detector: its classes must be the data set's, in the same order (``match_classes`` sees to that).
        index: a labelled data set.
        batch_size: images in a forward pass.
        workers: processes that load images.
        evaluator: ``hotcoco`` or ``pycocotools``.

    Raises:
        UserError: an image cannot be read.
    """
    if detector.class_names != index.class_names:
        raise ValueError("the data set is not in the order of the detector's classes: see match_classes")
    tally = Tally(index)
    started = time.perf_counter()
    positions = iter(range(len(index)))
    loader = eval_loader(index, detector.transform, batch_size=batch_size, workers=workers, device=detector.device)
    for batch in loader:
        for found in detector.detect(batch):
            tally.add(next(positions), found)
    speed = len(index) / max(time.perf_counter() - started, 1e-9)
    return tally.result(speed, max_detections=detector.selection.max_detections, evaluator=evaluator)


def limits_of(most: int) -> tuple[int, int, int]:
    """Return COCO's three limits on the detections an image, the last one being the most that a detector keeps.

    Fewer than 100 kept leave COCO's own limits as they are, so that numbers stay comparable.
    """
    return (1, 10, max(most, 100))
