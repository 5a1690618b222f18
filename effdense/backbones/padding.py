"""TensorFlow's SAME padding, in numbers that an exporter can follow.

timm counts the padding of each strided convolution by a division in floating point and a maximum. For an image of any
size, what ``torch.export`` has to say of the deepest map then grows to pages, and takes minutes. The same numbers come
of a remainder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from effdense.ops.cpu_training import fast_depthwise, is_fast_depthwise


class SameConv2d(nn.Conv2d):
    """Strided convolution, (B, C, h, w) to (B, C', ceil(h / stride), ceil(w / stride)); an odd pixel is added last."""

    pads_in_kernel = False
    """Whether to pad without a copy of the map; not for training, whose gradients would go through a larger kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad, then convolve."""
        high, wide = (self._padding(axis, input.shape[axis + 2]) for axis in (0, 1))
        if self.pads_in_kernel and not torch.compiler.is_compiling():  # exported, it would hold for one parity
            # A pixel more on the last side than on the first is as much on both, under a kernel that begins with zeros.
            weight = F.pad(self.weight, (wide % 2, 0, high % 2, 0))
            padding = ((high + 1) // 2, (wide + 1) // 2)
            return F.conv2d(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        if self._trains_fast(input):
            pads = (high // 2, wide // 2, high - high // 2, wide - wide // 2)
            return fast_depthwise(input, self.weight, (self.stride[0], self.stride[1]), pads)
        padded = F.pad(input, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)

    def _trains_fast(self, input: Tensor) -> bool:
        if torch.compiler.is_compiling() or self.dilation != (1, 1):
            return False
        return is_fast_depthwise(input, self.weight, self.bias, self.groups)

    def specialise(self) -> None:
        """Pad without a copy, where the kernel has no gaps; see `effdense.inference_form`."""
        self.pads_in_kernel = self.dilation == (1, 1)

    def _padding(self, axis: int, size: int) -> int:
        """Return the rows or columns to add to ``size`` of them."""
        stride = self.stride[axis]
        span = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        missing = stride - 1 - (size - 1) % stride  # to whole strides; compilers know no remainder of a negative number
        surplus = span - stride + missing
        return surplus if span >= stride else max(surplus, 0)


def use_same_padding(network: nn.Module) -> None:
    """Put a `SameConv2d` with the same parameters in the place of each of timm's."""
    for parent in network.modules():
        for name, conv in list(parent.named_children()):
            if type(conv) is not Conv2dSame:
                continue
            same = SameConv2d(
                conv.in_channels,
                conv.out_channels,
                _pair(conv.kernel_size),
                _pair(conv.stride),
                dilation=_pair(conv.dilation),
                groups=conv.groups,
                bias=conv.bias is not None,
                device="meta",
            )
            same.weight, same.bias = conv.weight, conv.bias
            setattr(parent, name, same)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    high, wide = values
    return high, wide
