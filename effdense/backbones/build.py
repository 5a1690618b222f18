"""From a spec to a backbone: build timm's network, cut it, fill it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import efficientnet as timm_efficientnet
from timm.models._efficientnet_builder import BN_EPS_TF_DEFAULT
from torch import Tensor, nn

from effdense.backbones.backbone import Backbone
from effdense.backbones.naming import HEAD, to_timm
from effdense.backbones.padding import use_same_padding
from effdense.backbones.registry import list_backbones, resolve_backbone
from effdense.backbones.sources import (
    LITE_MEAN,
    LITE_STD,
    Pretrained,
    WeightsUnavailableError,
    imagenet_weights,
    pretrained_statistics,
)
from effdense.backbones.specs import BackboneSpec
from effdense.backbones.weights import load_complete, read_state, recorded_backbone, recorded_statistics
from effdense.errors import UserError, nearest

_LOG = logging.getLogger("effdense")

_SOURCES = ("auto", "imagenet", "none")

_GENERATORS = {
    "b": "_gen_efficientnet",
    "v2_base": "_gen_efficientnetv2_base",
    "v2_s": "_gen_efficientnetv2_s",
    "v2_m": "_gen_efficientnetv2_m",
    "v2_l": "_gen_efficientnetv2_l",
    "v2_xl": "_gen_efficientnetv2_xl",
    "lite": "_gen_efficientnet_lite",
    "edge": "_gen_efficientnet_edge",
}
"""timm's builder for each family of the table; each takes factors on channels and depth."""


def build_network(
    spec: BackboneSpec, depth: float | None = None, width: float | None = None, **arguments: Any
) -> nn.Module:
    """Build timm's network with random weights; nothing is downloaded.

    Args:
        spec: which network.
        depth: replaces the spec's factor on depth.
        width: replaces the spec's factor on width.
        arguments: for timm's constructor, as ``num_classes`` or ``drop_path_rate``.

    Raises:
        UserError: a network outside the table is asked to scale.
    """
    if not is_scaled(spec, depth, width):
        network: nn.Module = timm.create_model(spec.timm_name, pretrained=False, **arguments)
        return network
    if spec.family not in _GENERATORS:
        raise UserError(
            f"backbone {spec.name!r} cannot be scaled by depth and width; those that can are "
            f"{', '.join(name for name in list_backbones() if 'efficientnet' not in name)}"
        )
    generate = partial(getattr(timm_efficientnet, _GENERATORS[spec.family]), spec.timm_name.partition(".")[0])
    scaled: nn.Module = generate(
        channel_multiplier=spec.width if width is None else width,
        depth_multiplier=spec.depth if depth is None else depth,
        bn_eps=BN_EPS_TF_DEFAULT,
        pad_type="same",
        **arguments,
    )
    return scaled


def is_scaled(spec: BackboneSpec, depth: float | None, width: float | None) -> bool:
    """Return whether the factors make another network than the named one."""
    return (depth is not None and depth != spec.depth) or (width is not None and width != spec.width)


def build_backbone(
    spec: BackboneSpec,
    weights: str,
    out_strides: Sequence[int],
    depth: float | None,
    width: float | None,
    drop_path_rate: float,
    output_stride: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    offline: bool,
) -> Backbone:
    """Build a backbone and load its weights; arguments and errors as for ``create_backbone``."""
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride is {output_stride}; it must be 8, 16 or 32")
    if not 0 <= drop_path_rate < 1:
        raise UserError(f"drop_path_rate is {drop_path_rate}; it must be from 0 to below 1")
    for what, factor in (("depth", depth), ("width", width)):
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            raise UserError(f"{what} is {factor}; a factor on the {what} of a network is a number above 0")
    network = build_network(
        spec, depth, width, num_classes=0, drop_path_rate=drop_path_rate, output_stride=output_stride
    )
    use_same_padding(network)
    default_mean, default_std = pretrained_statistics(spec)
    backbone = Backbone(network, name=spec.name, out_strides=out_strides, mean=default_mean, std=default_std)
    loaded = _find_weights(spec, weights, scaled=is_scaled(spec, depth, width), offline=offline)
    if loaded is not None:
        _fill(backbone, network, loaded)
        default_mean, default_std = loaded.mean, loaded.std
    backbone.set_statistics(default_mean if mean is None else mean, default_std if std is None else std)
    return backbone


def _find_weights(spec: BackboneSpec, weights: str, *, scaled: bool, offline: bool) -> Pretrained | None:
    """Return the weights that were asked for, or None for random ones."""
    if weights == "none":
        return None
    if weights not in ("auto", "imagenet"):
        if not Path(weights).exists() and Path(weights).name == str(weights):
            near = nearest(weights, _SOURCES)
            raise UserError(f"weights is {weights!r}, which is no file; expected {', '.join(_SOURCES)} or a file{near}")
        return _of_file(spec, weights, *read_state(weights))
    try:
        if scaled:
            raise WeightsUnavailableError("no weights exist for a network scaled by depth and width")
        return imagenet_weights(spec, offline=offline)
    except WeightsUnavailableError as error:
        if weights == "imagenet":
            raise UserError(
                f"ImageNet weights for backbone {spec.name!r} cannot be had: {error}; use --weights FILE, or none"
            ) from error
        _LOG.warning("NO PRETRAINED WEIGHTS for backbone %r, it starts from RANDOM ones: %s", spec.name, error)
        return None


def _of_file(spec: BackboneSpec, path: str | Path, state: dict[str, Tensor], header: dict[str, Any]) -> Pretrained:
    """Return what was read from a file, with the mean and std that it is for."""
    lite = spec.family == "lite" and "_conv_stem.weight" in state
    default = (LITE_MEAN, LITE_STD) if lite else pretrained_statistics(spec)
    mean, std = recorded_statistics(header) or default
    return Pretrained(state, f"file {path}", mean, std, **_told(header))


def fill_backbone(backbone: Backbone, path: str | Path, state: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Load what was read from a file into a backbone made already, as ``create_backbone`` does, with its mean and std.

    Args:
        backbone: to be filled.
        path: the file, for messages.
        state: its weights, by its own names; of a backbone or of a model that has one.
        header: what else it says.

    Raises:
        UserError: no such backbone is in it, or one that ends early, as a PSPNet's does.
    """
    spec = resolve_backbone(backbone.name)
    loaded = _of_file(spec, path, state, header)
    _fill(backbone, build_network(spec, num_classes=0), loaded)
    backbone.set_statistics(loaded.mean, loaded.std)


def _told(header: dict[str, Any]) -> dict[str, str]:
    """Return what the header of an effdense file says of the model that its weights are from."""
    task, name = header.get("task"), recorded_backbone(header)
    return {"task": task if isinstance(task, str) else "", "backbone": name or ""}


def _fill(backbone: Backbone, network: nn.Module, loaded: Pretrained) -> None:
    """Load weights into a backbone; the classifier's head and stages deeper than the backbone are not needed."""
    stages = network.get_submodule("blocks").children()
    state, naming = to_timm(loaded.state, [len(list(stage.children())) for stage in stages], loaded.source)
    own, whole = backbone.state_dict().keys(), network.state_dict().keys()
    needed = {
        name: value for name, value in state.items() if not name.startswith(HEAD) and (name in own or name not in whole)
    }
    _check_depth(backbone, needed, loaded.source)
    try:
        load_complete(backbone, needed, source=loaded.source)
    except UserError as error:
        if loaded.backbone in ("", backbone.name):
            raise
        raise UserError(f"{error}; the file is for backbone {loaded.backbone!r}, not {backbone.name!r}") from error
    backbone.weights_source = f"{loaded.source} ({naming} names)"
    if loaded.task:
        _LOG.info(
            "backbone %s takes all of its %d weights from %s, a %s file of effdense, and its mean %s and std %s",
            *(backbone.name, len(needed), loaded.source, loaded.task, _rounded(loaded.mean), _rounded(loaded.std)),
        )


def _check_depth(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a backbone that was cut, as PSPNet's is, where a deeper one is to be filled."""
    last = max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    lacking = [str(number) for number in range(last + 1, len(backbone.blocks))]
    if last >= 0 and lacking:
        raise UserError(
            f"weights from {source} are of a backbone that ends after stage {last}, as a PSPNet's does; here "
            f"{backbone.name!r} needs stages {', '.join(lacking)} too: take weights of a whole backbone"
        )


def _rounded(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def published_size(spec: BackboneSpec) -> tuple[int, int]:
    """Return the height and width at which a network's numbers were published; timm's own where the table has none."""
    if spec.resolution is not None:
        return spec.resolution, spec.resolution
    configuration = timm.get_pretrained_cfg(spec.timm_name)
    assert configuration is not None, spec
    _, height, width = configuration.test_input_size or configuration.input_size
    return height, width
