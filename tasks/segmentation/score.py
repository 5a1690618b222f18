"""Everything behind ``eval-seg``: a model on a data set, or masks in a folder, scored and written down."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from effdense.datasets.class_names import classes_explained
from effdense.datasets.roots import ready_root
from effdense.datasets.sampling import spread
from effdense.datasets.segmentation_doctor import examine_masks
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.datasets.segmentation_opening import match_segmentation_classes, open_segmentation
from effdense.files import require_writable
from effdense.tasks.segmentation.evaluate import evaluate
from effdense.tasks.segmentation.metrics.boundary import BoundaryIou
from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.tasks.segmentation.metrics.folders import score_folders
from effdense.tasks.segmentation.metrics.report import write_report
from effdense.tasks.segmentation.metrics.scores import SegmentationScores
from effdense.tasks.segmentation.opening import AnySegmenter, open_segmenter
from effdense.tasks.segmentation.score_config import ScoreConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """What an evaluation yields.

    Attributes:
        scores: what the confusion matrix says.
        boundary: Boundary IoU, if wanted.
        calibration: calibration error, if wanted and there are probabilities.
        files: what was written.
    """

    scores: SegmentationScores
    boundary: BoundaryIou | None = None
    calibration: CalibrationError | None = None
    files: list[Path] = field(default_factory=list)


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
    """Score a folder of index PNGs against another."""
    assert config.predictions is not None
    assert config.annotations is not None
    assert config.num_classes is not None
    found = score_folders(
        config.predictions,
        config.annotations,
        config.num_classes,
        class_names=config.classes,
        boundary=config.boundary,
        binary=config.binary_masks,
    )
    log.info("%d masks", found.num_images)
    scores = Scores(found.scores, found.boundary)
    return report(scores, config.out, about={**about(config), "images": found.num_images})


def score_model(config: ScoreConfig) -> Scores:
    """Run a model over a split and score its label maps."""
    assert config.model is not None
    segmenter = open_segmenter(config.model, device=config.device, runtime=config.runtime, threads=config.threads)
    given = {name: getattr(config, name) for name in ("window", "stride", "scene_size", "tta")}
    segmenter = segmenter.with_inference(**{name: value for name, value in given.items() if value is not None})
    if config.image_size is not None:
        segmenter = segmenter.with_image_size(config.image_size)
    index = open_split(config, segmenter)
    evaluation = evaluate(
        segmenter,
        index,
        batch_size=config.batch_size,
        workers=config.workers,
        boundary=config.boundary,
        calibration=config.calibration,
    )
    speed = evaluation.images_per_second
    log.info("%d images, %.1f images a second from file to scored label map", len(index), speed)
    scores = Scores(evaluation.scores, evaluation.boundary, evaluation.calibration)
    as_used = {"image_size": segmenter.image_size, **asdict(segmenter.inference)}
    said = {**about(config), **as_used, "images": len(index), "images_per_second": speed}
    if config.calibration:
        said |= without_calibration(config.model, segmenter.gives_probabilities)
    return report(scores, config.out, about=said)


def without_calibration(model: Path, gives_probabilities: bool) -> dict[str, str]:
    """Log why there is no calibration error, where there can be none, and return it for the report.

    Args:
        model: the file.
        gives_probabilities: whether label maps come with probabilities.
    """
    if gives_probabilities:
        return {}
    why = f"none: {model} is an exported model, which gives labels without probabilities"
    log.info("calibration error: %s", why)
    return {"calibration_error": why}


def open_split(config: ScoreConfig, segmenter: AnySegmenter, *, sample: int | None = None) -> SegmentationIndex:
    """Open the split to score on, examined, with the classes of the segmenter.

    Args:
        config: what to open.
        segmenter: whose classes the split gets.
        sample: take no more images than that, spread evenly.
    """
    root = config.data_root
    if config.annotations is None:
        root = ready_root(config.dataset, root, "segmentation", can_download=False)
    index = open_segmentation(
        config.dataset,
        root,
        config.split,
        classes=config.classes,
        binary=config.binary_masks,
        labels=config.labels,
        annotations=config.annotations,
        images=config.images,
    )
    if sample is not None:
        index = index.select(spread(len(index), sample))
    with classes_explained(demo=config.dataset == "demo" and config.annotations is None):
        return examined(index, segmenter.class_names, config.model, skip_broken=config.skip_broken)


def examined(
    index: SegmentationIndex, class_names: Sequence[str], source: object, *, skip_broken: bool
) -> SegmentationIndex:
    """Give a split the classes of a model, let the doctor look at it, and log what it found.

    Args:
        index: the split.
        class_names: of the model.
        source: the model's file, for the texts.
        skip_broken: leave out images that cannot be read.

    Raises:
        UserError: the data cannot be used; the text names file and value.
    """
    index = match_segmentation_classes(index, class_names, source)
    found = examine_masks({index.split: index}, skip_broken=skip_broken)
    for line in found.lines():
        log.info("%s", line)
    found.raise_errors()
    return found.sound[index.split]


def about(config: ScoreConfig) -> dict[str, Any]:
    """Return what the report says of its origin."""
    said: dict[str, Any] = {"classes": config.classes, "binary_masks": config.binary_masks}
    for name in ("model", "dataset", "data_root", "split", "labels", "annotations", "images", "predictions"):
        said[name] = None if getattr(config, name) is None else str(getattr(config, name))
    return said


def report(scores: Scores, out: Path | None, *, about: dict[str, Any]) -> Scores:
    """Write scores down where a folder is named, and return them with the files.

    Raises:
        UserError: a file cannot be written.
    """
    if out is None:
        return scores
    files = write_report(out, scores.scores, scores.boundary, scores.calibration, about=about)
    return replace(scores, files=files)
