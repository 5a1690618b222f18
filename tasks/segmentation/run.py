"""A run from its settings on: begin it or go on with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from effdense.config import Parsed
from effdense.datasets.layout import default_root
from effdense.tasks.segmentation.config import SegmentationConfig, ignored_settings
from effdense.tasks.segmentation.specs import get_architecture
from effdense.tasks.segmentation.train import train
from effdense.training.run_folder import begin_run, resolve_machine


def begin(parsed: Parsed[SegmentationConfig]) -> Path:
    """Start a run or go on with one, as the settings say.

    Returns:
        The path of the best model.

    Raises:
        UserError: settings that contradict each other, or anything that `train` raises.
    """
    return begin_run(parsed, ignored_settings, resolve, train)


def resolve(config: SegmentationConfig) -> SegmentationConfig:
    """Fill in every setting that depends on others; what comes out is what config.yaml says."""
    changes: dict[str, Any] = dict(zip(("image_size", "scene_size"), config.sizes, strict=True))
    if config.output_stride is None:
        changes["output_stride"] = get_architecture(config.arch).output_stride
    if config.drop_path_rate is None:
        changes["drop_path_rate"] = 0.0
    if config.data_root is None and config.dataset in ("voc", "coco") and not config.files_named:
        changes["data_root"] = default_root(config.dataset)
    if config.window and config.stride is None:
        changes["stride"] = max(1, config.window * 3 // 4)
    name = f"{config.arch}-{config.backbone}-{config.dataset}"
    return resolve_machine(replace(config, **changes), "segmentation", name)
