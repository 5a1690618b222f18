"""EfficientDet's segmentation head (arXiv 1911.09070, section 5.2).

The pyramid is extended to P2-P7 and the pixels are classified on P2 alone; 128 channels in the BiFPN, 256 in the head,
and both repeated three times. The paper's model on EfficientNet-B4 has 17 M parameters. What it leaves open is done as
in EfficientDet's detection heads: separable convolutions, each with BatchNorm and activation, and one more to classify.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from effdense.necks.bifpn import BiFPN, FinerLevel
from effdense.necks.separable import SeparableConv, activation, batch_norm, in_place, init_fan_in_normal

LEVELS = 6
"""P2 to P7."""


class BiFPNDecoder(nn.Module):
    """BiFPN over P2-P7, of which P2 comes out."""

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int], channels: int = 128, repeats: int = 3):
        """Build the pyramid.

        Args:
            in_channels: of the backbone's feature maps, finest first; the finest is P2.
            in_strides: of the same maps.
            channels: of every level, and of the map that comes out.
            repeats: how many times the two-way fusion is applied.
        """
        super().__init__()
        self.channels = channels
        self.pyramid = BiFPN(in_channels, in_strides, LEVELS, channels, repeats, finest_only=True)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the backbone's features, finest first, to P2 (B, channels, h, w); maps finer than P2 are left aside."""
        levels: list[Tensor] = self.pyramid(features)
        return levels[0]


class DetectorPyramidDecoder(nn.Module):
    """P2 below the pyramid of an EfficientDet: what one backbone and one BiFPN serve both tasks with."""

    def __init__(self, pyramid: BiFPN, finest: FinerLevel):
        """Put the parts together.

        Args:
            pyramid: over P3 and coarser levels.
            finest: from the backbone's map of P2's size and from P3 to P2.
        """
        super().__init__()
        self.channels = finest.channels
        self.pyramid = pyramid
        self.finest = finest

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the backbone's features, finest first, to P2 (B, channels, h, w)."""
        levels: list[Tensor] = self.pyramid(features)
        p2: Tensor = self.finest(features[-self.pyramid.num_inputs - 1], levels[0])
        return p2


class BiFPNHead(nn.Module):
    """Separable convolutions with BatchNorm and activation, then the classes of every pixel."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 256,
        repeats: int = 3,
        upsampling: int = 4,
        act: str = "silu",
    ):
        """Build the head.

        Args:
            in_channels: of the map that comes in.
            num_classes: K.
            channels: of the convolutions.
            repeats: convolutions before the last one.
            upsampling: factor from the map to the image.
            act: ``"silu"`` or ``"relu6"``.
        """
        super().__init__()
        widths = [in_channels] + [channels] * repeats
        self.convs = nn.ModuleList(SeparableConv(widths[i], channels) for i in range(repeats))
        self.norms = nn.ModuleList(batch_norm(channels) for _ in range(repeats))
        self.act = activation(act)
        self.predict = SeparableConv(widths[-1], num_classes, bias=True)
        self.upsampling = upsampling
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_fan_in_normal(module)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to logits (B, K, h * upsampling, w * upsampling)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.act(norm(conv(x)))
        return F.interpolate(self.predict(x), scale_factor=self.upsampling, mode="bilinear")

    def specialise(self) -> None:
        """Need no gradients; see `effdense.inference_form`."""
        self.act = in_place(self.act)
