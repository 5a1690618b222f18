"""Whole detectors' weights: effdet's names to ours, the published COCO checkpoints, and a head for other classes.

The original models add a bias in every convolution, also where BatchNorm follows and subtracts it again. Ours have none
there: conversion takes it off the BatchNorm's running mean, which leaves every output as it was, in training too.
"""

from __future__ import annotations

import logging
import re
import socket
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from effdense.backbones.registry import network_of
from effdense.backbones.sources import PROBE_SECONDS, why_unreachable
from effdense.backbones.weights import load_complete, read_model_state, recorded_statistics
from effdense.errors import UserError
from effdense.model_parts import DETECTION, MULTITASK, part_of
from effdense.tasks.detection.coco_names import COCO_ROWS, coco_id
from effdense.tasks.detection.specs import SETTINGS, SPECS, EfficientDetSpec, differing_settings, recorded_spec

if TYPE_CHECKING:
    from effdense.tasks.detection.model import EfficientDet

_LOG = logging.getLogger("effdense")

CLASS_OUTPUT = "head.classes.predict.pointwise."
"""Prefix of the only weights that depend on the number of classes."""

_WORDS = ("auto", "imagenet", "coco", "none")
_STALLED_SECONDS = 30.0

_RENAMES = (
    (r"conv_dw\.", "depthwise."),
    (r"conv_pw\.", "pointwise."),
    (r"^class_net\.", "head.classes."),
    (r"^box_net\.", "head.boxes."),
    (r"\.conv_rep\.(\d+)\.", r".convs.\1."),
    (r"\.bn_rep\.(\d+)\.(\d+)\.bn\.", r".norms.\1.\2."),
    (r"\.after_combine\.conv\.bn\.", ".norm."),
    (r"\.after_combine\.conv\.", ".conv."),
    (r"\.combine\.edge_weights$", ".weights"),
)


@dataclass(frozen=True)
class DetectorFile:
    """Weights read from a file.

    Attributes:
        source: the file.
        state: by the file's own names.
        header: what else the file says.
    """

    source: str
    state: Mapping[str, Tensor]
    header: Mapping[str, Any]

    @property
    def is_effdet(self) -> bool:
        """Whether the names are effdet's."""
        return any(name.startswith("fpn.") for name in self.state)

    @property
    def is_detector(self) -> bool:
        """Whether a whole detector is in it, rather than a backbone or something else."""
        return self.is_effdet or (
            any(name.startswith("neck.") for name in self.state) and f"{CLASS_OUTPUT}weight" in self.state
        )


def read_weights(path: str | Path) -> DetectorFile:
    """Read a safetensors or weights-only torch file; of a multitask model, the detector.

    Raises:
        UserError: if it cannot be read; where it looks like a mistyped word for a source, the message lists those.
    """
    return part_read(path, *read_model_state(path, _WORDS))


def part_read(path: str | Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> DetectorFile:
    """Return what was read from a file; of a multitask model, the detector."""
    if header.get("task") == MULTITASK:
        header, state = part_of(path, header, state, DETECTION)
    return DetectorFile(str(path), state, header)


def load_detector(
    model: EfficientDet,
    file: DetectorFile,
    spec: EfficientDetSpec,
    *,
    replace_head: bool = False,
    class_names: Sequence[str] | None = None,
) -> None:
    """Load a whole detector, and set the mean and std that it was trained with.

    Of a published file, which knows COCO's classes, those rows of the class head are taken that ``class_names`` names.

    Args:
        model: what to fill.
        file: weights by effdet's or our names.
        spec: of the model; its mean and std hold for effdet's weights.
        replace_head: where the classes differ in number or name, leave the last layer of the class head as it is.
        class_names: what the model's classes are called, if known.

    Raises:
        UserError: if the file records other constants, such as other anchors, if weights are missing, unexpected or of
            another shape, or if the classes differ and ``replace_head`` was not asked for.
    """
    _check_constants(file, spec)
    state = from_effdet(file.state) if file.is_effdet else dict(file.state)
    if class_names is not None and _is_published(file, state, spec):
        difference = _choose_coco_rows(state, file, spec, class_names)
    else:
        difference = class_difference(model, file, state, spec, class_names)
    if difference and not replace_head:
        raise UserError(
            f"{difference}; ask for a new head (--replace-head) to keep all but the last layer of the class head"
        )
    if difference:
        own = model.state_dict()
        state |= {name: own[name] for name in own if name.startswith(CLASS_OUTPUT)}
        _LOG.warning("the last layer of the class head starts untrained: %s", difference)
    elif replace_head:
        _LOG.warning("--replace-head changes nothing: %s is for the same classes", file.source)
    load_complete(model, state, source=file.source)
    statistics = (spec.mean, spec.std) if file.is_effdet else recorded_statistics(file.header)
    if statistics is not None:
        model.backbone.set_statistics(*statistics)
    model.backbone.weights_source = f"{file.source} (whole detector)"


def _check_constants(file: DetectorFile, spec: EfficientDetSpec) -> None:
    """Refuse weights of other constants: some show in no shape, and the results would be wrong without a word."""
    recorded = recorded_spec(file.header, file.source)
    differing = {} if recorded is None else differing_settings(recorded, spec)
    if not differing:
        return
    constants = [constant for constant, setting in SETTINGS.items() if setting in differing]
    pairs = ", ".join(f"{name} {getattr(recorded, name)}, not {getattr(spec, name)}" for name in constants)
    raise UserError(f"{file.source} is a detector with {pairs}: {_as_advice(differing)}, or give other weights")


def _as_advice(settings: Mapping[str, Any]) -> str:
    """Say which flags make the settings so; those that are None have to be left out."""
    given, left_out = [], []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None:
            left_out.append(f"leave {flag} out")
        else:
            given += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return " and ".join([f"give {' '.join(given)}"] * bool(given) + left_out)


def _is_published(file: DetectorFile, state: Mapping[str, Tensor], spec: EfficientDetSpec) -> bool:
    """Whether this is the file that was published for the configuration, by its name, with its head for COCO."""
    bias = state.get(f"{CLASS_OUTPUT}bias")
    if bias is None or len(bias) != spec.anchors_per_cell * COCO_ROWS or spec.name not in SPECS:
        return False
    return Path(file.source).name == _published_url(spec.name).rpartition("/")[2]


def _choose_coco_rows(
    state: dict[str, Tensor], file: DetectorFile, spec: EfficientDetSpec, class_names: Sequence[str]
) -> str:
    """Reduce the class head in ``state`` to the rows of these classes; or say which class is none of COCO's."""
    rows = []
    for number, name in enumerate(class_names):
        category_id = coco_id(name)
        if category_id is None:
            return f"class {number}, {name!r}, is none of COCO's, for which weights from {file.source} are"
        rows.append(category_id - 1)
    for key in (f"{CLASS_OUTPUT}weight", f"{CLASS_OUTPUT}bias"):
        shape = state[key].shape[1:]
        by_anchor = state[key].reshape(spec.anchors_per_cell, COCO_ROWS, *shape)
        state[key] = by_anchor[:, rows].reshape(-1, *shape)
    _LOG.info("%d of the %d rows of the class head in %s are used, by name", len(rows), COCO_ROWS, file.source)
    return ""


def class_difference(
    model: EfficientDet,
    file: DetectorFile,
    state: Mapping[str, Tensor],
    spec: EfficientDetSpec,
    class_names: Sequence[str] | None,
) -> str:
    """Say how the file's classes differ from the model's, in number or, where the file knows, in name."""
    bias = state.get(f"{CLASS_OUTPUT}bias")
    theirs = 0 if bias is None else len(bias) // spec.anchors_per_cell
    if theirs and theirs != model.num_classes:
        return f"weights from {file.source} are for {theirs} classes, the model has {model.num_classes}"
    recorded = file.header.get("class_names")
    if class_names is None or not isinstance(recorded, list) or tuple(recorded) == tuple(class_names):
        return ""
    for number, (wanted, there) in enumerate(zip(class_names, recorded, strict=False)):
        if wanted != there:
            return f"class {number} is {there!r} in weights from {file.source} and {wanted!r} in the data"
    return ""


def load_coco(
    model: EfficientDet,
    spec: EfficientDetSpec,
    *,
    replace_head: bool = False,
    class_names: Sequence[str] | None = None,
    offline: bool = False,
) -> None:
    """Load the published weights, trained on COCO's 90 category ids, from torch's cache or effdet's release page.

    Args:
        model: what to fill.
        spec: the configuration; its name says which weights.
        replace_head: as for ``load_detector``.
        class_names: what the model's classes are called, if known; where each is one of COCO's, their rows are taken.
        offline: do not ask the network.

    Raises:
        UserError: if none were published for the configuration, or they can be had from neither place.
    """
    published = SPECS.get(spec.name)
    if published is None or network_of(published.backbone) != network_of(spec.backbone):
        raise UserError(
            f"no COCO weights were published for {spec.name} on backbone {spec.backbone!r}; use the backbone "
            f"{published.backbone if published else 'of a published configuration'!r}, or weights auto or none"
        )
    url = _published_url(spec.name)
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        _download(url, path, offline)
    load_detector(model, read_weights(path), spec, replace_head=replace_head, class_names=class_names)


def from_effdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give effdet's weights our names; biases before BatchNorm move into its running mean.

    A name that is not known stays as it is, for the complete load to complain of.
    """
    names = our_names(state)
    converted = {ours: state[theirs] for theirs, ours in names.items() if not folded_into(ours, names.values())}
    for theirs, ours in names.items():
        for mean in folded_into(ours, names.values()):
            converted[mean] = converted[mean] - state[theirs]
    return converted


def to_effdet(state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give our weights effdet's names.

    Args:
        state: by our names.
        theirs: effdet's state dict of the same configuration; its names and the shapes of its biases are read.
    """
    names = our_names(theirs)
    return {
        name: torch.zeros_like(theirs[name]) if folded_into(ours, names.values()) else state[ours]
        for name, ours in names.items()
    }


def our_names(theirs: Iterable[str]) -> dict[str, str]:
    """Map each of effdet's names to ours; both biases before BatchNorm and unknown names included."""
    theirs = list(theirs)
    nodes = {int(match[1]) for name in theirs if (match := re.search(r"\.fnode\.(\d+)\.", name))}
    extras = {int(match[1]) for name in theirs if (match := re.match(r"fpn\.resample\.(\d+)\.", name))}
    tops = len(nodes) // 2  # top-down nodes come first, coarse to fine; then as many bottom-up, fine to coarse
    return {name: _our_name(name, tops, min(extras, default=0)) for name in theirs}


def folded_into(ours: str, names: Iterable[str]) -> list[str]:
    """Return the running means that take up a bias, of our name ``ours``; none where the bias stays a bias.

    Args:
        ours: any of our names.
        names: all of them.
    """
    if match := re.fullmatch(r"(head\.\w+)\.convs\.(\d+)\.pointwise\.bias", ours):
        start = f"{match[1]}.norms.{match[2]}."  # one BatchNorm for each level
        return [name for name in names if name.startswith(start) and name.endswith(".running_mean")]
    if match := re.fullmatch(r"(neck\.cells\..*)\.conv\.pointwise\.bias", ours):
        return [f"{match[1]}.norm.running_mean"]
    if match := re.fullmatch(r"(neck\.(?:extra|cells\.\d+\.\w+_laterals)\.\d+)\.0\.bias", ours):
        return [f"{match[1]}.1.running_mean"]
    return []


def _our_name(name: str, tops: int, first_extra: int) -> str:
    """One of effdet's names as ours, for a pyramid of ``tops`` + 1 levels."""
    if match := re.fullmatch(r"fpn\.resample\.(\d+)\.conv\.(conv|bn)\.(\w+)", name):
        return f"neck.extra.{int(match[1]) - first_extra}.{'01'[match[2] == 'bn']}.{match[3]}"
    if match := re.fullmatch(r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.resample\.(\d+)\.conv\.(conv|bn)\.(\w+)", name):
        cell, node, level = (int(match[i]) for i in (1, 2, 3))
        lateral = f"down_laterals.{level}" if node < tops else f"up_laterals.{level - 1}"
        return f"neck.cells.{cell}.{lateral}.{'01'[match[4] == 'bn']}.{match[5]}"
    if match := re.match(r"fpn\.cell\.(\d+)\.fnode\.(\d+)", name):
        cell, node = int(match[1]), int(match[2])
        place = f"down.{tops - 1 - node}" if node < tops else f"up.{node - tops}"
        name = f"neck.cells.{cell}.{place}{name[match.end() :]}"
    elif name.startswith("backbone."):
        return name
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _published_url(name: str) -> str:
    with warnings.catch_warnings():  # effdet scripts some of its classes on import, which torch warns of
        warnings.simplefilter("ignore")
        from effdet.config import get_efficientdet_config

    return str(get_efficientdet_config(f"tf_efficientdet_{name}").url)


def _download(url: str, path: Path, offline: bool) -> None:
    """Fetch a file whose name ends in the start of its SHA-256; whole or not at all."""
    remedy = f"fetch {url} and put it at {path}, or use weights auto or none"
    failure = "the network was not asked (offline)" if offline else why_unreachable(url, PROBE_SECONDS)
    if failure is not None:
        raise UserError(f"COCO weights cannot be had: {failure}; {remedy}")
    _LOG.info("fetching %s", url)
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_SECONDS)  # torch's download has no time-out of its own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(f"COCO weights cannot be had: {error}; {remedy}") from error
    finally:
        socket.setdefaulttimeout(patience)
