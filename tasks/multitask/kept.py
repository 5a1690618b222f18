"""What the file of ``--weights`` says of a run's settings: a trained head is bound to more than its weights show."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION, header_of_part
from effdense.tasks.detection.setup import spec_of
from effdense.tasks.detection.specs import SPECS, differing_settings, recorded_spec
from effdense.tasks.multitask.config import SELECTION, MultitaskConfig
from effdense.tasks.multitask.specs import require_whole
from effdense.tasks.segmentation.inference import Inference
from effdense.training.settings import WEIGHT_WORDS

log = logging.getLogger(__name__)


def with_settings_of_weights(config: MultitaskConfig) -> MultitaskConfig:
    """Fill in what was not given and the file of ``--weights`` says, and log it.

    Of any model that is the backbone; of a detector, the constants that its weights are bound to; of a head that is
    frozen also the size of its images, and which boxes become detections.

    Raises:
        UserError: a frozen head is for images of another size than was given, or does not look at them whole; or the
            header is damaged.
    """
    parts = _parts(config.weights)
    try:
        changes = _changes(config, parts)
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the header of {config.weights} is damaged or of another version of effdense ({error!r}); train or save "
            "it again"
        ) from error
    if not changes:
        return config
    log.info("as in %s: %s", config.weights, ", ".join(f"{name} {value}" for name, value in changes.items()))
    return replace(config, **changes)


def _changes(config: MultitaskConfig, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that the headers of a file's parts decide."""
    changes: dict[str, Any] = {}
    if config.backbone is None and parts:
        changes["backbone"] = next(iter(parts.values()))["model"]["backbone"]
    if DETECTION in parts:
        changes |= _constants(replace(config, **changes), parts[DETECTION])
    for task in (DETECTION, SEGMENTATION):
        if task in config.freeze and task in parts:
            changes |= _image_size(config, task, parts[task])
    if SEGMENTATION in config.freeze and SEGMENTATION in parts:
        require_whole(Inference(**parts[SEGMENTATION].get("inference", {})), config.weights)
    if DETECTION in config.freeze and DETECTION in parts:
        changes |= _selection(config, parts[DETECTION])
    return changes


def _parts(weights: str) -> dict[str, dict[str, Any]]:
    """Return the header of each task in a file, as a file of that task alone has it; what cannot be read has none."""
    if weights in WEIGHT_WORDS:
        return {}
    try:
        header = read_header(Path(weights))
    except UserError:
        return {}  # a file of other names, or one that reading the weights will complain of
    if header.get("task") == MULTITASK:
        parts = {task: header_of_part(header, task) for task in (DETECTION, SEGMENTATION)}
    else:
        parts = {str(header.get("task")): header}
    return {task: part for task, part in parts.items() if isinstance(part.get("model"), Mapping)}


def _constants(config: MultitaskConfig, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the detector's constants that were not given; another --det-arch gives them all."""
    recorded = recorded_spec(header, config.weights)
    assert recorded is not None
    changes: dict[str, Any] = {}
    if config.det_arch == "auto" and recorded.name in SPECS:
        changes["det_arch"] = recorded.name
    spec = spec_of(replace(config, **changes).detection())
    if spec.name != recorded.name:
        return {}
    differing = differing_settings(recorded, spec)
    return changes | {name: value for name, value in differing.items() if getattr(config, name) is None}


def _image_size(config: MultitaskConfig, task: str, header: Mapping[str, Any]) -> dict[str, int]:
    size = int(header["preprocessing"]["image_size"])
    if config.image_size == size:
        return {}
    if config.image_size is not None:
        raise UserError(
            f"--image-size is {config.image_size}, but the {task} head that --freeze keeps is for images of {size} "
            f"pixels, as {config.weights} says: leave --image-size out, or {task} out of --freeze"
        )
    return {"image_size": size}


def _selection(config: MultitaskConfig, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return which boxes become detections, as it was given, else as the file says; what differs is said."""
    kept = {name: value for name, value in header["selection"].items() if name in SELECTION}
    for name, value in kept.items():
        given = getattr(config, name)
        if given not in (None, value):
            log.warning("%s is %s, as asked; with the detector that is kept it was %s", name, given, value)
    return {name: value for name, value in kept.items() if getattr(config, name) is None}
