"""Everything behind ``eval-det``: a model on a data set, or detections in a file, scored and written down."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effdense.datasets.class_names import classes_explained
from effdense.datasets.doctor import examine
from effdense.datasets.index import DetectionIndex
from effdense.datasets.opening import match_classes, open_dataset
from effdense.datasets.roots import ready_root
from effdense.datasets.sampling import spread
from effdense.errors import UserError
from effdense.files import require_writable
from effdense.tasks.detection.evaluate import Evaluation, evaluate, limits_of
from effdense.tasks.detection.metrics.coco_metrics import CocoResult, coco_metrics
from effdense.tasks.detection.metrics.confusion import confusion_matrix
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.report import write_report
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.metrics.voc_metrics import VocResult, voc_metrics
from effdense.tasks.detection.opening import AnyDetector, open_detector
from effdense.tasks.detection.predict_files import write_results
from effdense.tasks.detection.score_config import ScoreConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """What an evaluation yields.

    Attributes:
        coco: COCO's numbers.
        voc: Pascal VOC's AP.
        files: what was written.
    """

    coco: CocoResult
    voc: VocResult | None
    files: list[Path]


def score(config: ScoreConfig) -> Scores:
    """Do what the settings say.

    Raises:
        UserError: anything about files, classes or settings that the user can mend.
    """
    if config.out is not None:
        require_writable(config.out)
    if config.predictions is not None:
        return score_files(config)
    return score_model(config)


def score_files(config: ScoreConfig) -> Scores:
    """Score a COCO results file against a COCO annotation file."""
    assert config.predictions is not None
    assert config.annotations is not None
    coco = coco_metrics(
        config.annotations,
        config.predictions,
        backend=config.evaluator,
        iou_type=config.iou_type,
        max_detections=limits_of(config.max_detections or 100),
    )
    if not coco.instances.any():
        raise UserError(f"{config.annotations} has no objects to find, so there is nothing to score; take one that has")
    if config.out is None:
        return Scores(coco, None, [])
    if config.iou_type == "segm":
        return Scores(coco, None, write_report(config.out, coco, about=about(config)))
    truth, found = GroundTruthTable.from_coco(config.annotations), DetectionTable.from_json(config.predictions)
    return _report(coco, truth, found, config.out, confusion_score=config.confusion_score, about=about(config))


def score_model(config: ScoreConfig) -> Scores:
    """Run a model over a split and score what it detects."""
    assert config.model is not None
    detector = open_detector(config.model, device=config.device, runtime=config.runtime, threads=config.threads)
    changes = {
        name: getattr(config, name)
        for name in ("score_threshold", "nms", "nms_iou", "max_detections")
        if getattr(config, name) is not None
    }
    detector = detector.with_selection(**changes)
    if config.image_size is not None:
        detector = detector.with_image_size(config.image_size)
    index = open_split(config, detector)
    evaluation = evaluate(
        detector,
        index,
        batch_size=config.batch_size,
        workers=config.workers,
        evaluator=config.evaluator,
    )
    log.info("%d images, %.1f images a second from file to detections", len(index), evaluation.images_per_second)
    said = {**about(config), "images_per_second": evaluation.images_per_second}
    return report(evaluation, index, config.out, confusion_score=config.confusion_score, about=said)


def open_split(config: ScoreConfig, detector: AnyDetector, *, sample: int | None = None) -> DetectionIndex:
    """Open the split to score on, examined, with the classes of the detector and every box as the file has it.

    Args:
        config: what to open.
        detector: whose classes the split gets.
        sample: take no more images than that, spread evenly.
    """
    root = (
        config.data_root
        if config.annotations is not None
        else ready_root(config.dataset, config.data_root, "detection", can_download=False)
    )
    index = open_dataset(config.dataset, root, config.split, annotations=config.annotations, images=config.images)
    if sample is not None:
        index = index.select(spread(len(index), sample))
    with classes_explained(demo=config.dataset == "demo" and config.annotations is None):
        return examined(index, detector.class_names, config.model, skip_broken=config.skip_broken)


def examined(index: DetectionIndex, class_names: Sequence[str], source: object, *, skip_broken: bool) -> DetectionIndex:
    """Give a split the classes of a model, let the doctor look at it, and log what it found; boxes stay as they are.

    Args:
        index: the split.
        class_names: of the model.
        source: the model's file, for the texts.
        skip_broken: leave out images that cannot be read.

    Raises:
        UserError: the data cannot be used; the text names file and line or annotation id.
    """
    index = match_classes(index, class_names, source)
    found = examine({index.split: index}, skip_broken=skip_broken)
    for line in found.lines():
        log.info("%s", line)
    found.raise_errors()
    return found.sound[index.split]


def about(config: ScoreConfig) -> dict[str, Any]:
    """Return what the report says of its origin."""
    names = ("model", "dataset", "data_root", "split", "annotations", "predictions", "evaluator")
    return {name: None if getattr(config, name) is None else str(getattr(config, name)) for name in names}


def report(
    evaluation: Evaluation, index: DetectionIndex, out: Path | None, *, confusion_score: float, about: dict[str, Any]
) -> Scores:
    """Add VOC's numbers to an evaluation, and write it down with all detections.

    Args:
        evaluation: of a model.
        index: what it was evaluated on.
        out: folder for the files; nothing is written without it.
        confusion_score: score from which a detection counts in the confusion matrix.
        about: what the report says of its origin.

    Raises:
        UserError: a file cannot be written.
    """
    truth, found = evaluation.truth, evaluation.detections
    scores = _report(evaluation.coco, truth, found, out, confusion_score=confusion_score, about=about)
    if out is not None:
        files = [index.path(position) for position in range(len(index))]
        scores.files.extend(
            write_results(out, found, index.image_ids.tolist(), files, index.category_ids, index.class_names)
        )
    return scores


def _report(
    coco: CocoResult,
    truth: GroundTruthTable,
    found: DetectionTable,
    out: Path | None,
    *,
    confusion_score: float,
    about: dict[str, Any],
) -> Scores:
    voc = voc_metrics(truth, found)
    if out is None:
        return Scores(coco, voc, [])
    confusion = confusion_matrix(truth, found, score_threshold=confusion_score)
    return Scores(coco, voc, write_report(out, coco, voc, confusion, about=about))
