"""SAME padding by a remainder is timm's by a division, and an exporter can follow it."""

from __future__ import annotations

import itertools

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from effdense.backbones.padding import SameConv2d, use_same_padding
from effdense.backbones.registry import create_backbone


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), list(itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2))), ids=str
)
def test_outputs_are_timms_at_every_size(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    timms = nn.Sequential(Conv2dSame(4, 6, kernel, stride=stride, dilation=dilation, groups=2, bias=True))
    expected = timms[0]
    use_same_padding(timms)
    assert type(timms[0]) is SameConv2d
    for size_hw in ((1, 1), (2, 3), (7, 8), (16, 15)):
        x = torch.randn(1, 4, *size_hw)
        assert torch.equal(timms(x), expected(x))


def test_the_parameters_are_the_same_objects() -> None:
    network = nn.Sequential(nn.Sequential(Conv2dSame(3, 4, 3, stride=2, bias=False)))
    weight = network[0][0].weight
    use_same_padding(network)
    assert network[0][0].weight is weight
    assert network[0][0].bias is None
    assert list(network.state_dict()) == ["0.0.weight"]


def test_other_convolutions_stay_what_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))
    conv = network[0]
    use_same_padding(network)
    assert network[0] is conv


@pytest.mark.parametrize("name", [pytest.param("lite0", marks=pytest.mark.slow), "efficientnet_b0"])
def test_a_backbone_exports_for_every_size_in_whole_cells(name: str) -> None:
    backbone = create_backbone(name, out_strides=(8, 32)).eval()
    sides = {2: 32 * torch.export.Dim("rows", min=2), 3: 32 * torch.export.Dim("columns", min=2)}
    program = torch.export.export(backbone, (torch.zeros(1, 3, 96, 128),), dynamic_shapes={"images": sides}).module()
    for size_hw in ((96, 128), (64, 160)):
        x: Tensor = torch.rand(1, 3, *size_hw) * 255
        with torch.no_grad():
            for got, expected in zip(program(x), backbone(x), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_it_compiles_where_the_image_size_is_open() -> None:
    """Backward through two of them in bfloat16: inductor cannot analyse the remainder of a negative number."""
    first, second = SameConv2d(3, 8, (3, 3), (2, 2), bias=False), SameConv2d(8, 8, (5, 5), (2, 2), groups=8, bias=False)
    plain = nn.Sequential(
        first, nn.BatchNorm2d(8), nn.ReLU6(inplace=True), second, nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
    )
    compiled = torch.compile(plain, dynamic=True, backend="inductor")
    for size in (33, 34):
        x = torch.rand(2, 3, size, size + 3, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = compiled(x)
            torch.testing.assert_close(y, plain(x), rtol=0.05, atol=0.05)
        y.float().sum().backward()
        assert x.grad is not None
