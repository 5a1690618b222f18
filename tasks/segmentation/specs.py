"""The architectures of segmentation: what each needs of a backbone, and the constants of one model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from effdense.errors import UserError, nearest


@dataclass(frozen=True)
class Architecture:
    """What a decoder is, and what it needs of backbone and image.

    Attributes:
        name: short name.
        paper: where it was published.
        strides: of the backbone's levels that it reads, finest first, as they are without dilation.
        output_stride: of the coarsest level, by default.
        output_strides: those that it takes; below the coarsest of ``strides``, the deep stages are dilated.
        decoder_stride: stride of the map that the decoder yields; None is the output stride. The head enlarges its
            logits by this factor.
        least_cells: rows and columns that the coarsest level must have.
        norm_stride: of the coarsest map that BatchNorm follows, infinite where that is the mean of an image; None is
            the output stride. Training on a single image, BatchNorm learns nothing from a map of one cell.
    """

    name: str
    paper: str
    strides: tuple[int, ...] = (2, 4, 8, 16, 32)
    output_stride: int = 32
    output_strides: tuple[int, ...] = (32,)
    decoder_stride: int | None = 1
    least_cells: int = 1
    norm_stride: float | None = None

    @property
    def depth(self) -> int:
        """How many times the backbone halves the image, dilation left aside: segmentation_models_pytorch's depth."""
        return self.strides[-1].bit_length() - 1

    @property
    def least_batch(self) -> int:
        """Fewest images that it can be trained on at once, if they are large."""
        return 1 if self.norm_stride is None or math.isfinite(self.norm_stride) else 2

    def upsampling(self, output_stride: int) -> int:
        """Return the factor by which the head enlarges its logits."""
        return output_stride if self.decoder_stride is None else self.decoder_stride


_FROM_4 = (4, 8, 16, 32)
_POOLED = math.inf

ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("unet", "Ronneberger et al., arXiv 1505.04597", output_strides=(8, 16, 32)),
        Architecture("unetplusplus", "Zhou et al., arXiv 1807.10165"),
        Architecture("manet", "Fan et al., doi 10.1109/ACCESS.2020.3025372"),
        Architecture("linknet", "Chaurasia and Culurciello, arXiv 1707.03718"),
        Architecture("fpn", "Kirillov et al., arXiv 1901.02446", _FROM_4, decoder_stride=4),
        Architecture("pspnet", "Zhao et al., arXiv 1612.01105", (4, 8), 8, (8,), 8),
        Architecture("deeplabv3", "Chen et al., arXiv 1706.05587", _FROM_4, 8, (8, 16, 32), None, 1, _POOLED),
        Architecture("deeplabv3plus", "Chen et al., arXiv 1802.02611", _FROM_4, 16, (8, 16, 32), 4, 1, _POOLED),
        Architecture("pan", "Li et al., arXiv 1805.10180", _FROM_4, 16, (16, 32), 4, 8, _POOLED),
        Architecture("upernet", "Xiao et al., arXiv 1807.10221", _FROM_4, 32, (8, 16, 32), 4, 1, _POOLED),
        Architecture("segformer", "Xie et al., arXiv 2105.15203", output_strides=(8, 16, 32), decoder_stride=4),
        Architecture("bifpn", "Tan et al., arXiv 1911.09070, section 5.2", _FROM_4, decoder_stride=4, norm_stride=128),
    )
}
"""The twelve architectures by name; all but bifpn are segmentation_models_pytorch's, with its defaults."""


@dataclass(frozen=True)
class PyramidSpec:
    """The BiFPN of an EfficientDet, P3 and coarser, that a ``bifpn`` model reads in place of one of its own.

    Attributes:
        channels: of every level.
        repeats: how many times the two-way fusion is applied.
        levels: of the pyramid; five are P3 to P7.
        fusion: ``"fastattn"`` or ``"sum"``.
        act: ``"silu"`` or ``"relu6"``.
    """

    channels: int
    repeats: int
    levels: int
    fusion: str
    act: str

    @property
    def norm_stride(self) -> int:
        """Stride of the coarsest level, each of which BatchNorm follows."""
        return 1 << (self.levels + 2)


@dataclass(frozen=True)
class SegmentationSpec:
    """What a model is rebuilt from, the number of classes aside.

    Attributes:
        arch: name of the architecture.
        backbone: name of the backbone.
        output_stride: of the backbone's coarsest level.
        auxiliary: whether an auxiliary head is trained beside the decoder.
        drop_path_rate: stochastic depth of the backbone when training.
        pyramid: with ``bifpn``, the detector's pyramid below which it works; None is one of its own, P2 to P7.
    """

    arch: str
    backbone: str
    output_stride: int
    auxiliary: bool = False
    drop_path_rate: float = 0.0
    pyramid: PyramidSpec | None = None


def get_architecture(name: str) -> Architecture:
    """Return the architecture of this name; ``"unet++"`` and ``"DeepLabV3+"`` are understood too.

    Raises:
        UserError: there is none; the message names the near ones.
    """
    plain = name.lower().replace("+", "plus")
    if plain not in ARCHITECTURES:
        raise UserError(
            f"architecture {name!r} is unknown{nearest(plain, list(ARCHITECTURES))}; "
            f"known are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[plain]


def choose_spec(
    arch: str,
    backbone: str,
    *,
    output_stride: int | None = None,
    auxiliary: bool = False,
    drop_path_rate: float = 0.0,
    pyramid: PyramidSpec | None = None,
) -> SegmentationSpec:
    """Return the constants of a model, with the architecture's own output stride where none is given.

    Raises:
        UserError: the architecture is unknown, does not take this output stride, or reads no pyramid.
    """
    known = get_architecture(arch)
    stride = known.output_stride if output_stride is None else output_stride
    if stride not in known.output_strides:
        raise UserError(f"output_stride is {stride}; {known.name} takes {' or '.join(map(str, known.output_strides))}")
    if pyramid is not None and known.name != "bifpn":
        raise UserError(f"{known.name} reads no detector's pyramid; bifpn does")
    return SegmentationSpec(known.name, backbone, stride, auxiliary, drop_path_rate, pyramid)


def spec_from_dict(values: dict[str, Any]) -> SegmentationSpec:
    """Return the constants that `dataclasses.asdict` took apart, after a way through JSON.

    Raises:
        UserError: a name or value that no model of this version has.
    """
    known = [field.name for field in dataclasses.fields(SegmentationSpec)]
    for name in values:
        if name not in known:
            raise UserError(f"a segmentation model has no constant {name!r}{nearest(name, known)}")
    for name, kind in (("arch", str), ("backbone", str), ("output_stride", int), ("auxiliary", bool)):
        if name not in values:
            raise UserError(f"the constants of a segmentation model lack {name!r}")
        if type(values[name]) is not kind:
            raise UserError(f"{name} of a segmentation model is {values[name]!r}; it must be of type {kind.__name__}")
    rate = values.get("drop_path_rate", 0.0)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise UserError(f"drop_path_rate of a segmentation model is {rate!r}; it must be a number")
    return choose_spec(
        values["arch"],
        values["backbone"],
        output_stride=values["output_stride"],
        auxiliary=values["auxiliary"],
        drop_path_rate=float(rate),
        pyramid=_pyramid_from(values.get("pyramid")),
    )


def _pyramid_from(values: Any) -> PyramidSpec | None:
    if values is None:
        return None
    kinds = {"channels": int, "repeats": int, "levels": int, "fusion": str, "act": str}
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise UserError(f"pyramid of a segmentation model is {values!r}; it must give {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise UserError(f"{name} of a pyramid is {values[name]!r}; it must be of type {kind.__name__}")
    return PyramidSpec(**values)
