"""Weights of whole segmentation models: our files and smp's, and a head for other classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from effdense.backbones.registry import network_of
from effdense.backbones.weights import load_complete, read_model_state, recorded_backbone, recorded_statistics
from effdense.errors import UserError
from effdense.model_parts import MULTITASK, SEGMENTATION, part_of
from effdense.tasks.segmentation.specs import SegmentationSpec

if TYPE_CHECKING:
    from effdense.tasks.segmentation.model import SegmentationModel

_LOG = logging.getLogger("effdense")

TASK = SEGMENTATION

CLASS_OUTPUTS = ("head.0.", "head.predict.", "auxiliary.predict.")
"""Prefixes of the only weights that depend on the number of classes: smp's heads, BiFPN's, the auxiliary head."""

_WORDS = ("auto", "imagenet", "none")
_AUXILIARY = "auxiliary."
_FROM_SMP = {"encoder.model.": "backbone.", "segmentation_head.": "head."}


@dataclass(frozen=True)
class WeightsFile:
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
    def has_head(self) -> bool:
        """Whether there is more in it than a backbone or a classifier: a model for dense prediction."""
        heads = ("head.", "segmentation_head.", "class_net.", "segmentation.head.")
        return any(name.startswith(heads) for name in self.state)

    @property
    def is_smp(self) -> bool:
        """Whether the names are smp's, around one of timm's encoders."""
        return any(name.startswith("segmentation_head.") for name in self.state) and (
            "encoder.model.conv_stem.weight" in self.state
        )

    def is_segmenter(self, arch: str, *, on_pyramid: bool = False) -> bool:
        """Return whether a whole model of this architecture is in it; weights without a header pass for any.

        Args:
            arch: of the model that is to be filled.
            on_pyramid: whether that model reads a detector's pyramid.
        """
        model = self.header.get("model")
        if "task" in self.header and isinstance(model, Mapping):
            fits = model.get("arch") == arch and (model.get("pyramid") is not None) == on_pyramid
            return self.header["task"] == TASK and fits
        ours = all(any(name.startswith(part) for name in self.state) for part in ("backbone.", "decoder.", "head."))
        return ours or self.is_smp


def read_weights(path: str | Path) -> WeightsFile:
    """Read a safetensors or weights-only torch file; of a multitask model, the segmenter.

    Raises:
        UserError: if it cannot be read; where it looks like a mistyped word for a source, the message lists those.
    """
    return part_read(path, *read_model_state(path, _WORDS))


def part_read(path: str | Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> WeightsFile:
    """Return what was read from a file; of a multitask model, the segmenter."""
    if header.get("task") == MULTITASK:
        header, state = part_of(path, header, state, TASK)
    return WeightsFile(str(path), state, header)


def load_segmenter(
    model: SegmentationModel,
    file: WeightsFile,
    spec: SegmentationSpec,
    *,
    replace_head: bool = False,
    class_names: Sequence[str] | None = None,
) -> None:
    """Load a whole segmentation model, and set the mean and std that it was trained with.

    An auxiliary head that only the file has is left aside; one that only the model has starts untrained.

    Args:
        model: what to fill.
        file: weights by our or smp's names, of the same architecture.
        spec: of the model.
        replace_head: where the classes differ in number or name, leave the layers that know them as they are.
        class_names: what the model's classes are called, if known.

    Raises:
        UserError: if weights are missing, unexpected or of another shape, or the classes differ and ``replace_head``
            was not asked for.
    """
    _check_backbone(file, spec)
    own = model.state_dict()
    state = from_smp(file.state, own) if file.is_smp else dict(file.state)
    difference = class_difference(model, file, state, class_names)
    if difference and not replace_head:
        raise UserError(f"{difference}; ask for a new head (--replace-head) to keep all but the last layer of the head")
    if difference:
        state |= {name: value for name, value in own.items() if name.startswith(CLASS_OUTPUTS)}
        _LOG.warning("the last layer of the head starts untrained: %s", difference)
    elif replace_head:
        _LOG.warning("--replace-head changes nothing: %s is for the same classes", file.source)
    load_complete(model, _with_auxiliary_of(model, state, file.source), source=file.source)
    statistics = recorded_statistics(file.header)
    if statistics is not None:
        model.backbone.set_statistics(*statistics)
    model.backbone.weights_source = f"{file.source} (whole segmentation model)"


def from_smp(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give smp's weights our names; its PSPNet's stages that are computed and never read are left out.

    A name that is not known stays as it is, for the complete load to complain of.

    Args:
        state: of smp's model around one of timm's encoders (``tu-...``).
        own: state dict of our model.
    """
    last = max(int(name.split(".")[2]) for name in own if name.startswith("backbone.blocks."))
    renamed = {}
    for name, value in state.items():
        prefix = next((prefix for prefix in _FROM_SMP if name.startswith(prefix)), "")
        ours = _FROM_SMP.get(prefix, "") + name[len(prefix) :]
        if not ours.startswith("backbone.blocks.") or int(ours.split(".")[2]) <= last:
            renamed[ours] = value
    return renamed


def _check_backbone(file: WeightsFile, spec: SegmentationSpec) -> None:
    """Say that a model is of another backbone before a hundred names do."""
    theirs = recorded_backbone(file.header)
    if theirs is not None and network_of(theirs) != network_of(spec.backbone):
        raise UserError(
            f"{file.source} is a {spec.arch} on backbone {theirs!r}, the model is on {spec.backbone!r}: give "
            f"--backbone {theirs}, or other weights"
        )


def _with_auxiliary_of(model: SegmentationModel, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return weights with an auxiliary head if and only if the model has one."""
    there = any(name.startswith(_AUXILIARY) for name in state)
    if model.auxiliary is None:
        return {name: value for name, value in state.items() if not name.startswith(_AUXILIARY)}
    if there:
        return state
    _LOG.warning("the auxiliary head starts untrained: there is none in %s", source)
    return state | {name: value for name, value in model.state_dict().items() if name.startswith(_AUXILIARY)}


def class_difference(
    model: SegmentationModel,
    file: WeightsFile,
    state: Mapping[str, Tensor],
    class_names: Sequence[str] | None,
) -> str:
    """Say how the file's classes differ from the model's, in number or, where the file knows, in name."""
    own = model.state_dict()
    for name, value in state.items():
        if name.startswith(CLASS_OUTPUTS) and name.endswith("bias") and name in own and len(value) != len(own[name]):
            return f"weights from {file.source} are for {len(value)} classes, the model has {model.num_classes}"
    recorded = file.header.get("class_names")
    if class_names is None or not isinstance(recorded, list) or tuple(recorded) == tuple(class_names):
        return ""
    for number, (wanted, there) in enumerate(zip(class_names, recorded, strict=False)):
        if wanted != there:
            return f"class {number} is {there!r} in weights from {file.source} and {wanted!r} in the data"
    return ""
