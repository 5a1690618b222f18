"""The fast bf16 backward of depthwise convolutions yields the gradients that float32 does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effdense.ops.depthwise import FastDepthwise

CASES = [
    pytest.param(3, 1, 1, (17, 20), id="3x3"),
    pytest.param(3, 2, 1, (17, 20), id="3x3-strided"),
    pytest.param(3, 2, 0, (19, 22), id="3x3-strided-unpadded"),
    pytest.param(3, 2, 1, (18, 21), id="3x3-strided-even"),
    pytest.param(5, 1, 2, (9, 12), id="5x5"),
    pytest.param(5, 2, 2, (20, 23), id="5x5-strided"),
    pytest.param(5, 2, 0, (21, 24), id="5x5-strided-unpadded"),
    pytest.param(3, 1, 1, (1, 1), id="one-pixel"),
    pytest.param(5, 1, 2, (1, 1), id="5x5-one-pixel"),
    pytest.param(7, 1, 3, (9, 12), id="7x7"),
    pytest.param(7, 2, 3, (9, 12), id="7x7-strided"),
]


def _gradients(kernel: int, stride: int, padding: int, size_hw: tuple[int, int], fast: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *size_hw, generator=generator).requires_grad_()
    weight = torch.randn(8, 1, kernel, kernel, generator=generator).requires_grad_()
    if fast:
        with torch.autocast("cpu", dtype=torch.bfloat16), FastDepthwise():
            y = torch.conv2d(x, weight, None, (stride, stride), (padding, padding), (1, 1), 8)
        assert y.dtype == torch.bfloat16
    else:
        y = F.conv2d(x, weight, None, stride, padding, 1, 8)
    upstream = torch.randn(y.shape, generator=generator)
    y.backward(upstream.to(y.dtype))
    assert x.grad is not None
    assert weight.grad is not None
    return [y.detach().float(), x.grad, weight.grad]


@pytest.mark.parametrize(("kernel", "stride", "padding", "size_hw"), CASES)
def test_outputs_and_gradients_are_those_of_float32_to_bf16_precision(
    kernel: int, stride: int, padding: int, size_hw: tuple[int, int]
) -> None:
    fast = _gradients(kernel, stride, padding, size_hw, fast=True)
    plain = _gradients(kernel, stride, padding, size_hw, fast=False)
    for ours, reference in zip(fast, plain, strict=True):
        assert ours.shape == reference.shape
        assert (ours - reference).abs().max() <= 0.015 * reference.abs().max()


def test_only_depthwise_convolutions_are_taken_over() -> None:
    full, grouped, depthwise = (nn.Conv2d(8, 8, 3, groups=groups, bias=False) for groups in (1, 2, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16), FastDepthwise():
        taken = [
            type(conv(torch.randn(1, 8, 5, 5, requires_grad=True)).grad_fn).__name__
            for conv in (full, grouped, depthwise)
        ]
    assert [name == "_DepthwiseBackward" for name in taken] == [False, False, True]


def test_without_gradients_nothing_is_taken_over() -> None:
    conv = nn.Conv2d(8, 8, 3, groups=8, bias=False)
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = conv(x)
        with FastDepthwise():
            fast = conv(x)
    assert torch.equal(plain, fast)
