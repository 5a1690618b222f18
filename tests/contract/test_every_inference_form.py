"""What the inference form of every network promises: the plain network's numbers, to 1e-4 of the largest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import effdense
from effdense.backbones.registry import create_backbone
from effdense.backbones.specs import SPECS
from effdense.inference_form import fuse
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.specs import ARCHITECTURES

TOLERANCE = 1e-4
ODD = (65, 97)
SMALL = {"b0", "lite0", "edge_s", "v2_b0"}
HUGE = {"l2", "v2_xl"}  # a gigabyte and more of weights
OTHERS = [
    "efficientnet_blur_b0",  # its activation comes before an anti-aliasing filter
    "efficientnet_x_b3",  # space-to-depth and edge blocks
    "efficientnet_b0_gn",  # no BatchNorm
    "efficientnet_cc_b0_4e",  # weights made by the forward pass
    "gc_efficientnetv2_rw_t",  # another gate
    "test_efficientnet",
]
BACKBONES = [
    pytest.param(spec.name, marks=() if spec.name in SMALL else pytest.mark.slow)
    for spec in SPECS
    if spec.name not in HUGE
]


def images(size_hw: tuple[int, int] = ODD, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, *size_hw), dtype=torch.uint8, generator=generator)


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """Give every BatchNorm the statistics of images and other weights than 1 and 0, else wrong folding would not show.

    The statistics keep the maps of a deep network in bounds, where rounding does not grow.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            if norm.affine:
                norm.weight.uniform_(0.7, 1.3)
                norm.bias.uniform_(-0.3, 0.3)
        model.train()
        model(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_var.clamp_(min=0.1)  # of few values it may be next to nothing
        for module in model.modules():
            if hasattr(module, "constant_shares") and module.weights is not None:
                module.weights.uniform_(-0.2, 2.0)
    return model.eval()


def norms_left(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def assert_equal_to_rounding(found: object, expected: object) -> None:
    pairs = zip(
        [found] if isinstance(found, Tensor) else found,
        [expected] if isinstance(expected, Tensor) else expected,
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == other.shape
        assert float(other.std()) > 0  # else anything would pass
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE * float(other.abs().max()))


@pytest.mark.parametrize("name", [*BACKBONES, *OTHERS])
def test_a_backbone_yields_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    small = name in SMALL or name in OTHERS  # what is deep grows beyond all bounds away from the images it has seen
    seen = images() if small else images((128, 160), batch=4)
    backbone = trained(create_backbone(name, out_strides=(2, 4, 8, 16, 32)), seen)
    fused = fuse(backbone)
    if "cc_" not in name:
        assert not norms_left(fused)
    for size_hw in (ODD, (64, 33), (33, 64), (96, 64), (1, 1)):  # in every parity, on which padding depends
        x = images(size_hw)
        with torch.inference_mode():
            assert_equal_to_rounding(fused(x), backbone(x))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_norm_of_a_backbone_goes(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name).eval()
    assert norms_left(backbone)
    assert not norms_left(fuse(backbone))


DETECTORS = [
    ("d0", "fastattn"),
    ("d0", "sum"),
    ("lite0", "fastattn"),
    ("lite0", "sum"),
    pytest.param("d1", "fastattn", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "fusion"), DETECTORS, ids=str)
def test_a_detector_says_the_same(name: str, fusion: str) -> None:
    torch.manual_seed(0)
    model = trained(create_efficientdet(name, 3, fusion=fusion), images())
    fused = model.fuse()
    assert not norms_left(fused)
    for size_hw in (ODD, (128, 64)):
        x = images(size_hw)
        with torch.inference_mode():
            assert_equal_to_rounding(fused(x), model(x))
        assert torch.equal(fused.anchors(size_hw), model.anchors(size_hw))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("backbone", ["lite0", pytest.param("b0", marks=pytest.mark.slow)])
def test_a_segmenter_says_the_same(arch: str, backbone: str) -> None:
    torch.manual_seed(0)
    model = trained(create_segmentation_model(arch, 4, backbone=backbone, auxiliary=True), images())
    fused = model.fuse()
    assert norms_left(fused) == ["auxiliary.norm"]  # which helps training only, and is never run
    for size_hw in (ODD, (64, 160)):
        x = images(size_hw)
        with torch.inference_mode():
            assert_equal_to_rounding(fused(x), model(x))
            assert_equal_to_rounding(fused.training_outputs(x).values(), model.training_outputs(x).values())


MULTITASK = [("fpn", True), ("bifpn", True), ("bifpn", False), pytest.param("pan", True, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("arch", "share_bifpn"), MULTITASK)
def test_a_multitask_model_says_the_same(arch: str, share_bifpn: bool) -> None:
    torch.manual_seed(0)
    size_hw = (256, 256) if arch == "pan" else (96, 64)
    model = effdense.create_multitask("lite0", 3, 4, arch, image_size=256, share_bifpn=share_bifpn)
    trained(model, images(size_hw))
    fused = model.fuse()
    assert not norms_left(fused)
    with torch.inference_mode():
        assert_equal_to_rounding(fused(images(size_hw)), model(images(size_hw)))


def test_a_detector_in_its_inference_form_exports() -> None:
    torch.manual_seed(0)
    model = trained(create_efficientdet("lite0", 3), images())
    shapes = {"images": {0: torch.export.Dim("batch", min=2)}}
    exported = torch.export.export(model.fuse(), (images((96, 128)),), dynamic_shapes=shapes).module()
    with torch.no_grad():
        assert_equal_to_rounding(exported(images((96, 128), batch=3)), model(images((96, 128), batch=3)))


def test_a_segmenter_in_its_inference_form_exports_for_every_size() -> None:
    torch.manual_seed(0)
    model = trained(create_segmentation_model("fpn", 3), images())
    sides = {2: torch.export.Dim("rows", min=65), 3: torch.export.Dim("columns", min=65)}
    exported = torch.export.export(model.fuse(), (images((97, 128)),), dynamic_shapes={"images": sides}).module()
    for size_hw in ((97, 128), (160, 70)):
        with torch.no_grad():
            assert_equal_to_rounding(exported(images(size_hw)), model(images(size_hw)))
