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
from torch import nn

from effdense.tasks.segmentation.bifpn_head import BiFPNDecoder, BiFPNHead
from effdense.tasks.segmentation.specs import Architecture

_STEPS_UP = (256, 128, 64, 32, 16)
"""Channels of the five steps up in Unet, UnetPlusPlus and MAnet."""

_ASPP = {"out_channels": 256, "atrous_rates": (12, 24, 36), "aspp_dropout": 0.5}
"""Atrous spatial pyramid pooling in both DeepLabs."""

# From channels (the image's 3 first, 0 for a level that is not read) and output stride to a decoder.
_Builder = Callable[[list[int], int], nn.Module]

_BUILDERS: dict[str, tuple[_Builder, int, int]] = {
    "unet": (lambda channels, _: UnetDecoder(channels, _STEPS_UP), 16, 3),
    "unetplusplus": (lambda channels, _: UnetPlusPlusDecoder(channels, _STEPS_UP), 16, 3),
    "manet": (lambda channels, _: MAnetDecoder(channels, _STEPS_UP), 16, 3),
    "linknet": (lambda channels, _: LinknetDecoder(channels), 32, 1),
    "fpn": (lambda channels, _: FPNDecoder(channels), 128, 1),
    "pspnet": (lambda channels, _: PSPDecoder(channels), 512, 3),
    "deeplabv3": (lambda channels, _: DeepLabV3Decoder(channels[-1], aspp_separable=False, **_ASPP), 256, 1),
    "deeplabv3plus": (
        lambda channels, stride: DeepLabV3PlusDecoder(
            channels, len(channels) - 1, output_stride=stride, aspp_separable=True, **_ASPP
        ),
        256,
        1,
    ),
    "pan": (lambda channels, _: PANDecoder(channels, len(channels) - 1, decoder_channels=32), 32, 3),
    "upernet": (lambda channels, _: UPerNetDecoder(channels), 256, 1),
    "segformer": (lambda channels, _: SegformerDecoder(channels), 256, 1),
}
"""Of each architecture the decoder, the channels that come out of it, and the kernel size of the head."""

_LEFT_AS_PYTORCH_MAKES_THEM = ("deeplabv3", "deeplabv3plus")


def build_decoder(
    arch: Architecture, channels: Sequence[int], strides: Sequence[int], num_classes: int
) -> tuple[nn.Module, nn.Module]:
    """Build a decoder and its head, with random weights by smp's own rule.

    Args:
        arch: which.
        channels: of the backbone's feature maps, finest first.
        strides: of the same maps, dilation counted; the last one is the output stride.
        num_classes: K.

    Returns:
        The decoder, which takes one map (or None) for each halving of the image, and the head, which enlarges its
        logits (B, K, h, w) to the image's size.
    """
    factor = arch.upsampling(strides[-1])
    if arch.name == "bifpn":
        bifpn = BiFPNDecoder(channels[-len(arch.strides) :], strides[-len(arch.strides) :])
        return bifpn, BiFPNHead(bifpn.channels, num_classes, upsampling=factor)
    build, width, kernel_size = _BUILDERS[arch.name]
    unread = arch.depth - len(channels)
    decoder = build([3, *[0] * unread, *channels], strides[-1])
    head: nn.Module = SegmentationHead(width, num_classes, kernel_size=kernel_size, upsampling=factor)
    if arch.name not in _LEFT_AS_PYTORCH_MAKES_THEM:
        initialize_decoder(decoder)
        initialize_head(head)
    return decoder, head
