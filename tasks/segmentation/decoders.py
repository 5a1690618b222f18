"""Decoders and heads of segmentation_models_pytorch (smp), put together from a backbone's channels alone.

Each builder does what smp's model of the same name does with its defaults. None of smp's encoders is built. A decoder
takes a list of maps, one for each halving of the image: the image itself (3 channels, stride 1) first, and None in
place of a level that it does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from effdense.necks.bifpn import BiFPN, FinerLevel
from effdense.tasks.segmentation.bifpn_head import BiFPNDecoder, BiFPNHead, DetectorPyramidDecoder
from effdense.tasks.segmentation.specs import Architecture, PyramidSpec


class RunningSum(nn.Module):
    """Adds maps one after the other, where smp's FPN stacks all of them first and holds each twice."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the sum of maps of one size, (B, C, h, w)."""
        total = maps[0]
        for one in maps[1:]:
            total = total + one
        return total


def _fpn(channels: list[int]) -> FPNDecoder:
    decoder = FPNDecoder(channels)
    decoder.merge = RunningSum()
    return decoder


_STEPS_UP = (256, 128, 64, 32, 16)
"""Channels of the five steps up in Unet, UnetPlusPlus and MAnet."""

_SMP_RATES = (12, 24, 36)
_RATES_AT_32 = (3, 6, 9)
"""Atrous rates of both DeepLabs: smp's at strides 8 and 16. The paper halves them where the stride doubles: (12, 24,
36) at 8, (6, 12, 18) at 16 (arXiv 1706.05587, section 4.2); at 32, where nothing is dilated, they are halved again."""

# From channels (the image's 3 first, 0 for a level that is not read) and output stride to a decoder.
_Builder = Callable[[list[int], int], nn.Module]

_BUILDERS: dict[str, tuple[_Builder, int, int]] = {
    "unet": (lambda channels, _: UnetDecoder(channels, _STEPS_UP), 16, 3),
    "unetplusplus": (lambda channels, _: UnetPlusPlusDecoder(channels, _STEPS_UP), 16, 3),
    "manet": (lambda channels, _: MAnetDecoder(channels, _STEPS_UP), 16, 3),
    "linknet": (lambda channels, _: LinknetDecoder(channels), 32, 1),
    "fpn": (lambda channels, _: _fpn(channels), 128, 1),
    "pspnet": (lambda channels, _: PSPDecoder(channels), 512, 3),
    "deeplabv3": (lambda channels, stride: _deeplabv3(channels, stride), 256, 1),
    "deeplabv3plus": (lambda channels, stride: _deeplabv3plus(channels, stride), 256, 1),
    "pan": (lambda channels, _: PANDecoder(channels, len(channels) - 1, decoder_channels=32), 32, 3),
    "upernet": (lambda channels, _: UPerNetDecoder(channels), 256, 1),
    "segformer": (lambda channels, _: SegformerDecoder(channels), 256, 1),
}
"""Of each architecture the decoder, the channels that come out of it, and the kernel size of the head."""

_LEFT_AS_PYTORCH_MAKES_THEM = ("deeplabv3", "deeplabv3plus")


def build_decoder(
    arch: Architecture,
    channels: Sequence[int],
    strides: Sequence[int],
    num_classes: int,
    pyramid: PyramidSpec | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Build a decoder and its head, with random weights by smp's own rule.

    Args:
        arch: which.
        channels: of the backbone's feature maps, finest first.
        strides: of the same maps, dilation counted; the last one is the output stride.
        num_classes: K.
        pyramid: of the detector whose levels ``bifpn`` reads; None is a pyramid of its own.

    Returns:
        The decoder, which takes one map (or None) for each halving of the image, and the head, which enlarges its
        logits (B, K, h, w) to the image's size.
    """
    factor = arch.upsampling(strides[-1])
    if arch.name == "bifpn":
        read = len(arch.strides)
        if pyramid is None:
            bifpn: nn.Module = BiFPNDecoder(channels[-read:], strides[-read:])
        else:
            bifpn = _below_detector(channels[-read:], strides[-read:], pyramid)
        act = "silu" if pyramid is None else pyramid.act
        return bifpn, BiFPNHead(bifpn.channels, num_classes, upsampling=factor, act=act)  # type: ignore[arg-type]
    build, width, kernel_size = _BUILDERS[arch.name]
    unread = arch.depth - len(channels)
    decoder = build([3, *[0] * unread, *channels], strides[-1])
    head: nn.Module = SegmentationHead(width, num_classes, kernel_size=kernel_size, upsampling=factor)
    if arch.name not in _LEFT_AS_PYTORCH_MAKES_THEM:
        initialize_decoder(decoder)
        initialize_head(head)
    return decoder, head


def _deeplabv3(channels: list[int], stride: int) -> nn.Module:
    decoder: nn.Module = DeepLabV3Decoder(channels[-1], 256, _rates(stride), aspp_separable=False, aspp_dropout=0.5)
    return decoder


def _deeplabv3plus(channels: list[int], stride: int) -> nn.Module:
    known = min(stride, 16)  # smp's has no 32
    decoder: nn.Module = DeepLabV3PlusDecoder(
        channels, len(channels) - 1, 256, _rates(stride), known, aspp_separable=True, aspp_dropout=0.5
    )
    if stride == 32:
        decoder.up = nn.Upsample(scale_factor=8, mode="bilinear", align_corners=True)  # to stride 4, as smp's is
    return decoder


def _rates(stride: int) -> tuple[int, int, int]:
    return _RATES_AT_32 if stride == 32 else _SMP_RATES


def _below_detector(channels: Sequence[int], strides: Sequence[int], spec: PyramidSpec) -> DetectorPyramidDecoder:
    """P2 below a BiFPN over P3 and coarser, made as a detector's."""
    pyramid = BiFPN(channels[1:], strides[1:], spec.levels, spec.channels, spec.repeats, spec.fusion, spec.act)
    return DetectorPyramidDecoder(pyramid, FinerLevel(channels[0], spec.channels, spec.fusion, spec.act))
