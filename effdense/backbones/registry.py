"""Backbones by name: list them, resolve a name, create one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from effdense.backbones.specs import SPECS, BackboneSpec
from effdense.errors import UserError, nearest

if TYPE_CHECKING:
    from effdense.backbones.backbone import Backbone

_BY_NAME: dict[str, BackboneSpec] = {}


def register_backbone(spec: BackboneSpec) -> None:
    """Make a backbone known under its alias and its timm name.

    Raises:
        ValueError: one of the two names is taken.
    """
    names = {spec.name, spec.timm_name}
    if taken := sorted(names & _BY_NAME.keys()):
        raise ValueError(f"backbone {taken[0]!r} is registered already, as {_BY_NAME[taken[0]]}")
    _BY_NAME.update(dict.fromkeys(names, spec))


for _known in SPECS:
    register_backbone(_known)


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern: short aliases first, then timm's EfficientNets."""
    aliases = list(dict.fromkeys(spec.name for spec in _BY_NAME.values()))
    return [name for name in dict.fromkeys((*aliases, *_timm_names())) if fnmatchcase(name, pattern)]


def resolve_backbone(name: str) -> BackboneSpec:
    """Return what is known of a backbone.

    Args:
        name: alias (``b2``) or name of a timm EfficientNet, either with a timm tag (``b2.aa_in1k``) that says which
            pretrained weights ``auto`` and ``imagenet`` mean.

    Raises:
        UserError: no such backbone or no such tag; the message lists the near ones.
    """
    base, dot, tag = name.partition(".")
    spec = _BY_NAME.get(base)
    if spec is None:
        if base not in _timm_names():
            short = ", ".join(dict.fromkeys(known.name for known in _BY_NAME.values()))
            near = nearest(base, list_backbones())
            raise UserError(f"unknown backbone {name!r}{near}; known are {short} and timm's EfficientNets")
        spec = BackboneSpec(base, base)
    if not dot:
        return spec
    tags = _timm_tags(spec.timm_name)
    if tag not in tags:
        known = f"its tags are {', '.join(tags)}" if tags else "it has no pretrained weights"
        raise UserError(f"backbone {base!r} has no weights tagged {tag!r}{nearest(tag, tags)}; {known}")
    return replace(spec, timm_name=f"{spec.timm_name}.{tag}")


def network_of(name: str) -> str:
    """Return timm's name of a backbone, without the tag that says which pretrained weights are meant.

    Raises:
        UserError: no such backbone or no such tag.
    """
    return resolve_backbone(name).timm_name.partition(".")[0]


def create_backbone(
    name: str,
    *,
    weights: str = "none",
    out_strides: Sequence[int] = (2, 4, 8, 16, 32),
    depth: float | None = None,
    width: float | None = None,
    drop_path_rate: float = 0.0,
    output_stride: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    offline: bool = False,
) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: alias or timm name, as for ``resolve_backbone``.
        weights: "none" (random, nothing is looked for), "auto" (ImageNet weights where they can be had, else random and
            a warning), "imagenet" (the same but an error), or a file.
        out_strides: strides at which features are returned, as they are with ``output_stride=32``.
        depth: replaces the named network's factor on depth; ``b0`` with depth 1.4 and width 1.2 is ``b3``.
        width: replaces the named network's factor on width.
        drop_path_rate: stochastic depth, the rate of the last block.
        output_stride: 8, 16 or 32; below 32 the deep stages are dilated instead of strided.
        mean: of the input, in 0..1, one per channel; default: that of the weights.
        std: of the input, in 0..1, one per channel; default: that of the weights.
        offline: never look to the network for weights.

    Raises:
        UserError: an argument that cannot be, or weights that cannot be had or do not fit.
    """
    from effdense.backbones.build import build_backbone

    return build_backbone(
        resolve_backbone(name), weights, out_strides, depth, width, drop_path_rate, output_stride, mean, std, offline
    )


def _timm_names() -> list[str]:
    import timm

    names: list[str] = timm.list_models("*efficientnet*", module="efficientnet")
    return names


def _timm_tags(timm_name: str) -> list[str]:
    import timm

    names: list[str] = timm.list_pretrained(f"{timm_name}.*")
    return [name.partition(".")[2] for name in names]
