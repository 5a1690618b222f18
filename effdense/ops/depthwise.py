"""Depthwise convolution in bf16 on a CPU, with a backward pass that is worth running.

oneDNN multiplies bf16 matrices fast on CPUs with AMX tiles, and its depthwise forward is fast too; but its depthwise
backward falls back to a reference loop in two cases that every EfficientNet has, strided layers and 5x5 kernels, and is
then up to five times slower than float32. Here those gradients take another way through fast kernels:

- to the input: convolve the output's gradient, spread out by the stride, with the flipped kernel;
- to a 5x5 or larger kernel: in float32.

`FastDepthwise` puts this in place of every depthwise ``conv2d`` that runs under CPU autocast, whichever module calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = frozenset({torch.conv2d, F.conv2d})
_LARGEST_BF16_KERNEL = 3


class FastDepthwise(TorchFunctionMode):
    """A context in which depthwise convolutions under CPU autocast to bf16 have the fast backward."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, in our way where it is such a convolution."""
        if func in _CONVOLUTIONS and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if (
                groups == weight.shape[0] == x.shape[1] > 1
                and bias is None
                and tuple(dilation) == (1, 1)
                and not isinstance(padding, str)
                and torch.is_grad_enabled()
            ):
                dtype = torch.get_autocast_dtype("cpu")
                return _Depthwise.apply(x.to(dtype), weight.to(dtype), tuple(stride), tuple(padding))
        return func(*args, **(kwargs or {}))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x, weight, None, stride, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            to_input = _input_gradient(grad, weight, x.shape[-2:], ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            to_weight = _weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        return to_input, to_weight, None, None


def _input_gradient(
    grad: Tensor, weight: Tensor, size_hw: Sequence[int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient to the input, (B, C, H, W): a convolution of stride 1 with the flipped kernel."""
    kernel = weight.shape[-2:]
    if stride != (1, 1):
        # rows and columns so many that the convolution yields the input's size
        height, width = (size_hw[i] - kernel[i] + 1 + 2 * padding[i] for i in (0, 1))
        spread = grad.new_zeros(*grad.shape[:2], height, width).contiguous(memory_format=torch.channels_last)
        spread[..., :: stride[0], :: stride[1]] = grad
        grad = spread
    margins = [kernel[i] - 1 - padding[i] for i in (0, 1)]
    return F.conv2d(grad, weight.flip(2, 3), None, 1, margins, 1, weight.shape[0])


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient to the kernel, (C, 1, k, k)."""
    if max(weight.shape[-2:]) > _LARGEST_BF16_KERNEL:
        grad, x = grad.float(), x.float()
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], (False, True, False)
    )
    result: Tensor = gradients[1]
    return result.to(weight.dtype)
