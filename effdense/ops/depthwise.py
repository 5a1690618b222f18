"""Depthwise convolution on a CPU, with a backward pass that is worth running.

oneDNN computes the forward pass fast, and the gradient to kernels of up to three columns. That to wider kernels, and in
bf16 that to the input of strided layers, are reference loops that take ten to a hundred times as long, and every
EfficientNet has both. Here those gradients take another way through the fast kernels:

- to the input: without a stride, convolve the output's gradient with the flipped kernel. With a stride of 2, rows and
  columns of the input of either parity meet every other row and column of the kernel, so that each of the four grids is
  such a convolution; in float32 oneDNN's own is as fast.
- to a kernel of more than three columns: as those to three neighbouring columns at a time, of an input that is laid out
  such that a shift is no copy; with a stride of 2, as those to the four smaller kernels of the four grids.

The results are those of PyTorch up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FAST_COLUMNS = 3
"""Columns of the kernels whose gradient oneDNN computes fast."""

Pads = tuple[int, int, int, int]
"""Rows and columns of zeros around a map: above, to the left, below, to the right."""


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: tuple[int, int], pads: Pads) -> Tensor:
    """Convolve each channel with its own kernel.

    Args:
        x: (B, C, H, W), float32 or bfloat16.
        weight: (C, 1, k, l), of the same type.
        stride: along rows and columns.
        pads: of zeros; at the end as many as at the start of an axis, or one more.
    """
    y: Tensor = _Depthwise.apply(x, weight, stride, pads)
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], pads: Pads) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pads = stride, pads
        top, left, bottom, right = pads
        # A pixel more at the end than at the start is as much on both sides, under a kernel that begins with zeros.
        kernel = weight if (top, left) == (bottom, right) else F.pad(weight, (right - left, 0, bottom - top, 0))
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x, kernel, None, stride, (bottom, right), 1, weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            to_input = _input_gradient(grad, weight, x, ctx.stride, ctx.pads)
        if ctx.needs_input_grad[1]:
            to_weight = _weight_gradient(grad, x, weight, ctx.stride, ctx.pads)
        return to_input, to_weight, None, None


def _input_gradient(grad: Tensor, weight: Tensor, x: Tensor, stride: tuple[int, int], pads: Pads) -> Tensor:
    """Return the gradient to the input, (B, C, H, W)."""
    channels, sides = weight.shape[0], weight.shape[2:]
    if stride == (1, 1) and pads[:2] == pads[2:]:
        margins = [sides[i] - 1 - pads[i] for i in (0, 1)]
        return F.conv2d(grad, weight.flip(2, 3), None, 1, margins, 1, channels)
    if stride == (2, 2) and min(sides) > 1 and grad.dtype != torch.float32:
        result = torch.zeros_like(x) if max(_unread(grad, weight, x, pads)) > 0 else torch.empty_like(x)
        for kernel, image, plane in _grids(weight, grad, x, pads):
            flipped = weight[kernel].flip(2, 3)
            reach = [flipped.shape[2 + i] - 1 for i in (0, 1)]
            result[image] = F.conv2d(grad, flipped, None, 1, reach, 1, channels)[plane]
        return result
    top, left, bottom, right = pads
    shape = (len(x), channels, x.shape[2] + top + bottom, x.shape[3] + left + right)
    unread = torch.empty(shape, memory_format=torch.channels_last)  # only what shape it has is asked for
    whole = _backward(grad.float(), unread, weight.float(), stride, (True, False, False))[0].to(grad.dtype)
    return whole[..., top : top + x.shape[2], left : left + x.shape[3]]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], pads: Pads) -> Tensor:
    """Return the gradient to the kernel, (C, 1, k, l)."""
    only_weight = (False, True, False)
    top, left, bottom, right = pads
    if weight.shape[3] <= _FAST_COLUMNS:
        if (top, left) == (bottom, right):
            return _backward(grad, x, weight, stride, only_weight, (top, left))[1]
        return _backward(grad, F.pad(x, (left, right, top, bottom)), weight, stride, only_weight)[1]
    if stride == (1, 1):
        result = torch.empty_like(weight)
        columns = weight[..., :_FAST_COLUMNS]
        for first, seen in _shifted(x, weight, grad, pads):
            part = _backward(grad, seen, columns, stride, only_weight)[1]
            result[..., first : first + _FAST_COLUMNS] = part
        return result
    if stride == (2, 2):
        result = torch.empty_like(weight)
        for kernel, image, plane in _grids(weight, grad, x, pads):
            smaller = weight[kernel].contiguous()
            size = [grad.shape[2 + i] + smaller.shape[2 + i] - 1 for i in (0, 1)]
            grid = x.new_zeros(len(x), *size, x.shape[1]).permute(0, 3, 1, 2)
            grid[plane] = x[image]
            result[kernel] = _backward(grad, grid, smaller, (1, 1), only_weight)[1]
        return result
    padded = F.pad(x, (left, right, top, bottom)).float()
    return _backward(grad.float(), padded, weight.float(), stride, only_weight)[1].to(weight.dtype)


def _shifted(x: Tensor, weight: Tensor, grad: Tensor, pads: Pads) -> Iterator[tuple[int, Tensor]]:
    """Yield columns of a kernel, by the first of them, and of the padded input what these meet: (B, C, h, w).

    With the columns of zeros at the end of a row and at the start of the next being the same ones, an input shifted by
    a column is what begins a pixel later in memory.
    """
    top, left, bottom, right = pads
    batch, channels, height, width = x.shape
    most = weight.shape[3] - _FAST_COLUMNS
    firsts = sorted({min(first, most) for first in range(0, weight.shape[3], _FAST_COLUMNS)})
    high, wide = height + top + bottom, grad.shape[3] + _FAST_COLUMNS - 1
    if min(left, right) < most:
        padded = F.pad(x, (left, right, top, bottom))
        for first in firsts:
            yield first, padded[..., first : first + wide].contiguous(memory_format=torch.channels_last)
        return
    size = batch * high * wide * channels
    memory = x.new_empty(size + most * channels)
    memory[size:] = 0
    rows = memory[:size].view(batch, high, wide, channels)
    rows[:, :top], rows[:, top + height :], rows[:, :, :left], rows[:, :, left + width :] = 0, 0, 0, 0
    rows[:, top : top + height, left : left + width] = x.permute(0, 2, 3, 1)
    for first in firsts:
        start = first * channels
        yield first, memory[start : start + size].view(batch, high, wide, channels).permute(0, 3, 1, 2)


Index = tuple[slice, slice, slice, slice]


def _grids(weight: Tensor, grad: Tensor, x: Tensor, pads: Pads) -> Iterator[tuple[Index, Index, Index]]:
    """Yield, for each parity of rows and columns of the padded input, what belongs together at a stride of 2.

    Yields:
        Which of the kernel meets it; which of the input it is; and where that lies on a grid of as many rows and
        columns as such a kernel reaches.
    """
    every = slice(None)
    for down in (0, 1):
        for across in (0, 1):
            kernel = (every, every, slice(down, None, 2), slice(across, None, 2))
            pairs = []
            for axis, parity in enumerate((down, across)):
                reached = grad.shape[2 + axis] + len(range(parity, weight.shape[2 + axis], 2)) - 1
                pairs.append(_of_parity(parity, pads[axis], x.shape[2 + axis], reached))
            (rows, rows_there), (columns, columns_there) = pairs
            yield kernel, (every, every, rows, columns), (every, every, rows_there, columns_there)


def _of_parity(parity: int, before: int, size: int, reached: int) -> tuple[slice, slice]:
    """Return which of ``size`` rows, after ``before`` of zeros, have a parity, and their numbers among those."""
    first = (parity - before) % 2
    number = (first + before - parity) // 2
    count = max(0, min(len(range(first, size, 2)), reached - number))
    return slice(first, first + 2 * count, 2), slice(number, number + count)


def _unread(grad: Tensor, weight: Tensor, x: Tensor, pads: Pads) -> list[int]:
    """Return how many rows and columns at the end of the input no kernel at a stride of 2 reaches."""
    ends = [2 * (grad.shape[2 + i] - 1) + weight.shape[2 + i] - pads[i] for i in (0, 1)]
    return [x.shape[2 + i] - ends[i] for i in (0, 1)]


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    wanted: tuple[bool, bool, bool],
    padding: Sequence[int] = (0, 0),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return oneDNN's gradients to input, kernel and bias, those that are wanted."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], wanted
    )
    return gradients
