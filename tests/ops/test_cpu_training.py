"""Inside the context, modules yield what they yield outside: outputs, gradients, NaNs."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effdense.backbones.padding import SameConv2d
from effdense.backbones.registry import create_backbone
from effdense.ops import cpu_training
from effdense.ops.cpu_training import FastCpuTraining


def bf16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


LAYERS = [
    pytest.param(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), id="depthwise"),
    pytest.param(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), id="depthwise-with-bias"),
    pytest.param(lambda: nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False), id="depthwise-padded-by-name"),
    pytest.param(lambda: nn.Conv2d(8, 8, 3, dilation=2, groups=8, bias=False), id="depthwise-dilated"),
    pytest.param(lambda: SameConv2d(8, 8, (5, 5), (2, 2), groups=8, bias=False), id="depthwise-same"),
    pytest.param(lambda: SameConv2d(8, 8, (3, 3), (2, 2), dilation=2, groups=8, bias=False), id="same-dilated"),
    pytest.param(lambda: SameConv2d(8, 4, (3, 3), (2, 2), bias=False), id="same"),
    pytest.param(lambda: nn.Conv2d(8, 4, 3, groups=4), id="grouped"),
    pytest.param(lambda: nn.Conv2d(8, 4, 1), id="pointwise"),
    pytest.param(lambda: nn.Conv2d(8, 4, 1, stride=2), id="pointwise-strided"),
    pytest.param(lambda: nn.Conv2d(8, 4, 1, padding=1), id="pointwise-padded"),
    pytest.param(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6(inplace=True)), id="relu6-in-place"),
    pytest.param(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6()), id="relu6"),
    pytest.param(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Hardtanh(0.0, 1.0, inplace=True)), id="another-limit"),
    pytest.param(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.SiLU(inplace=True)), id="silu-in-place"),
]


def trained(layer: nn.Module, x: torch.Tensor, *contexts: AbstractContextManager[Any]) -> list[torch.Tensor]:
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_()
    with contexts[0], contexts[1]:
        y = layer(x * 4)  # no leaf, which may not be changed in place
    y.float().square().sum().backward()
    assert x.grad is not None
    return [y.detach().float(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("lower", [False, True], ids=["float32", "bfloat16"])
def test_outputs_and_gradients_are_the_same(make: Any, lower: bool) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(2, 8, 14, 12).contiguous(memory_format=torch.channels_last)
    x = x.to(torch.bfloat16) if lower else x
    amp = bf16 if lower else nullcontext
    plain = trained(layer, x, amp(), nullcontext())
    fast = trained(layer, x, amp(), FastCpuTraining())
    for ours, expected in zip(fast, plain, strict=True):
        assert ours.dtype == expected.dtype
        tolerance = (0.015 if lower else 1e-5) * float(expected.abs().max())
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def test_relu6_of_every_bfloat16_is_pytorchs() -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()].reshape(1, 1, 1, -1)
    with FastCpuTraining():
        got = F.relu6(numbers.clone(), inplace=True)
    assert torch.equal(got, F.relu6(numbers))


def test_a_channel_of_nans_leaves_relu6_with_a_nan() -> None:
    x = torch.ones(2, 3, 4, 4, dtype=torch.bfloat16)
    x[:, 1] = float("nan")
    with FastCpuTraining():
        y = F.relu6(x, inplace=True)
    assert y.isnan().any(0).flatten(1).any(1).tolist() == [False, True, False]


def test_without_gradients_convolutions_are_pytorchs() -> None:
    x = torch.randn(1, 8, 5, 5)
    for conv in (nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 8, 1)):
        with torch.no_grad(), FastCpuTraining():
            assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, groups=conv.groups))


@pytest.mark.parametrize("name", ["test_efficientnet", "lite0"])
def test_a_backbone_learns_as_it_does_outside(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="none").to(memory_format=torch.channels_last).double().float()
    images = torch.rand(2, 3, 70, 96) * 255

    def gradients(context: AbstractContextManager[Any]) -> list[torch.Tensor]:
        one = copy.deepcopy(backbone).eval()  # of few pixels, statistics would magnify rounding
        with context:
            loss = sum((level.square().mean() for level in one(images)), torch.zeros(()))
        loss.backward()
        return [p.grad for p in one.parameters() if p.grad is not None]

    for ours, plain in zip(gradients(FastCpuTraining()), gradients(nullcontext()), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()) + 1e-12)


def test_other_ways_to_call_hardtanh_stay_pytorchs() -> None:
    x = torch.linspace(-8, 8, 24).to(torch.bfloat16)
    with FastCpuTraining():
        for call in (
            lambda x: F.hardtanh(x),
            lambda x: F.hardtanh(x, 0.0, 6.0, inplace=True),
            lambda x: F.hardtanh(x, 0.0, 6.0, True),
            lambda x: F.hardtanh(x, max_val=3.0),
        ):
            found = call(x.clone())
            with torch._C.DisableTorchFunction():
                assert torch.equal(found, call(x.clone()))


def test_relu6_of_a_network_goes_by_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """However modules and PyTorch hand its limits on."""
    seen: list[torch.Size] = []
    plain = cpu_training._ReLU6.apply
    monkeypatch.setattr(cpu_training._ReLU6, "apply", lambda x: seen.append(x.shape) or plain(x))
    with bf16(), FastCpuTraining():
        create_backbone("lite0").train()(torch.rand(2, 3, 64, 64))
    assert len(seen) > 20
