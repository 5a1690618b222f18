"""The same weights give the same outputs as effdet's, for every published configuration."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import effdet

from effdense.backbones.weights import load_complete
from effdense.tasks.detection.anchors import Anchors
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.specs import SPECS, get_spec
from effdense.tasks.detection.weights import from_effdet, read_weights, to_effdet

pytestmark = pytest.mark.parity
CLASSES = 7


def peer(name: str, size_hw: tuple[int, int] = (128, 128)) -> effdet.EfficientDet:
    """effdet's network with every weight random, also those that start as constants."""
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    config.image_size, config.num_classes = size_hw, CLASSES
    torch.manual_seed(0)
    model = effdet.EfficientDet(config, pretrained_backbone=False).eval()
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith("edge_weights"):
            value.uniform_(-0.2, 2, generator=generator)
        elif key.endswith("bias") or ("bn" in key and value.is_floating_point()):
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def flat(maps: list[Tensor], size: int) -> Tensor:
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, size) for one in maps], 1)


@pytest.mark.parametrize("name", SPECS)
def test_outputs_agree_to_1e_4_relative(name: str) -> None:
    theirs = peer(name)
    ours = create_efficientdet(name, CLASSES).eval()
    assert load_complete(ours, from_effdet(theirs.state_dict()), source="effdet") == []
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_logits, expected_codes = theirs(x)
        logits, codes = ours.head(ours.neck(ours.backbone.features(x)))
    for got, expected in ((logits, flat(expected_logits, CLASSES)), (codes, flat(expected_codes, 4))):
        assert expected.std() > 0.01  # something to compare
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", SPECS)
def test_constants_agree(name: str) -> None:
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    spec = get_spec(name)
    fusion = {None: "fastattn", "bifpn_sum": "sum"}[config.fpn_name]
    assert (spec.image_size, spec.image_size) == tuple(config.image_size)
    assert (spec.channels, spec.bifpn_repeats, spec.head_repeats, spec.fusion) == (
        config.fpn_channels,
        config.fpn_cell_repeats,
        config.box_class_repeats,
        fusion,
    )
    assert (spec.min_level, spec.max_level, spec.num_scales, spec.anchor_scale) == (
        config.min_level,
        config.max_level,
        config.num_scales,
        config.anchor_scale,
    )
    assert spec.aspect_ratios == tuple(tuple(ratio) for ratio in config.aspect_ratios)
    assert spec.act == {"swish": "silu", "relu6": "relu6"}[config.act_type]
    assert spec.drop_path_rate == config.backbone_args["drop_path_rate"]
    assert spec.mean == tuple(config.get("mean", (0.485, 0.456, 0.406)))
    assert config.backbone_name == f"tf_efficientnet_{spec.backbone}"


@pytest.mark.parametrize("name", ["d0", "lite0"])
def test_sizes_that_are_no_multiple_of_128_agree(name: str) -> None:
    size_hw = (96, 160)
    theirs, ours = peer(name, size_hw), create_efficientdet(name, CLASSES).eval()
    load_complete(ours, from_effdet(theirs.state_dict()), source="effdet")
    x = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = flat(theirs(x)[0], CLASSES)
        got = ours.head(ours.neck(ours.backbone.features(x)))[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["d0", "d7x", "lite0"])
def test_converting_there_and_back_changes_no_weight(name: str) -> None:
    theirs = peer(name).state_dict()
    ours = from_effdet(theirs)
    back = to_effdet(ours, theirs)
    assert back.keys() == theirs.keys()
    again = from_effdet(back)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], value) for key, value in ours.items())


def test_training_agrees_although_biases_before_batchnorm_are_folded_away() -> None:
    theirs, ours = peer("lite0").train(), create_efficientdet("lite0", CLASSES).train()
    load_complete(ours, from_effdet(theirs.state_dict()), source="effdet")
    x = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    expected = flat(theirs(x)[0], CLASSES)
    got = ours.head(ours.neck(ours.backbone.features(x)))[0]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    statistics = from_effdet(theirs.state_dict())
    for key, value in ours.state_dict().items():
        if key.endswith("running_mean"):
            torch.testing.assert_close(value, statistics[key], rtol=1e-3, atol=1e-3)


def test_an_effdet_checkpoint_file_is_recognised_and_loaded(tmp_path) -> None:
    theirs = peer("lite0")
    torch.save({"state_dict": {f"model.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "bench.pth")
    assert read_weights(tmp_path / "bench.pth").is_effdet
    model = create_efficientdet("lite0", CLASSES, weights=str(tmp_path / "bench.pth"))
    assert torch.equal(
        model.head.classes.predict.pointwise.weight, theirs.state_dict()["class_net.predict.conv_pw.weight"]
    )
    assert model.backbone.mean == (0.5, 0.5, 0.5)


def test_an_initialised_network_has_effdets_spread_of_weights() -> None:
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    theirs = from_effdet(effdet.EfficientDet(config, pretrained_backbone=False).state_dict())
    ours = create_efficientdet("d0", config.num_classes).state_dict()
    for key, value in ours.items():
        if key.startswith("backbone.") or value.numel() < 500 or not value.is_floating_point():
            continue
        assert value.std().item() == pytest.approx(theirs[key].std().item(), rel=0.15), key
        assert value.abs().max().item() == pytest.approx(theirs[key].abs().max().item(), rel=0.5), key


@pytest.mark.parametrize("size_hw", [(128, 128), (512, 512), (97, 131), (320, 448)], ids=str)
@pytest.mark.parametrize("name", ["d0", "d7", "d7x", "lite0"])
def test_anchors_agree(name: str, size_hw: tuple[int, int]) -> None:
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    config.image_size = size_hw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = effdet.anchors.Anchors.from_config(config).boxes[:, [1, 0, 3, 2]]
    spec = get_spec(name)
    anchors = Anchors(spec.min_level, spec.max_level, spec.num_scales, spec.aspect_ratios, spec.anchor_scale)
    torch.testing.assert_close(anchors(size_hw), expected, rtol=1e-6, atol=1e-4)
