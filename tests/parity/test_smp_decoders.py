"""The same weights give the same outputs as segmentation_models_pytorch's own models, for every decoder of its."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base import SegmentationModel as SmpModel
from torch import nn

from effdense.backbones.weights import load_complete
from effdense.tasks.segmentation.model import SegmentationModel, create_segmentation_model
from effdense.tasks.segmentation.specs import ARCHITECTURES
from effdense.tasks.segmentation.weights import from_smp

pytestmark = pytest.mark.parity

CLASSES = 5
PEERS: dict[str, type[SmpModel]] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "linknet": smp.Linknet,
    "fpn": smp.FPN,
    "pspnet": smp.PSPNet,
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "pan": smp.PAN,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
}
CASES = [
    *((name, "tu-tf_efficientnet_lite0", "lite0") for name in PEERS),
    *((name, "tu-efficientnet_b0", "efficientnet_b0") for name in ("unet", "deeplabv3plus", "upernet")),
]


def pair(name: str, encoder: str, backbone: str, **strides: int) -> tuple[SegmentationModel, SmpModel]:
    """Our model and smp's with the same random weights, statistics of BatchNorm included; neither normalises."""
    torch.manual_seed(0)
    theirs = PEERS[name](encoder, encoder_weights=None, classes=CLASSES, **strides).eval()
    randomise(theirs)
    ours = create_segmentation_model(
        name, CLASSES, backbone=backbone, output_stride=strides.get("encoder_output_stride")
    ).eval()
    load_complete(ours, from_smp(theirs.state_dict(), ours.state_dict()), source="smp")
    ours.backbone.set_statistics((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
    return ours, theirs


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                module.weight.uniform_(0.8, 1.2, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]


def image(side: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, side, side + 32, generator=torch.Generator().manual_seed(1))


def side_for(name: str) -> int:
    return 128 if name == "pan" else 64  # smp's PAN fails below eight cells of stride 16


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert expected.std() > 1e-3  # something to compare
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_decoder_of_smp_has_a_peer() -> None:
    assert [*PEERS, "bifpn"] == list(ARCHITECTURES)
    assert set(PEERS.values()) | {smp.DPT} == set(smp.MODEL_ARCHITECTURES_MAPPING.values())  # DPT takes no CNN


@pytest.mark.parametrize(("name", "encoder", "backbone"), CASES, ids=[f"{name}-{back}" for name, _, back in CASES])
def test_outputs_are_smps(name: str, encoder: str, backbone: str) -> None:
    ours, theirs = pair(name, encoder, backbone)
    x = image(side_for(name))
    with torch.no_grad():
        assert_equal(ours(x), theirs(x))


@pytest.mark.parametrize(("name", "stride"), [("deeplabv3", 16), ("deeplabv3plus", 8), ("pan", 32)])
def test_other_output_strides_are_smps(name: str, stride: int) -> None:
    ours, theirs = pair(name, "tu-tf_efficientnet_lite0", "lite0", encoder_output_stride=stride)
    x = image(256 if name == "pan" else 64)
    with torch.no_grad():
        assert_equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["unet", "fpn"])
def test_the_gradient_to_the_image_is_smps(name: str) -> None:
    gradients = []
    for model in pair(name, "tu-tf_efficientnet_lite0", "lite0"):
        x = image(64).requires_grad_()
        model(x).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert_equal(*gradients)


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus", "pan", "upernet"])
def test_training_and_the_statistics_that_it_leaves_are_smps(name: str) -> None:
    ours, theirs = pair(name, "tu-tf_efficientnet_lite0", "lite0")
    for model in (ours, theirs):
        model.train()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
    x = image(side_for(name), batch=2)
    assert_equal(ours(x), theirs(x))
    state = from_smp(theirs.state_dict(), ours.state_dict())
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, state[key], msg=key)


@pytest.mark.parametrize("name", PEERS)
def test_an_untrained_decoder_has_smps_spread_of_weights(name: str) -> None:
    torch.manual_seed(0)
    theirs = PEERS[name]("tu-tf_efficientnet_lite0", encoder_weights=None, classes=CLASSES)
    ours = create_segmentation_model(name, CLASSES).state_dict()
    for key, expected in from_smp(theirs.state_dict(), ours).items():
        if key.startswith("backbone.") or not expected.is_floating_point():
            continue
        if expected.numel() < 500:
            assert (ours[key].std(correction=0) == 0) == (expected.std(correction=0) == 0), key
        else:
            torch.testing.assert_close(ours[key].std(), expected.std(), rtol=0.15, atol=0, msg=key)


def test_a_file_of_smps_is_loaded_whole(tmp_path) -> None:
    theirs = smp.FPN("tu-tf_efficientnet_lite0", encoder_weights=None, classes=CLASSES).eval()
    torch.save(theirs.state_dict(), tmp_path / "fpn.pth")
    ours = create_segmentation_model("fpn", CLASSES, weights=str(tmp_path / "fpn.pth")).eval()
    ours.backbone.set_statistics((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
    with torch.no_grad():
        assert_equal(ours(image(64)), theirs(image(64)))
