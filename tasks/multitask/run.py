"""A run from its settings on: begin it or go on with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from effdense.config import Parsed
from effdense.datasets.layout import default_root
from effdense.tasks.detection.run import DEFAULT_BACKBONE, DEMO_IMAGE_SIZE
from effdense.tasks.detection.setup import spec_of
from effdense.tasks.detection.specs import get_spec
from effdense.tasks.multitask.config import SELECTION, MultitaskConfig, absolute_source, ignored_settings
from effdense.tasks.multitask.kept import with_settings_of_weights
from effdense.tasks.multitask.specs import least_size
from effdense.tasks.multitask.train import train
from effdense.tasks.segmentation.specs import get_architecture
from effdense.training.run_folder import begin_run, resolve_machine


def begin(parsed: Parsed[MultitaskConfig]) -> Path:
    """Start a run or go on with one, as the settings say.

    Returns:
        The path of the best model.

    Raises:
        UserError: settings that contradict each other, or anything that `train` raises.
    """
    return begin_run(parsed, ignored_settings, resolve, train)


def resolve(config: MultitaskConfig) -> MultitaskConfig:
    """Fill in every setting that depends on others; what comes out is what config.yaml says."""
    config = with_settings_of_weights(config)
    if config.backbone is None:
        own = DEFAULT_BACKBONE if config.det_arch == "auto" else get_spec(config.det_arch).backbone
        config = replace(config, backbone=own)
    alone = config.detection()
    spec = spec_of(alone)
    changes: dict[str, Any] = {name: getattr(alone, name) for name in SELECTION}
    on_demo = config.dataset == "demo" and not config.sources_named
    if config.image_size is None:
        size = DEMO_IMAGE_SIZE if on_demo else spec.image_size
        changes["image_size"] = max(size, least_size(get_architecture(config.arch).name))
    if config.drop_path_rate is None:
        changes["drop_path_rate"] = spec.drop_path_rate
    if config.data_root is None and not on_demo and not config.files_named and not config.sources_named:
        changes["data_root"] = default_root(config.dataset)
    changes |= {name: absolute_source(getattr(config, name)) for name in ("det_data", "seg_data")}
    data = "mixed" if config.sources_named else config.dataset
    return resolve_machine(replace(config, **changes), "multitask", f"{config.arch}-{spec.backbone}-{data}")
