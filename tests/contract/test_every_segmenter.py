"""What every segmentation architecture promises."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from effdense.backbones.registry import create_backbone
from effdense.errors import UserError
from effdense.tasks.segmentation.model import SegmentationModel, create_segmentation_model
from effdense.tasks.segmentation.specs import ARCHITECTURES

CLASSES = 3
POOLED = [name for name, arch in ARCHITECTURES.items() if arch.least_batch > 1]
DILATED = [(name, stride) for name, arch in ARCHITECTURES.items() for stride in arch.output_strides]
MAY_REST = r"decoder\.(blocks\.\d\.SE_[hl]l|fpa\..*\.conv\.bias)"
"""MAnet's squeeze to one or a few channels, which ReLU may cut off, and biases that BatchNorm subtracts again."""

SIZES = [(64, 96), (97, 131), (33, 17), (1, 1)]


def images(size_hw: tuple[int, int], batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, *size_hw), dtype=torch.uint8, generator=generator)


def model_of(name: str, **arguments: object) -> SegmentationModel:
    torch.manual_seed(0)
    return create_segmentation_model(name, CLASSES, **arguments)  # type: ignore[arg-type]


def num_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_image_of_any_size_gets_logits_of_its_size(name: str) -> None:
    model = model_of(name).eval()
    for size_hw in SIZES:
        with torch.no_grad():
            logits = model(images(size_hw))
        assert logits.shape == (1, CLASSES, *size_hw)
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_lies_in_the_padding_is_the_mean(name: str) -> None:
    model = model_of(name).eval()
    model.backbone.set_statistics((51 / 255,) * 3, (0.2,) * 3)
    stride, least = model.backbone.strides[-1], ARCHITECTURES[name].least_cells
    whole = [max(math.ceil(size / stride), least) * stride for size in (97, 131)]
    padded = torch.full((1, 3, *whole), 51, dtype=torch.uint8)
    padded[..., :97, :131] = images((97, 131))
    with torch.no_grad():
        got, expected = model(images((97, 131))), model(padded)[..., :97, :131]
    assert expected.std() > 1e-4
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_gives_what_its_images_give_alone(name: str) -> None:
    model = model_of(name).eval()
    batch = images((64, 70), batch=2)
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(batch[:1]), model(batch[1:])])
    assert (together - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_backbone_is_built_once_and_asked_once(name: str) -> None:
    model = model_of(name, auxiliary=True)
    assert model.auxiliary is not None
    assert num_parameters(model) == num_parameters(model.backbone, model.decoder, model.head, model.auxiliary)
    assert sum(module.__class__.__name__ == "Backbone" for module in model.modules()) == 1
    asked = []
    model.backbone.conv_stem.register_forward_hook(lambda *_: asked.append(1))
    model.eval()(images((64, 64)))
    assert len(asked) == 1
    model.train().training_outputs(images((64, 64), batch=2))
    assert len(asked) == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_ready_made_backbone_is_used_as_it_is(name: str) -> None:
    arch = ARCHITECTURES[name]
    # levels finer than those that are read, as another task on the same backbone may want, do no harm
    strides = tuple(2**n for n in range(1, arch.depth + 1))
    dilation = arch.output_stride if arch.output_stride < strides[-1] else 32
    backbone = create_backbone("lite0", out_strides=strides, output_stride=dilation)
    model = model_of(name, backbone=backbone).eval()
    assert model.backbone is backbone
    other = model_of(name).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images((64, 64))), other(images((64, 64))))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_weights_are_saved_each_once_and_come_back(name: str, tmp_path: Path) -> None:
    model = model_of(name, auxiliary=True)
    state = model.state_dict()
    save_file(state, tmp_path / "model.safetensors")  # refuses tensors that share memory
    assert load_file(tmp_path / "model.safetensors").keys() == state.keys()
    assert {key.partition(".")[0] for key in state} == {"backbone", "decoder", "head", "auxiliary"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_learns_and_no_number_goes_astray(name: str) -> None:
    model = model_of(name, auxiliary=True).train()
    outputs = model.training_outputs(images((97, 131), batch=2))
    assert {key: tuple(value.shape) for key, value in outputs.items()} == dict.fromkeys(
        ("logits", "auxiliary"), (2, CLASSES, 97, 131)
    )
    generator = torch.Generator().manual_seed(2)
    sum((value * torch.randn(value.shape, generator=generator)).sum() for value in outputs.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0 or re.search(MAY_REST, key), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_auxiliary_head_changes_no_prediction(name: str) -> None:
    model = model_of(name, auxiliary=True).eval()
    before = model(images((64, 64)))
    for parameter in model.auxiliary.parameters():  # type: ignore[union-attr]
        nn.init.constant_(parameter, float("nan"))
    assert torch.equal(model(images((64, 64))), before)
    assert "auxiliary" not in model_of(name).eval().training_outputs(images((64, 64)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_auxiliary_loss_alone_trains_the_backbone_and_not_the_decoder(name: str) -> None:
    model = model_of(name, auxiliary=True).train()
    outputs = model.training_outputs(images((64, 64), batch=2))
    generator = torch.Generator().manual_seed(2)
    (outputs["auxiliary"] * torch.randn(outputs["auxiliary"].shape, generator=generator)).sum().backward()
    assert model.backbone.conv_stem.weight.grad.abs().max() > 0  # type: ignore[union-attr]
    assert all(parameter.grad is None for part in (model.decoder, model.head) for parameter in part.parameters())


@pytest.mark.parametrize(("name", "stride"), DILATED, ids=[f"{name}-{stride}" for name, stride in DILATED])
def test_it_runs_at_each_output_stride_with_the_same_weights(name: str, stride: int) -> None:
    model = model_of(name, output_stride=stride).eval()
    assert model.backbone.strides[-1] == stride
    assert model.state_dict().keys() == model_of(name).state_dict().keys()
    with torch.no_grad():
        assert model(images((70, 50))).shape == (1, CLASSES, 70, 50)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_another_output_stride_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"output_stride is 4; {name} takes "):
        model_of(name, output_stride=4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_backbone_of_other_levels_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"reads levels of strides .*was made with strides 16, 32"):
        model_of(name, backbone=create_backbone("lite0", out_strides=(16, 32)))


@pytest.mark.parametrize("name", POOLED)
def test_training_on_one_image_is_refused_where_its_mean_is_normalised(name: str) -> None:
    model = model_of(name).train()
    for call in (model, model.training_outputs):
        with pytest.raises(UserError, match=f"one image of 96 x 64 pixels leaves BatchNorm in {name} one value"):
            call(images((64, 96)))
    assert model.eval()(images((64, 96))).isfinite().all()


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in POOLED])
def test_the_others_train_on_one_image_of_more_than_one_cell(name: str) -> None:
    model = model_of(name).train()
    cell = int(ARCHITECTURES[name].norm_stride or model.backbone.strides[-1])
    assert model(images((cell, cell + 1))).isfinite().all()
    with pytest.raises(UserError, match="one value to learn from"):
        model(images((cell, cell)))
    assert model(images((cell, cell), batch=2)).isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_last_gives_the_same(name: str) -> None:
    model = model_of(name).eval()
    x = images((64, 64), batch=2)
    with torch.no_grad():
        expected = model(x)
        got = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_exports_once_for_every_height_width_and_batch(name: str) -> None:
    model = model_of(name, auxiliary=True).eval()
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (images((264, 300), batch=2),), dynamic_shapes={"images": dynamic}).module()
    for size_hw, batch in (((264, 300), 2), ((256, 288), 1), ((251, 333), 3)):
        x = images(size_hw, batch)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "pan", "bifpn"])
def test_it_compiles_without_a_break(name: str) -> None:
    model = model_of(name).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size_hw in ((64, 96), (97, 131)):
        torch.testing.assert_close(compiled(images(size_hw)), model(images(size_hw)), rtol=1e-4, atol=1e-4)
