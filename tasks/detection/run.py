"""A run from its settings on: begin it or go on with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from effdense.config import Parsed
from effdense.datasets.layout import default_root
from effdense.tasks.detection.config import DetectionConfig, ignored_settings
from effdense.tasks.detection.setup import spec_of
from effdense.tasks.detection.specs import get_spec
from effdense.tasks.detection.train import train
from effdense.training.run_folder import begin_run, resolve_machine

DEMO_IMAGE_SIZE = 128
"""The demo scenes are this large; a published resolution would only enlarge them."""

DEFAULT_BACKBONE = "lite0"
"""Small, quick on a CPU, and its ImageNet weights install from the package index."""


def begin(parsed: Parsed[DetectionConfig]) -> Path:
    """Start a run or go on with one, as the settings say.

    Returns:
        The path of the best model.

    Raises:
        UserError: settings that contradict each other, or anything that `train` raises.
    """
    return begin_run(parsed, ignored_settings, resolve, train)


def resolve(config: DetectionConfig) -> DetectionConfig:
    """Fill in every setting that depends on others; what comes out is what config.yaml says."""
    changes: dict[str, Any] = {}
    if config.backbone is None:
        changes["backbone"] = DEFAULT_BACKBONE if config.arch == "auto" else get_spec(config.arch).backbone
        config = replace(config, **changes)
    if config.image_size is None:
        changes["image_size"] = DEMO_IMAGE_SIZE if config.dataset == "demo" else spec_of(config).image_size
    if config.data_root is None and config.dataset != "demo" and not config.files_named:
        changes["data_root"] = default_root(config.dataset)
    return resolve_machine(replace(config, **changes), "detection", f"{config.backbone}-{config.dataset}")
