"""Everything behind ``eval-multi``: a model of both tasks on labelled images, scored and written down."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effdense.datasets.class_names import classes_explained
from effdense.datasets.data_sources import parse_source
from effdense.datasets.index import DetectionIndex
from effdense.datasets.multitask_opening import open_multitask
from effdense.datasets.roots import ready_root
from effdense.datasets.sampling import spread
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.files import require_writable
from effdense.tasks.detection import score as detection
from effdense.tasks.multitask.evaluate import MultitaskEvaluation, evaluate
from effdense.tasks.multitask.opening import AnyMultitask, open_multitask_model
from effdense.tasks.multitask.score_config import ScoreConfig
from effdense.tasks.segmentation import score as segmentation

log = logging.getLogger(__name__)

DETECTION, SEGMENTATION = "detection", "segmentation"


@dataclass(frozen=True)
class Scores:
    """What an evaluation yields.

    Attributes:
        detection: of the boxes, or None where none are given.
        segmentation: of the masks, or None where none are given.
    """

    detection: detection.Scores | None
    segmentation: segmentation.Scores | None

    @property
    def files(self) -> list[Path]:
        """What was written."""
        return [path for one in (self.detection, self.segmentation) if one is not None for path in one.files]


def score(config: ScoreConfig) -> Scores:
    """Run a model once over a split, and score what it detects and how it labels pixels.

    Raises:
        UserError: anything about files, classes or settings that the user can mend.
    """
    if config.out is not None:
        require_writable(config.out)
    multitask = open_multitask_model(config.model, device=config.device, runtime=config.runtime, threads=config.threads)
    changes = {
        name: getattr(config, name)
        for name in ("score_threshold", "nms", "nms_iou", "max_detections")
        if getattr(config, name) is not None
    }
    multitask = multitask.with_selection(**changes)
    if config.image_size is not None:
        multitask = multitask.with_image_size(config.image_size)
    with_boxes, with_masks = open_split(config, multitask)
    evaluation = evaluate(
        multitask,
        with_boxes,
        with_masks,
        batch_size=config.batch_size,
        workers=config.workers,
        evaluator=config.evaluator,
        boundary=config.boundary,
        calibration=config.calibration,
    )
    log.info("%.1f images a second from file to both results", evaluation.images_per_second)
    return report(config, multitask, evaluation, with_boxes, with_masks)


def open_split(
    config: ScoreConfig, multitask: AnyMultitask, *, sample: int | None = None
) -> tuple[DetectionIndex | None, SegmentationIndex | None]:
    """Open the split to score on, examined, with the classes of the model.

    Args:
        config: what to open.
        multitask: whose classes the split gets.
        sample: take no more images of either label than that, spread evenly.
    """
    root = config.data_root
    if config.annotations is None and not config.sources_named:
        root = ready_root(config.dataset, root, "multitask", can_download=False)
    with_boxes, with_masks = open_multitask(
        config.dataset,
        root,
        config.split,
        det_data=None if config.det_data is None else parse_source(config.det_data, DETECTION),
        seg_data=None if config.seg_data is None else parse_source(config.seg_data, SEGMENTATION),
        labels=config.labels,
        classes=config.classes,
        binary=config.binary_masks,
        annotations=config.annotations,
        images=config.images,
    )
    if sample is not None and with_boxes is not None:
        with_boxes = with_boxes.select(spread(len(with_boxes), sample))
    if sample is not None and with_masks is not None:
        with_masks = with_masks.select(spread(len(with_masks), sample))
    model, skip_broken = config.model, config.skip_broken
    demo = config.dataset == "demo" and config.annotations is None and not config.sources_named
    if with_boxes is not None:
        with classes_explained(head=DETECTION, demo=demo):
            with_boxes = detection.examined(with_boxes, multitask.class_names, model, skip_broken=skip_broken)
    if with_masks is not None:
        with classes_explained(head=SEGMENTATION, demo=demo):
            with_masks = segmentation.examined(with_masks, multitask.seg_class_names, model, skip_broken=skip_broken)
    return with_boxes, with_masks


def report(
    config: ScoreConfig,
    multitask: AnyMultitask,
    evaluation: MultitaskEvaluation,
    with_boxes: DetectionIndex | None,
    with_masks: SegmentationIndex | None,
) -> Scores:
    """Write down what was found, by task as ``eval-det`` and ``eval-seg`` do, where a folder is named.

    Raises:
        UserError: a file cannot be written.
    """
    said: dict[str, Any] = {
        "image_size": multitask.image_size,
        "selection": asdict(multitask.detector.selection),
        "images_per_second": evaluation.images_per_second,
    }
    boxes, masks = evaluation.detection, evaluation.segmentation
    detected = labelled = None
    if boxes is not None and with_boxes is not None:
        about = {**detection.about(config.detection()), **said, "images": len(with_boxes)}
        out = None if config.out is None else config.out / DETECTION
        detected = detection.report(boxes, with_boxes, out, confusion_score=config.confusion_score, about=about)
    if masks is not None and with_masks is not None:
        about = {**segmentation.about(config.segmentation()), **said, "images": len(with_masks)}
        if config.calibration:
            about |= segmentation.without_calibration(config.model, multitask.gives_probabilities)
        out = None if config.out is None else config.out / SEGMENTATION
        found = segmentation.Scores(masks.scores, masks.boundary, masks.calibration)
        labelled = segmentation.report(found, out, about=about)
    return Scores(detected, labelled)
