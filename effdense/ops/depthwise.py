"""Depthwise convolution in bf16 on a CPU, with a backward pass that is worth running.

oneDNN multiplies bf16 matrices fast on CPUs with AMX tiles, and its depthwise forward is fast too; but its depthwise
backward falls back to a reference loop in two cases that every EfficientNet has, strided layers and 5x5 kernels, and is
then up to five times slower than float32. Here those gradients take another way through fast kernels:

- to the input: without a stride, convolve the output's gradient with the flipped kernel; with one, in float32;
- to a 5x5 kernel: as those to the four 3x3 kernels in its corners; to a larger one in float32.

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
_FAST_KERNEL = 3
"""Sides of the kernels whose gradient oneDNN computes fast in bf16."""


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
    """Return the gradient to the input, (B, C, H, W)."""
    if stride != (1, 1):
        shape = (grad.shape[0], weight.shape[0], *size_hw)
        unread = torch.empty(shape, memory_format=torch.channels_last)  # only what shape it has is asked for
        result = _backward(grad.float(), unread, weight.float(), stride, padding, (True, False, False))[0]
        return result.to(grad.dtype)
    margins = [weight.shape[2 + i] - 1 - padding[i] for i in (0, 1)]
    return F.conv2d(grad, weight.flip(2, 3), None, 1, margins, 1, weight.shape[0])


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient to the kernel, (C, 1, k, k)."""
    only_weight = (False, True, False)
    if max(weight.shape[-2:]) <= _FAST_KERNEL:
        return _backward(grad, x, weight, stride, padding, only_weight)[1]
    if tuple(weight.shape[-2:]) != (5, 5):
        return _backward(grad.float(), x.float(), weight.float(), stride, padding, only_weight)[1].to(weight.dtype)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = (stride[i] * (grad.shape[2 + i] - 1) + _FAST_KERNEL for i in (0, 1))  # that a 3x3 kernel sees
    result, corner = torch.empty_like(weight), weight[..., :_FAST_KERNEL, :_FAST_KERNEL].contiguous()
    for top in (0, 2):
        for left in (0, 2):  # the middle row and column belong to two corners, which agree on them
            seen = x[..., top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            part = _backward(grad, seen, corner, stride, (0, 0), only_weight)[1]
            result[..., top : top + _FAST_KERNEL, left : left + _FAST_KERNEL] = part
    return result


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return oneDNN's gradients to input, kernel and bias, those that are wanted."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], wanted
    )
    return gradients
