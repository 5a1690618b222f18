"""A run from its settings on: begin it or go on with it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from effdense.config import Parsed, load_yaml
from effdense.errors import UserError
from effdense.tasks.detection.config import DetectionConfig, ignored_settings
from effdense.tasks.detection.setup import spec_of
from effdense.tasks.detection.specs import get_spec
from effdense.tasks.detection.train import CONFIG, STATE, train
from effdense.training.device import choose_device
from effdense.training.precision import choose_precision

DEMO_IMAGE_SIZE = 128
"""The demo scenes are this large; a published resolution would only enlarge them."""

DEFAULT_BACKBONE = "lite0"
"""Small, quick on a CPU, and its ImageNet weights install from the package index."""

_PATHS = ("data_root", "train_annotations", "train_images", "val_annotations", "val_images")
_WITH_RESUME = {"resume", "device", "workers"}


def begin(parsed: Parsed[DetectionConfig]) -> Path:
    """Start a run or go on with one, as the settings say.

    Returns:
        The path of the best model.

    Raises:
        UserError: settings that contradict each other, or anything that `train` raises.
    """
    config = parsed.config
    if config.resume is not None:
        return train(resumed(parsed), config.resume, resume=True)
    parsed.refuse_ignored(ignored_settings(config))
    config = resolve(config)
    assert config.out is not None
    if (config.out / STATE).exists():
        raise UserError(
            f"{config.out} holds a run already: go on with it by --resume {config.out}, or choose another --out"
        )
    return train(config, config.out)


def resumed(parsed: Parsed[DetectionConfig]) -> DetectionConfig:
    """Return the settings that the run in ``--resume DIR`` began with.

    Raises:
        UserError: there is no run, or another setting was given, which would change its result.
    """
    folder = parsed.config.resume
    assert folder is not None
    if not (folder / CONFIG).is_file() or not (folder / STATE).is_file():
        raise UserError(f"{folder} holds no run to resume: expected {CONFIG} and {STATE} in it")
    if extra := sorted(parsed.given - _WITH_RESUME):
        flags = ", ".join("--" + name.replace("_", "-") for name in extra)
        raise UserError(f"{flags} cannot be given with --resume, which goes on with the settings in {folder / CONFIG}")
    kept = load_yaml(DetectionConfig, folder / CONFIG).config
    changes = {name: getattr(parsed.config, name) for name in parsed.given & {"device", "workers"}}
    return resolve(replace(kept, **changes))


def resolve(config: DetectionConfig) -> DetectionConfig:
    """Fill in every setting that depends on others; what comes out is what config.yaml says."""
    device = choose_device(config.device)
    changes: dict[str, Any] = {}
    if config.backbone is None:
        changes["backbone"] = DEFAULT_BACKBONE if config.arch == "auto" else get_spec(config.arch).backbone
        config = replace(config, **changes)
    if config.image_size is None:
        changes["image_size"] = DEMO_IMAGE_SIZE if config.dataset == "demo" else spec_of(config).image_size
    if config.workers < 0:
        changes["workers"] = min(8, os.cpu_count() or 1) if device.type == "cuda" else 0
    if config.amp == "auto":
        precision = choose_precision("auto", device).name
        changes["amp"] = "off" if precision == "fp32" else precision
    for name in _PATHS:
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name).absolute()
    if config.out is None:
        changes["out"] = free_folder(Path("runs/detection"), f"{config.backbone}-{config.dataset}")
    return replace(config, **changes)


def free_folder(parent: Path, name: str) -> Path:
    """Return ``parent/name-N`` with the first N that is not there yet."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
