"""Behind ``export`` for a segmenter: the file stays only if its mIoU is the checkpoint's.

effdense fits images itself before the file sees them. Whoever runs the file without effdense gives it images as they
are, which it then fits. So it is scored both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effdense.config import from_mapping
from effdense.runtime.export_config import ExportConfig
from effdense.runtime.gate import AS_THEY_ARE, Gate, Measured, export_through_gate
from effdense.runtime.session import require_precision
from effdense.tasks.segmentation.evaluate import evaluate
from effdense.tasks.segmentation.export import export_segmenter
from effdense.tasks.segmentation.exported import load_exported_segmenter
from effdense.tasks.segmentation.opening import AnySegmenter
from effdense.tasks.segmentation.predict import load_segmenter
from effdense.tasks.segmentation.score import open_split
from effdense.tasks.segmentation.score_config import ScoreConfig


def run_export(config: ExportConfig, header: Mapping[str, Any]) -> Gate:
    """Export a segmenter, if the file scores what the checkpoint scores.

    Args:
        config: what to export, and what to compare on.
        header: of the checkpoint.

    Raises:
        UserError: anything about the model, the data or the disk that the user can mend; or a file that scores
            something else, which is deleted.
    """
    segmenter = load_segmenter(config.model).with_inference(window=config.window)
    if config.image_size is not None:
        segmenter = segmenter.with_image_size(config.image_size)
    scoring = from_mapping(ScoreConfig, config.score_settings(header), str(config.model))
    index = open_split(scoring, segmenter, sample=config.sample)

    def measured(model: AnySegmenter, runtime: str, given: str = "") -> Measured:
        list(model.stream_samples([index.sample(0).replace(mask=None)]))  # folding and the like happens once
        found = evaluate(model, index, batch_size=config.batch_size, workers=config.workers)
        return Measured(runtime, {"mIoU": 100 * found.miou}, found.images_per_second, given)

    def of_file(path: Path) -> tuple[Measured, Measured]:
        exported = load_exported_segmenter(path, runtime=config.runtime, threads=config.threads)
        require_precision(exported.session, config.precision)
        name = exported.session.name
        return measured(exported, name), measured(exported.unaided(), name, AS_THEY_ARE)

    return export_through_gate(
        config.path,
        export=lambda path: export_segmenter(segmenter, path, precision=config.precision),
        checkpoint=lambda: measured(segmenter, "pytorch"),
        exported=of_file,
        images=len(index),
        tolerance=config.tolerance,
        name=config.model.name,
    )
