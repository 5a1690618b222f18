"""The published EfficientDet configurations, and the rule that picks one for any other backbone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effdense.errors import UserError, nearest

if TYPE_CHECKING:
    from effdense.backbones.specs import BackboneSpec

SETTINGS = {
    "channels": "bifpn_channels",
    "bifpn_repeats": "bifpn_repeats",
    "head_repeats": "head_repeats",
    "anchor_scale": "anchor_scale",
    "min_level": "min_level",
    "max_level": "max_level",
    "num_scales": "num_scales",
    "aspect_ratios": "aspect_ratios",
    "act": "act",
    "fusion": "fusion",
}
"""The constants that trained weights are bound to, also where no shape tells, and what the settings call them."""

PAPER = "Tan, Pang, Le: EfficientDet, arXiv 1911.09070, Table 1"
AUTOML = "google/automl efficientdet/hparams_config.py"


@dataclass(frozen=True)
class EfficientDetSpec:
    """Every constant of one EfficientDet.

    Attributes:
        name: short name, ``"d0"`` or ``"lite3x"``.
        backbone: short name of the backbone.
        image_size: side of the square input, in pixels.
        channels: of every BiFPN level and of both heads.
        bifpn_repeats: how many BiFPN cells follow each other.
        head_repeats: separable convolutions in each head before its last one.
        source: where the numbers were published.
        anchor_scale: side of the smallest anchor of a level, in strides of the level.
        min_level: finest level, of stride 2 ** min_level.
        max_level: coarsest level.
        num_scales: anchor sizes in an octave.
        aspect_ratios: width and height factors of the anchors, in the order of the model's outputs.
        act: activation of BiFPN and heads.
        fusion: how BiFPN fuses maps: ``"fastattn"`` or ``"sum"``.
        drop_path_rate: stochastic depth of the backbone when training.
        mean: per channel, RGB in 0..1, that the published weights were trained with.
        std: the same.
    """

    name: str
    backbone: str
    image_size: int
    channels: int
    bifpn_repeats: int
    head_repeats: int
    source: str = f"{PAPER}; {AUTOML}"
    anchor_scale: float = 4.0
    min_level: int = 3
    max_level: int = 7
    num_scales: int = 3
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    act: str = "silu"
    fusion: str = "fastattn"
    drop_path_rate: float = 0.2
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def num_levels(self) -> int:
        """Levels of the pyramid."""
        return self.max_level - self.min_level + 1

    @property
    def anchors_per_cell(self) -> int:
        """Anchors at one position of one level."""
        return self.num_scales * len(self.aspect_ratios)


_HALF = (0.5, 0.5, 0.5)


def _lite(
    name: str,
    image_size: int,
    channels: int,
    repeats: tuple[int, int],
    anchor_scale: float = 4.0,
    drop_path_rate: float = 0.2,
) -> EfficientDetSpec:
    return EfficientDetSpec(
        name,
        name.removesuffix("x"),
        image_size,
        channels,
        *repeats,
        source=AUTOML,
        anchor_scale=anchor_scale,
        act="relu6",
        fusion="sum",
        drop_path_rate=drop_path_rate,
        mean=_HALF,
        std=_HALF,
    )


SPECS: dict[str, EfficientDetSpec] = {
    spec.name: spec
    for spec in (
        EfficientDetSpec("d0", "b0", 512, 64, 3, 3),
        EfficientDetSpec("d1", "b1", 640, 88, 4, 3),
        EfficientDetSpec("d2", "b2", 768, 112, 5, 3),
        EfficientDetSpec("d3", "b3", 896, 160, 6, 4),
        EfficientDetSpec("d4", "b4", 1024, 224, 7, 4),
        EfficientDetSpec("d5", "b5", 1280, 288, 7, 4),
        # From D6 on the maps are summed: the learned weights made training unstable (hparams_config.py).
        EfficientDetSpec("d6", "b6", 1280, 384, 8, 5, fusion="sum"),
        EfficientDetSpec("d7", "b6", 1536, 384, 8, 5, fusion="sum", anchor_scale=5.0),
        EfficientDetSpec("d7x", "b7", 1536, 384, 8, 5, fusion="sum", max_level=8),
        _lite("lite0", 320, 64, (3, 3), anchor_scale=3.0, drop_path_rate=0.0),
        _lite("lite1", 384, 88, (4, 3), anchor_scale=3.0),
        _lite("lite2", 448, 112, (5, 3), anchor_scale=3.0),
        _lite("lite3", 512, 160, (6, 4)),
        _lite("lite3x", 640, 200, (6, 4), anchor_scale=3.0),
        _lite("lite4", 640, 224, (7, 4)),
    )
}
"""The fifteen published configurations, by name."""

_RULE = ("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7x")
_LITE_RULE = ("lite0", "lite1", "lite2", "lite3", "lite4")


def get_spec(name: str, **overrides: Any) -> EfficientDetSpec:
    """Return the published configuration of this name, with the given constants replaced.

    Args:
        name: ``"d0"`` to ``"d7"``, ``"d7x"``, ``"lite0"`` to ``"lite4"``, ``"lite3x"``; effdet's names
            (``"tf_efficientdet_d0"``) are understood too.
        overrides: constants of EfficientDetSpec; None leaves the published value.

    Raises:
        UserError: for an unknown name or constant, with the nearest known one.
    """
    short = name.lower().removeprefix("tf_").removeprefix("efficientdet_").removeprefix("efficientdet-")
    if short not in SPECS:
        raise UserError(f"EfficientDet {name!r} is unknown{nearest(short, list(SPECS))}; known are {', '.join(SPECS)}")
    return overridden(SPECS[short], overrides)


def spec_for_backbone(name: str, **overrides: Any) -> EfficientDetSpec:
    """Return the configuration that goes with a backbone: its own, or that of the nearest one by parameters.

    ``b0`` to ``b6`` yield D0 to D6, ``b7`` D7x, ``lite0`` to ``lite4`` their own; any other backbone takes the row
    whose backbone has nearly as many parameters, with its own name put in. Lite rows are for Lite backbones only.

    Args:
        name: a short name or a timm name.
        overrides: constants of EfficientDetSpec; None leaves the rule's value.

    Raises:
        UserError: for an unknown backbone or constant.
    """
    from effdense.backbones.registry import resolve_backbone

    found = resolve_backbone(name)
    rows = _LITE_RULE if "lite" in found.timm_name else _RULE
    for row in rows:
        if SPECS[row].backbone == found.name:
            break
    else:
        parameters = _parameters_m(found)
        distances = {row: abs(parameters - _parameters_m(resolve_backbone(SPECS[row].backbone))) for row in rows}
        row = min(distances, key=distances.__getitem__)
    return overridden(dataclasses.replace(SPECS[row], backbone=name), overrides)


def _parameters_m(spec: BackboneSpec) -> float:
    """Parameters of the whole classification network, in millions: as published, else counted without memory."""
    if spec.params_m is not None:
        return spec.params_m
    import timm
    import torch

    with torch.device("meta"):
        network = timm.create_model(spec.timm_name.partition(".")[0], pretrained=False)
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def overridden(spec: EfficientDetSpec, overrides: dict[str, Any]) -> EfficientDetSpec:
    """Return the constants with some replaced; None leaves one as it is.

    Raises:
        UserError: for an unknown constant, with the nearest known one.
    """
    known = [field.name for field in dataclasses.fields(spec) if field.name not in ("name", "source")]
    for key in overrides:
        if key not in known:
            raise UserError(f"EfficientDet has no constant {key!r}{nearest(key, known)}; it has {', '.join(known)}")
    changes = {key: value for key, value in overrides.items() if value is not None}
    return dataclasses.replace(spec, **changes) if changes else spec


def spec_from_dict(values: dict[str, Any]) -> EfficientDetSpec:
    """Return the constants that `dataclasses.asdict` took apart, after a way through JSON."""
    ratios = tuple((float(wide), float(high)) for wide, high in values["aspect_ratios"])
    lists = {name: tuple(values[name]) for name in ("mean", "std")}
    return EfficientDetSpec(**{**values, **lists, "aspect_ratios": ratios})


def recorded_spec(header: Mapping[str, Any], source: str) -> EfficientDetSpec | None:
    """Return the constants that a detector's file records, or None where it records none.

    Args:
        header: of the file.
        source: the file, for the error.

    Raises:
        UserError: they are not those of a detector of this version.
    """
    model = header.get("model")
    if not isinstance(model, Mapping):
        return None
    try:
        return spec_from_dict(dict(model))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"the header of {source} is damaged or of another version of effdense ({reason}); train or save it again"
        ) from error


def differing_settings(recorded: EfficientDetSpec, spec: EfficientDetSpec) -> dict[str, Any]:
    """Return the settings that would make a detector the recorded one, where it is not.

    Args:
        recorded: the constants to come to.
        spec: those to come from.

    Returns:
        Values by name; None is the published value, which for the shapes of the anchors no number stands for.
    """
    return {
        setting: _as_setting(getattr(recorded, constant))
        for constant, setting in SETTINGS.items()
        if getattr(recorded, constant) != getattr(spec, constant)
    }


def shapes_of(aspect_ratios: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the width and height factors of anchors of these aspect ratios (width over height), all of one area."""
    return tuple((math.sqrt(ratio), math.sqrt(1 / ratio)) for ratio in aspect_ratios)


def _as_setting(value: Any) -> Any:
    """Return a constant as the settings have it: of factors of width and height the ratios, and None for any others."""
    if not isinstance(value, tuple):
        return value
    ratios = tuple(float(f"{wide / high:.12g}") for wide, high in value)
    return ratios if shapes_of(ratios) == value else None
