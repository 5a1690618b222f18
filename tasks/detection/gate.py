"""Behind ``export`` for a detector: the file stays only if its mAP is the checkpoint's.

effdense fits images itself and tells the file what part of the square they fill. Whoever runs the file without effdense
gives it images as they are, which it then fits. So it is scored both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from effdense.config import from_mapping
from effdense.runtime.export_config import ExportConfig
from effdense.runtime.gate import AS_THEY_ARE, Gate, Measured, export_through_gate
from effdense.runtime.opening import pixels_of
from effdense.runtime.session import Session, require_precision
from effdense.tasks.detection.evaluate import evaluate
from effdense.tasks.detection.export import export_detector
from effdense.tasks.detection.exported import ExportedDetector, detections_of, load_exported_detector
from effdense.tasks.detection.opening import AnyDetector
from effdense.tasks.detection.predict import Selection, load_detector
from effdense.tasks.detection.score import open_split
from effdense.tasks.detection.score_config import ScoreConfig
from effdense.transforms import Compose, Transform
from effdense.types import Batch, Detections


@dataclass
class Unaided:
    """An exported detector that gets images in their own size, one by one, and nothing else.

    Attributes:
        session: what runs the file.
        class_names: in the order of the labels.
        selection: which boxes become detections.
        transform: none.
    """

    session: Session
    class_names: tuple[str, ...]
    selection: Selection
    transform: Transform = field(default_factory=lambda: Compose(()))

    @classmethod
    def of(cls, exported: ExportedDetector) -> Unaided:
        """Return what runs the same file."""
        return cls(exported.session, exported.class_names, exported.selection)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    def detect(self, batch: Batch) -> list[Detections]:
        """Detect objects in a batch of images of one size."""
        return detections_of(self.session.run(pixels_of(batch.images)), self.selection, self.class_names)


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

    def measured(model: AnyDetector, runtime: str) -> Measured:
        model.predict_samples([index.sample(0)])  # folding and the like happens once
        found = evaluate(model, index, batch_size=config.batch_size, workers=config.workers)
        return Measured(runtime, {"mAP": 100 * found.map}, found.images_per_second)

    def of_file(path: Path) -> tuple[Measured, Measured]:
        exported = load_exported_detector(path, runtime=config.runtime, threads=config.threads)
        require_precision(exported.session, config.precision)
        usual, name = measured(exported, exported.session.name), exported.session.name
        found = evaluate(Unaided.of(exported), index, batch_size=1, workers=config.workers)
        return usual, Measured(name, {"mAP": 100 * found.map}, found.images_per_second, given=AS_THEY_ARE)

    return export_through_gate(
        config.path,
        export=lambda path: export_detector(detector, path, precision=config.precision),
        checkpoint=lambda: measured(detector, "pytorch"),
        exported=of_file,
        images=len(index),
        tolerance=config.tolerance,
        name=config.model.name,
    )
