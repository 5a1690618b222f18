"""The fast backward of depthwise convolutions yields PyTorch's gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from effdense.ops.depthwise import Pads, depthwise_conv2d

SIZES_HW = ((1, 1), (2, 3), (9, 12), (16, 17))
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 0.02}


def paddings(kernel: int) -> set[Pads]:
    """None, the same on all sides, TensorFlow's at a stride of 2 for even sizes, and one that differs by axis."""
    half = kernel // 2
    before = max(0, (kernel - 2) // 2)
    same = (before, before, before + 1, before + 1) if kernel > 1 else (0, 0, 0, 0)
    return {(0, 0, 0, 0), (half, half, half, half), same, (0, half, 1, half)}


def gradients(
    x: torch.Tensor, weight: torch.Tensor, upstream: torch.Tensor, stride: int, pads: Pads | None
) -> list[torch.Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    if pads is None:
        y = F.conv2d(x, weight, None, stride, 0, 1, len(weight))
    else:
        y = depthwise_conv2d(x, weight, (stride, stride), pads)
    torch.autograd.backward(y, upstream.to(y.dtype))
    assert x.grad is not None
    assert weight.grad is not None
    return [y.detach(), x.grad, weight.grad]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((1, 2, 3, 5, 7), (1, 2, 3))), ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "channels-first"])
def test_outputs_and_gradients_are_those_of_pytorch(kernel: int, stride: int, last: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    seen = 0
    for size_hw, pads in itertools.product(SIZES_HW, paddings(kernel)):
        top, left, bottom, right = pads
        if size_hw[0] + top + bottom < kernel or size_hw[1] + left + right < kernel:
            continue
        x, weight = torch.randn(2, 8, *size_hw), torch.randn(8, 1, kernel, kernel)
        x, weight = x.to(dtype), weight.to(dtype)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        rows, columns = ((size_hw[i] + pads[i] + pads[i + 2] - kernel) // stride + 1 for i in (0, 1))
        upstream = torch.randn(2, 8, rows, columns).to(dtype)
        padded = F.pad(x.float(), (left, right, top, bottom))
        y, to_padded, to_weight = gradients(padded, weight.float(), upstream, stride, None)
        to_input = to_padded[..., top : top + size_hw[0], left : left + size_hw[1]]
        ours = gradients(x, weight, upstream, stride, pads)
        for name, got, expected in zip(("y", "x", "w"), ours, (y, to_input, to_weight), strict=True):
            assert got.dtype == dtype
            assert got.shape == expected.shape
            scale = max(1.0, float(expected.abs().max()))
            assert (got.float() - expected).abs().max() <= TOLERANCES[dtype] * scale, (name, size_hw, pads)
        seen += 1
    assert seen >= 4
