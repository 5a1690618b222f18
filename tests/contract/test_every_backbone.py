"""What every registered backbone promises; networks beyond four million parameters are checked without computing."""

from math import ceil

import pytest
import torch
from safetensors.torch import load, save

from effdense.backbones.registry import create_backbone, list_backbones
from effdense.backbones.specs import SPECS

ALIASES = [spec.name for spec in SPECS]
SMALL = ["b0", "lite0", "edge_s", "v2_b0"]
OTHERS = ["efficientnet_b0", "efficientnet_x_b3", "efficientnet_blur_b0", "gc_efficientnetv2_rw_t", "test_efficientnet"]


def features_on_meta(name, size_hw, **arguments):
    with torch.device("meta"):
        backbone = create_backbone(name, **arguments).eval()
        return backbone, backbone(torch.zeros(2, 3, *size_hw, dtype=torch.uint8))


@pytest.mark.parametrize("name", ALIASES + OTHERS)
def test_channels_strides_and_sizes_are_the_truth(name):
    backbone, features = features_on_meta(name, (33, 47))
    assert backbone.strides == (2, 4, 8, 16, 32)
    assert [tuple(map.shape) for map in features] == [
        (2, channels, ceil(33 / stride), ceil(47 / stride))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize("name", ALIASES)
def test_subset_publishes_the_same_levels(name):
    full, _ = features_on_meta(name, (1, 1))
    subset, features = features_on_meta(name, (1, 1), out_strides=(32, 8))
    assert subset.strides == (8, 32)
    assert subset.channels == (full.channels[2], full.channels[4])
    assert [tuple(map.shape) for map in features] == [(2, channels, 1, 1) for channels in subset.channels]
    assert subset.state_dict().keys() <= full.state_dict().keys()


@pytest.mark.parametrize("name", [*SMALL, "b5", "lite4", "edge_l", "v2_s", "v2_m"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_backbone_publishes_its_true_strides(name, output_stride):
    backbone, features = features_on_meta(name, (40, 40), output_stride=output_stride)
    assert backbone.strides == tuple(min(stride, output_stride) for stride in (2, 4, 8, 16, 32))
    assert [map.shape[2] for map in features] == [ceil(40 / stride) for stride in backbone.strides]


@pytest.mark.parametrize("name", SMALL)
def test_batched_equals_single(name):
    torch.manual_seed(0)
    backbone = create_backbone(name).eval()
    batch = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        together, first, second = backbone(batch), backbone(batch[:1]), backbone(batch[1:])
    for found, one, two in zip(together, first, second, strict=True):
        torch.testing.assert_close(found, torch.cat([one, two]), rtol=1e-4, atol=1e-5 * float(found.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_state_survives_safetensors(name):
    state = create_backbone(name).state_dict()
    copy = load(save(state))
    assert copy.keys() == state.keys()
    assert all(torch.equal(copy[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", SMALL)
def test_freezing_reaches_every_family(name):
    backbone = create_backbone(name)
    backbone.freeze_stages(2)
    backbone.train()
    learning = {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert learning == {str(stage) for stage in range(1, len(backbone.blocks))}
    assert not backbone.bn1.training
    assert not backbone.blocks[0].training


def test_every_timm_efficientnet_is_listed():
    names = list_backbones()
    assert set(ALIASES) <= set(names)
    assert sum("efficientnet" in name for name in names) >= 70
