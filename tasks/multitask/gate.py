"""Behind ``export`` for a model of both tasks: the file stays only if its mAP and its mIoU are the checkpoint's.

effdense fits images itself before the file sees them; for its detector alone it pads them too, and tells the file what
part of the square they fill. Whoever runs the file without effdense gives it images as they are. So it is scored in all
three ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effdense.config import from_mapping
from effdense.datasets.index import DetectionIndex
from effdense.datasets.multitask_index import MultitaskIndex
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.errors import UserError
from effdense.runtime.export_config import ExportConfig
from effdense.runtime.gate import AS_THEY_ARE, Gate, Measured, export_through_gate
from effdense.runtime.session import require_precision
from effdense.tasks.detection.evaluate import evaluate as evaluate_boxes
from effdense.tasks.multitask.evaluate import evaluate
from effdense.tasks.multitask.export import export_multitask
from effdense.tasks.multitask.exported import load_exported_multitask
from effdense.tasks.multitask.opening import AnyMultitask
from effdense.tasks.multitask.predict import load_multitask
from effdense.tasks.multitask.score import open_split
from effdense.tasks.multitask.score_config import ScoreConfig

PADDED = "images that are padded already"


def run_export(config: ExportConfig, header: Mapping[str, Any]) -> Gate:
    """Export a model of both tasks, if the file scores what the checkpoint scores.

    Args:
        config: what to export, and what to compare on.
        header: of the checkpoint.

    Raises:
        UserError: anything about the model, the data or the disk that the user can mend; or a file that scores
            something else, which is deleted.
    """
    multitask = load_multitask(config.model).with_selection(**config.selection())
    if config.image_size is not None:
        multitask = multitask.with_image_size(config.image_size)
    scoring = from_mapping(ScoreConfig, config.score_settings(header), str(config.model))
    with_boxes, with_masks = _both(*open_split(scoring, multitask, sample=config.sample))
    images = MultitaskIndex.of(with_boxes, with_masks)

    def measured(model: AnyMultitask, runtime: str, given: str = "") -> Measured:
        list(model.stream_samples([images.sample(0).replace(mask=None)]))  # folding and the like happens once
        found = evaluate(model, with_boxes, with_masks, batch_size=config.batch_size, workers=config.workers)
        assert found.detection is not None
        assert found.segmentation is not None
        scores = {"mAP": 100 * found.detection.map, "mIoU": 100 * found.segmentation.miou}
        return Measured(runtime, scores, found.images_per_second, given)

    def of_file(path: Path) -> tuple[Measured, ...]:
        exported = load_exported_multitask(path, runtime=config.runtime, threads=config.threads)
        require_precision(exported.session, config.precision)
        name = exported.session.name
        both_ways = measured(exported, name), measured(exported.unaided(), name, AS_THEY_ARE)
        found = evaluate_boxes(exported.detector, with_boxes, batch_size=config.batch_size, workers=config.workers)
        return *both_ways, Measured(name, {"mAP": 100 * found.map}, found.images_per_second, PADDED)

    return export_through_gate(
        config.path,
        export=lambda path: export_multitask(multitask, path, precision=config.precision),
        checkpoint=lambda: measured(multitask, "pytorch"),
        exported=of_file,
        images=len(images),
        tolerance=config.tolerance,
        name=config.model.name,
    )


def _both(
    with_boxes: DetectionIndex | None, with_masks: SegmentationIndex | None
) -> tuple[DetectionIndex, SegmentationIndex]:
    """Refuse labels that leave one of the two outputs unproven.

    Raises:
        UserError: boxes or masks are missing.
    """
    if with_boxes is None:
        raise _unproven("masks", "boxes", "--det-data")
    if with_masks is None:
        raise _unproven("boxes", "masks", "--seg-data")
    return with_boxes, with_masks


def _unproven(given: str, missing: str, flag: str) -> UserError:
    return UserError(
        f"only {given} are given to compare on, which says nothing of the {missing} in the exported file: give both, "
        f"{flag} KIND:FOLDER as well"
    )
