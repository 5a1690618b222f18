from __future__ import annotations

import pytest
import torch

from effdense.backbones.registry import create_backbone
from effdense.errors import UserError
from effdense.tasks.detection.model import create_efficientdet

SMALL = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}


def test_auto_takes_the_configuration_of_the_backbone() -> None:
    model = create_efficientdet("auto", 3, backbone="lite0")
    assert model.spec is not None
    assert (model.spec.name, model.spec.image_size, model.backbone.name) == ("lite0", 320, "lite0")


def test_a_backbone_with_finer_maps_and_another_network_fits() -> None:
    backbone = create_backbone("edge_s")
    model = create_efficientdet("d0", 2, backbone=backbone, **SMALL).eval()
    assert model.backbone is backbone
    logits, codes = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert logits.shape == (1, len(model.anchors((64, 96))), 2)
    assert codes.shape[:2] == logits.shape[:2]


def test_a_backbone_without_the_finest_level_is_refused() -> None:
    with pytest.raises(UserError, match="stride 8"):
        create_efficientdet("d0", 2, backbone=create_backbone("lite0", out_strides=(16, 32)))


def test_levels_can_be_chosen() -> None:
    model = create_efficientdet("lite0", 2, min_level=4, max_level=6, **SMALL).eval()
    assert model.neck.strides == (16, 32, 64)
    assert model(torch.zeros(1, 3, 70, 70))[0].shape[1] == len(model.anchors((70, 70)))


def test_anchors_lie_where_the_parameters_do() -> None:
    model = create_efficientdet("lite0", 2, **SMALL)
    assert model.anchors((64, 64)).device == next(model.parameters()).device
    assert model.to("meta").anchors((64, 64)).device.type == "meta"


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("d9", {}, "'d9' is unknown"),
        ("d0", {"chanels": 3}, "did you mean 'channels'"),
        ("auto", {"backbone": "resnet50"}, "resnet50"),
    ],
    ids=["configuration", "constant", "backbone"],
)
def test_an_unknown_name_is_named(arch: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_efficientdet(arch, 2, **changes)  # type: ignore[arg-type]


def test_the_whole_model_exports() -> None:
    model = create_efficientdet("lite0", 2, **SMALL).eval()
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    program = torch.export.export(model, (images,))
    for exported, plain in zip(program.module()(images), model(images), strict=True):
        torch.testing.assert_close(exported, plain, rtol=1e-4, atol=1e-4)


def test_channels_last_gives_the_same() -> None:
    model = create_efficientdet("lite0", 2, **SMALL).eval()
    images = torch.rand(2, 3, 64, 96) * 255
    expected = model(images)
    got = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
