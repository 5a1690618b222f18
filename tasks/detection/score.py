"""Everything behind ``eval-det``: a model on a data set, or detections in a file, scored and written down."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effdense.datasets.doctor import examine
from effdense.datasets.index import DetectionIndex
from effdense.datasets.opening import match_classes, open_dataset
from effdense.datasets.roots import ready_root
from effdense.tasks.detection.evaluate import evaluate, limits_of
from effdense.tasks.detection.metrics.coco_metrics import CocoResult, coco_metrics
from effdense.tasks.detection.metrics.confusion import confusion_matrix
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.report import write_report
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.metrics.voc_metrics import VocResult, voc_metrics
from effdense.tasks.detection.predict import Detector, load_detector
from effdense.tasks.detection.predict_files import IMAGES, RESULTS, write_image_list
from effdense.tasks.detection.score_config import ScoreConfig
from effdense.training.device import choose_device

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
    if config.out is None:
        return Scores(coco, None, [])
    if config.iou_type == "segm":
        return Scores(coco, None, write_report(config.out, coco, about=about(config)))
    truth = GroundTruthTable.from_coco(config.annotations)
    return _report(config, coco, truth, DetectionTable.from_json(config.predictions), {})


def score_model(config: ScoreConfig) -> Scores:
    """Run a model over a split and score what it detects."""
    assert config.model is not None
    detector = load_detector(config.model).to(choose_device(config.device))
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
    speed = {"images_per_second": evaluation.images_per_second}
    scores = _report(config, evaluation.coco, evaluation.truth, evaluation.detections, speed)
    if config.out is not None:
        evaluation.detections.to_json(config.out / RESULTS)
        files = [index.path(position) for position in range(len(index))]
        write_image_list(config.out / IMAGES, index.image_ids.tolist(), files, index.category_ids, index.class_names)
        scores.files.extend([config.out / RESULTS, config.out / IMAGES])
    return scores


def open_split(config: ScoreConfig, detector: Detector) -> DetectionIndex:
    """Open the split to score on, examined, with the classes of the detector and every box as the file has it."""
    root = (
        config.data_root
        if config.annotations is not None
        else ready_root(config.dataset, config.data_root, "detection", can_download=False)
    )
    index = open_dataset(config.dataset, root, config.split, annotations=config.annotations, images=config.images)
    index = match_classes(index, detector.class_names, config.model)
    report = examine({config.split: index}, skip_broken=config.skip_broken)
    for line in report.lines():
        log.info("%s", line)
    report.raise_errors()
    return report.sound[config.split]


def about(config: ScoreConfig) -> dict[str, Any]:
    """Return what the report says of its origin."""
    names = ("model", "dataset", "data_root", "split", "annotations", "predictions", "evaluator")
    return {name: None if getattr(config, name) is None else str(getattr(config, name)) for name in names}


def _report(
    config: ScoreConfig, coco: CocoResult, truth: GroundTruthTable, found: DetectionTable, more: dict[str, Any]
) -> Scores:
    voc = voc_metrics(truth, found)
    if config.out is None:
        return Scores(coco, voc, [])
    confusion = confusion_matrix(truth, found, score_threshold=config.confusion_score)
    files = write_report(config.out, coco, voc, confusion, about={**about(config), **more})
    return Scores(coco, voc, files)
