"""What every pair of heads on one backbone promises."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import effdense
from effdense.tasks.multitask.model import MultitaskModel
from effdense.tasks.segmentation.specs import ARCHITECTURES

CLASSES, SEG_CLASSES = 3, 4
CASES = [
    *(("lite0", arch) for arch in ARCHITECTURES),
    *((backbone, "fpn") for backbone in ("b0", "v2_s", "edge_s")),
]
IDS = [f"{backbone}-{arch}" for backbone, arch in CASES]
QUICK = ("bifpn",)

every_case = pytest.mark.parametrize(("backbone", "arch"), CASES, ids=IDS)


def model_of(backbone: str, arch: str, **arguments: object) -> MultitaskModel:
    torch.manual_seed(0)
    return effdense.create_multitask(  # type: ignore[no-any-return]
        backbone, CLASSES, SEG_CLASSES, arch, image_size=256, drop_path_rate=0.0, **arguments
    )


def images(arch: str, batch: int) -> Tensor:
    size_hw = (256, 256) if arch == "pan" else (64, 64)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, *size_hw), dtype=torch.uint8, generator=generator)


def without_dropout(model: MultitaskModel) -> MultitaskModel:
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return model


def with_statistics(model: MultitaskModel, arch: str) -> MultitaskModel:
    """Random weights with BatchNorm statistics of an image, so that outputs differ from place to place."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images(arch, batch=2))
    return model


@every_case
def test_the_shared_pass_says_what_both_views_say(backbone: str, arch: str) -> None:
    model, x = with_statistics(model_of(backbone, arch), arch).eval(), images(arch, batch=1)
    with torch.no_grad():
        class_logits, box_codes, masks = model(x)
        assert torch.equal(masks, model.segmentation_model(x))
        for got, expected in zip((class_logits, box_codes), model.efficientdet(x), strict=True):
            assert torch.equal(got, expected)
    assert masks.shape == (1, SEG_CLASSES, *x.shape[-2:])
    assert class_logits.shape == (1, len(model.anchors((x.shape[-2], x.shape[-1]))), CLASSES)
    assert masks.std() > 1e-2
    assert class_logits.std() > 1e-2


@every_case
def test_so_it_is_in_training_where_both_losses_train_every_part(backbone: str, arch: str) -> None:
    model, x = without_dropout(model_of(backbone, arch, auxiliary=True)).train(), images(arch, batch=2)
    twin = copy.deepcopy(model)
    outputs = model.training_outputs(x)
    masks, boxes = twin.segmentation_model.training_outputs(x), twin.efficientdet(x)
    assert outputs.masks is not None
    assert outputs.class_logits is not None
    assert outputs.box_codes is not None
    assert masks.keys() == outputs.masks.keys() == {"logits", "auxiliary"}
    every = (outputs.class_logits, outputs.box_codes, *outputs.masks.values())
    for got, expected in zip(every, (*boxes, *masks.values()), strict=True):
        assert torch.equal(got, expected)
    with torch.no_grad():
        for got, expected in zip(twin(x), (*boxes, masks["logits"]), strict=True):
            assert torch.equal(got, expected)
    generator = torch.Generator().manual_seed(2)
    sum((value * torch.randn(value.shape, generator=generator)).sum() for value in every).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_case
def test_each_tensor_is_there_once_and_the_backbone_is_asked_once(backbone: str, arch: str, tmp_path: Path) -> None:
    model = model_of(backbone, arch, auxiliary=True).eval()
    state = model.state_dict()
    assert len({value.untyped_storage().data_ptr() for value in state.values()}) == len(state)
    assert {".".join(name.split(".")[: 1 if name.startswith("backbone.") else 2]) for name in state} == {
        "backbone",
        "detection.neck",
        "detection.head",
        "segmentation.decoder",
        "segmentation.head",
        "segmentation.auxiliary",
    }
    save_file(state, tmp_path / "model.safetensors")  # refuses tensors that share memory
    assert load_file(tmp_path / "model.safetensors").keys() == state.keys()
    asked: list[int] = []
    model.backbone.conv_stem.register_forward_hook(lambda *_: asked.append(1))
    model(images(arch, batch=1))
    model.train().training_outputs(images(arch, batch=2))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("backbone", "arch"),
    [
        pytest.param(*case, marks=[] if case == ("lite0", case[1]) and case[1] in QUICK else [pytest.mark.slow])
        for case in CASES
    ],
    ids=IDS,
)
def test_it_exports_once_for_every_batch(backbone: str, arch: str) -> None:
    model, x = model_of(backbone, arch, auxiliary=True).eval(), images(arch, batch=2)
    shapes = {"images": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    for batch in (1, 3):
        x = images(arch, batch)
        with torch.no_grad():
            for got, expected in zip(program(x), model(x), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
