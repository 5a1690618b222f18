"""Behind ``export`` for a detector: the file stays only if its mAP is the checkpoint's.

effdense fits images itself and tells the file what part of the square they fill. Whoever runs the file without effdense
gives it images as they are, which it then fits. So it is scored both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effdense.config import from_mapping
from effdense.runtime.export_config import ExportConfig
from effdense.runtime.gate import AS_THEY_ARE, Gate, Measured, export_through_gate
from effdense.runtime.session import require_precision
from effdense.tasks.detection.evaluate import evaluate
from effdense.tasks.detection.export import export_detector
from effdense.tasks.detection.exported import load_exported_detector
from effdense.tasks.detection.opening import AnyDetector
from effdense.tasks.detection.predict import load_detector
from effdense.tasks.detection.score import open_split
from effdense.tasks.detection.score_config import ScoreConfig


def run_export(config: ExportConfig, header: Mapping[str, Any]) -> Gate:
    """Export a detector, if the file scores what the checkpoint scores.

    Args:
        config: what to export, and what to compare on.
        header: of the checkpoint.

    Raises:
        UserError: anything about the model, the data or the disk that the user can mend; or a file that scores
            something else, which is deleted.
    """
    detector = load_detector(config.model).with_selection(**config.selection())
    if config.image_size is not None:
        detector = detector.with_image_size(config.image_size)
    scoring = from_mapping(ScoreConfig, config.score_settings(header), str(config.model))
    index = open_split(scoring, detector, sample=config.sample)

    def measured(model: AnyDetector, runtime: str, given: str = "") -> Measured:
        model.predict_samples([index.sample(0)])  # folding and the like happens once
        batch_size = 1 if given else config.batch_size  # as they are, images have sizes of their own
        found = evaluate(model, index, batch_size=batch_size, workers=config.workers)
        return Measured(runtime, {"mAP": 100 * found.map}, found.images_per_second, given)

    def of_file(path: Path) -> tuple[Measured, Measured]:
        exported = load_exported_detector(path, runtime=config.runtime, threads=config.threads)
        require_precision(exported.session, config.precision)
        name = exported.session.name
        return measured(exported, name), measured(exported.unaided(), name, AS_THEY_ARE)

    return export_through_gate(
        config.path,
        export=lambda path: export_detector(detector, path, precision=config.precision),
        checkpoint=lambda: measured(detector, "pytorch"),
        exported=of_file,
        images=len(index),
        tolerance=config.tolerance,
        name=config.model.name,
    )
