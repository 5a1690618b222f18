from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import effdense
from effdense.backbones.registry import create_backbone
from effdense.errors import UserError
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import load_detector
from effdense.tasks.multitask.model import PARTS, MultitaskModel, MultitaskOutputs, _picked, _rows
from effdense.tasks.segmentation.predict import load_segmenter
from effdense.training.ema import ModelEma

SIZE = 64
SHARING = ("fpn", "bifpn")
"""A decoder of its own, and one on the detector's BiFPN."""


def model_of(arch: str = "fpn", **arguments: object) -> MultitaskModel:
    torch.manual_seed(0)
    model: MultitaskModel = effdense.create_multitask("lite0", 3, 4, arch, **{"image_size": 320} | arguments)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return model


def images(batch: int = 1, size_hw: tuple[int, int] = (SIZE, SIZE), seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size_hw), dtype=torch.uint8, generator=generator)


def tensors_of(outputs: MultitaskOutputs) -> list[Tensor]:
    boxes = [value for value in (outputs.class_logits, outputs.box_codes) if value is not None]
    return [*boxes, *(outputs.masks or {}).values()]


def loss_of(outputs: MultitaskOutputs) -> Tensor:
    return torch.stack([(value + 0.5).square().mean() for value in tensors_of(outputs)]).sum()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# --- freezing

SUBSETS = [parts for number in (1, 2) for parts in itertools.combinations(PARTS, number)]


@pytest.mark.parametrize("arch", SHARING)
@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_what_is_frozen_keeps_weights_and_statistics_to_the_bit(parts: tuple[str, ...], arch: str) -> None:
    model = model_of(arch, auxiliary=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    loss_of(model.training_outputs(images(2))).backward()
    optimizer.step()  # momentum and gradients, which must not move it any more
    model.freeze(parts)
    ema = ModelEma(model, 0.9)
    before = snapshot(model)
    for step in range(2):
        model.train()
        loss_of(model.training_outputs(images(2, seed=step))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=step > 0)
        ema.update(model)
    for one in (model, ema.module):
        moved = changed(one, before)
        assert {name.partition(".")[0] for name in moved} == set(PARTS) - set(parts)
        assert any("running_mean" in name for name in moved)


def test_freezing_anew_thaws_what_was_frozen_but_not_the_stages() -> None:
    model = model_of().train()
    model.backbone.freeze_stages(2)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.freeze(["backbone", "segmentation"])
    assert not any(parameter.requires_grad for parameter in model.segmentation.parameters())
    assert not any(module.training for module in model.backbone.modules())
    assert all(parameter.requires_grad for parameter in model.detection.parameters())
    model.freeze([])
    assert model.frozen == frozenset()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == learning
    assert not model.backbone.bn1.training
    assert model.backbone.blocks[-1].training
    assert model.segmentation.training


def test_freezing_in_evaluation_mode_begins_no_training() -> None:
    model = model_of().eval()
    model.freeze("detection")
    assert model.frozen == {"detection"}
    assert not any(module.training for module in model.modules())


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match=r"no part 'segmentaton'; did you mean 'segmentation'"):
        model_of().freeze(["segmentaton"])


# --- rows without a label


def frozen_backbone(arch: str) -> MultitaskModel:
    """Its features of an image are the same numbers in whatever batch it comes."""
    model = model_of(arch, auxiliary=True).train()
    model.freeze(["backbone"])
    whole = model.backbone.features
    model.backbone.features = lambda x: [  # type: ignore[method-assign]
        torch.cat(level) for level in zip(*(whole(image[None]) for image in x), strict=True)
    ]
    return model


def flags(text: str) -> Tensor:
    return torch.tensor([letter == "x" for letter in text])


def left_by(model: MultitaskModel, x: Tensor, boxes: str, masks: str, part: str) -> dict[str, Tensor]:
    """Gradients of a part's own loss, and the part's state, after a batch."""
    model = copy.deepcopy(model)
    outputs = model.training_outputs(x, flags(boxes), flags(masks))
    own = MultitaskOutputs(outputs.class_logits, outputs.box_codes) if part == "detection" else outputs
    if part == "segmentation":
        own = MultitaskOutputs(masks=outputs.masks)
    loss_of(own).backward()
    found = {f"state of {name}": value for name, value in model.get_submodule(part).state_dict().items()}
    for name, parameter in model.get_submodule(part).named_parameters():
        assert parameter.grad is not None, name
        found[f"gradient of {name}"] = parameter.grad
    return found


@pytest.mark.parametrize(
    ("part", "boxes", "masks", "kept", "left"),
    [
        ("detection", "x-x-", "-xx-", [0, 2], ("xx", "--")),
        ("segmentation", "x-x-", "-xx-", [1, 2], ("--", "xx")),
        ("detection", "xx--", "--xx", [0, 1], ("xx", "--")),
        ("segmentation", "xx--", "--xx", [2, 3], ("--", "xx")),
        ("segmentation", "----", "x--x", [0, 3], ("--", "xx")),
    ],
)
def test_images_without_its_label_leave_nothing_in_a_head(
    part: str, boxes: str, masks: str, kept: list[int], left: tuple[str, str]
) -> None:
    model, x = frozen_backbone("fpn"), images(4)
    got = left_by(model, x, boxes, masks, part)
    expected = left_by(model, x[kept], *left, part)
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    rest = left_by(model, x, "xxxx", "xxxx", part)
    assert any(not torch.equal(rest[name], expected[name]) for name in expected if name.startswith("gradient"))


@pytest.mark.parametrize("arch", SHARING)
@pytest.mark.parametrize("part", ["detection", "segmentation"])
def test_an_image_without_any_label_is_as_good_as_absent(part: str, arch: str) -> None:
    model, x = frozen_backbone(arch), images(4)
    got = left_by(model, x, "x-x-", "-xx-", part)
    expected = left_by(model, x[:3], "x-x", "-xx", part)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("arch", SHARING)
def test_the_backbone_does_not_see_an_image_without_any_label(arch: str) -> None:
    model, x = model_of(arch).train(), images(3)
    other = copy.deepcopy(model)
    model.training_outputs(x, flags("xx-"), flags("xx-"))
    other.training_outputs(x[:2])
    assert changed(model, snapshot(other)) == set()


@pytest.mark.parametrize(
    ("boxes", "masks", "touched"),
    [("xx", "--", {"backbone", "detection"}), ("--", "xx", {"backbone", "segmentation"}), ("--", "--", set())],
    ids=["boxes only", "masks only", "neither"],
)
def test_a_head_without_a_labelled_image_is_left_alone(boxes: str, masks: str, touched: set[str]) -> None:
    model = model_of(auxiliary=True).train()
    before = snapshot(model)
    outputs = model.training_outputs(images(2), flags(boxes), flags(masks))
    assert (outputs.class_logits is None) == (outputs.box_codes is None) == ("x" not in boxes)
    assert (outputs.masks is None) == ("x" not in masks)
    if touched:
        loss_of(outputs).backward()
    assert {name.partition(".")[0] for name in changed(model, before)} == touched
    learns = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learns == touched


def test_outputs_come_for_the_labelled_images_in_their_order() -> None:
    model, x = model_of().eval(), images(4)
    with torch.no_grad():
        class_logits, box_codes, masks = model(x)
        outputs = model.training_outputs(x, flags("x-xx"), flags("-x--"))
    assert outputs.class_logits is not None
    assert outputs.box_codes is not None
    assert outputs.masks is not None
    torch.testing.assert_close(outputs.class_logits, class_logits[[0, 2, 3]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.box_codes, box_codes[[0, 2, 3]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.masks["logits"], masks[[1]], rtol=1e-4, atol=1e-4)


class Copies(TorchDispatchMode):
    """Notes which rows are taken of maps of which size, in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: dict[int, list[int]] = {}
        self.indices: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor and args[0].is_floating_point():
            (rows,) = args[1]
            if not any(rows is known for known in self.indices):
                self.indices.append(rows)
            self.sides.setdefault(len(rows), []).append(args[0].shape[-1])
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("arch", "of_boxes", "of_masks"),
    [
        pytest.param("unet", [8, 4, 2], [64, 32, 16, 8, 4, 2], id="unet"),
        pytest.param("fpn", [8, 4, 2], [64, 16, 8, 4, 2], id="fpn"),
        pytest.param("bifpn", [8, 4, 2, 1, 1], [64, 16, 8, 4, 2, 8], id="bifpn: the pyramid is copied, and P3 of it"),
    ],
)
def test_of_a_mixed_batch_each_head_copies_the_levels_that_it_reads_by_one_index(
    arch: str, of_boxes: list[int], of_masks: list[int]
) -> None:
    model = model_of(arch).eval()
    with Copies() as copies, torch.no_grad():
        model.training_outputs(images(3), flags("xx-"), flags("--x"))
    assert copies.sides == {2: of_boxes, 1: of_masks}
    assert len(copies.indices) == 2
    with Copies() as copies, torch.no_grad():
        model.training_outputs(images(2), flags("xx"), flags("xx"))
    assert not copies.indices


def test_the_rows_of_a_batch_keep_their_memory_format() -> None:
    x = images(3).contiguous(memory_format=torch.channels_last).float()
    (picked,) = _picked([x], _rows([0, 2], range(3), x.device))
    assert torch.equal(picked, x[::2])
    assert picked.is_contiguous(memory_format=torch.channels_last)


def test_flags_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"flags have shape \(3,\); a batch of 2 images"):
        model_of().training_outputs(images(2), flags("xxx"))


# --- sizes


@pytest.mark.parametrize(
    ("arch", "size_hw", "told"),
    [
        ("fpn", (70, 100), "images are 100 x 70 pixels .* multiples of 32, such as 96 x 64 or 128 x 96"),
        ("fpn", (64, 100), "multiples of 32, such as 96 x 64 or 128 x 64"),
        ("fpn", (1, 1), "multiples of 32, such as 32 x 32"),
        ("fpn", (0, 64), "such as 64 x 32"),
        ("pan", (128, 256), "multiples of 32 from 256 on, such as 256 x 256"),
        ("pan", (300, 100), "from 256 on, such as 256 x 288 or 256 x 320"),
    ],
)
def test_a_size_that_would_be_padded_is_refused_with_sizes_near_by(
    arch: str, size_hw: tuple[int, int], told: str
) -> None:
    model = model_of(arch)
    for call in (model.eval(), model.training_outputs):
        with pytest.raises(UserError, match=told):
            call(images(1, size_hw))


@pytest.mark.parametrize(("arch", "image_size"), [("fpn", 100), ("pan", 128)])
def test_so_is_an_image_size(arch: str, image_size: int) -> None:
    with pytest.raises(UserError, match="a pass that both heads share takes multiples of 32"):
        model_of(arch, image_size=image_size)


def test_a_cell_is_enough() -> None:
    assert model_of().eval()(images(1, (32, 32)))[2].shape == (1, 4, 32, 32)


@pytest.mark.parametrize(
    ("arch", "boxes", "masks", "frozen", "told"),
    [
        ("fpn", "xx", "x-", (), None),
        ("fpn", "x-", "xx", (), "one image of 64 x 64 pixels leaves BatchNorm in the EfficientDet one value"),
        ("fpn", "x-", "xx", ("detection",), None),
        ("deeplabv3", "xx", "x-", (), "leaves BatchNorm in deeplabv3 one value"),
        ("deeplabv3", "xx", "x-", ("segmentation",), None),
        ("bifpn", "--", "x-", (), "leaves BatchNorm in the EfficientDet one value"),
        ("bifpn", "--", "x-", ("detection",), None),
        ("bifpn", "xx", "x-", (), None),
    ],
)
def test_one_image_that_leaves_batchnorm_one_value_is_refused(
    arch: str, boxes: str, masks: str, frozen: tuple[str, ...], told: str | None
) -> None:
    model = model_of(arch).train()
    model.freeze(frozen)
    if told is None:
        outputs = model.training_outputs(images(2), flags(boxes), flags(masks))
        assert all(value.isfinite().all() for value in tensors_of(outputs))
        return
    with pytest.raises(UserError, match=told):
        model.training_outputs(images(2), flags(boxes), flags(masks))


# --- views


@pytest.mark.parametrize("arch", [*SHARING, "pspnet"])
def test_views_are_on_the_same_tensors(arch: str) -> None:
    model = model_of(arch, auxiliary=True)
    own = {value.data_ptr() for value in model.state_dict().values()}
    views = (model.efficientdet, model.segmentation_model, model.detector.model, model.segmenter.model)
    for view in views:
        assert {value.data_ptr() for value in view.state_dict().values()} <= own
    assert own == {value.data_ptr() for view in views for value in view.state_dict().values()} | {
        value.data_ptr() for value in model.backbone.state_dict().values()
    }


@pytest.mark.parametrize("arch", SHARING)
def test_a_step_through_the_whole_changes_what_views_say(arch: str) -> None:
    model, x = model_of(arch), images(2)
    detector, segmenter = model.detector.model, model.segmenter.model  # taken before, used after
    with torch.no_grad():
        before = (*detector(x), segmenter(x))
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    loss_of(model.training_outputs(x)).backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        after = (*detector(x), segmenter(x))
        for was, view, whole in zip(before, after, model(x), strict=True):
            assert not torch.equal(was, view)
            assert torch.equal(view, whole)


def test_a_view_moves_and_normalises_with_the_whole() -> None:
    model = model_of()
    detector, segmenter = model.detector, model.segmenter
    detector.model.double()
    assert {value.dtype for value in model.backbone.buffers() if value.is_floating_point()} == {torch.float64}
    model.double()
    assert segmenter.model(images()).dtype == torch.float64
    model.float()
    assert detector.model(images())[0].dtype == torch.float32
    detector.model.backbone.set_statistics((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    segmenter.model.backbone.weights_source = "a file"
    for one in (model, detector.model, segmenter.model, model.efficientdet):
        assert one.backbone.mean == (0.1, 0.2, 0.3)
        assert one.backbone.weights_source == "a file"
        assert torch.equal(one.backbone.pixel_mean, model.backbone.pixel_mean)


def test_runners_put_everything_in_evaluation_mode_and_network_views_leave_the_mode() -> None:
    model = model_of().train()
    assert model.efficientdet.training
    assert model.segmentation_model.training
    assert model.detection.training
    assert model.detector.class_names == ("0", "1", "2")
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.segmenter.class_names == ("0", "1", "2", "3")
    assert not any(module.training for module in model.modules())
    assert not model.efficientdet.training


@pytest.mark.parametrize("arch", [*SHARING, "pspnet", "deeplabv3plus"])
def test_views_are_saved_and_loaded_alone(arch: str, tmp_path: Path) -> None:
    model, x = model_of(arch, class_names=["a", "b", "c"], auxiliary=True).eval(), images()
    model.detector.save(tmp_path / "detector.safetensors")
    model.segmenter.save(tmp_path / "segmenter.safetensors")
    detector = load_detector(tmp_path / "detector.safetensors")
    segmenter = load_segmenter(tmp_path / "segmenter.safetensors")
    assert detector.class_names == ("a", "b", "c")
    assert (detector.image_size, segmenter.image_size) == (320, 320)
    assert segmenter.model.spec == model.spec.segmentation
    with torch.no_grad():
        for got, expected in zip((*detector.model(x), segmenter.model(x)), model(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", SHARING)
def test_a_copy_shares_within_itself_and_not_with_the_first(arch: str) -> None:
    model = model_of(arch)
    view = model.efficientdet
    twin = copy.deepcopy(model)
    own, theirs = ({value.data_ptr() for value in one.state_dict().values()} for one in (model, twin))
    assert len(theirs) == len(own)
    assert not own & theirs
    for network in (twin.efficientdet, twin.segmentation_model):
        assert {value.data_ptr() for value in network.state_dict().values()} <= theirs
    twin.backbone.set_statistics((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert twin.efficientdet.backbone.mean == (0.1, 0.2, 0.3)
    assert view.backbone.mean == model.backbone.mean == (0.5, 0.5, 0.5)


# --- how one is made


def test_the_detector_is_the_one_that_it_would_be_alone() -> None:
    alone = create_efficientdet("lite0", 3)
    for arch in SHARING:
        view = model_of(arch).efficientdet
        assert view.spec == alone.spec
        assert view.state_dict().keys() == alone.state_dict().keys()


def test_a_shared_bifpn_costs_one_level_and_one_of_its_own_a_pyramid() -> None:
    shared, own = model_of("bifpn"), model_of("bifpn", share_bifpn=False)
    assert shared.spec.shares_bifpn
    assert not own.spec.shares_bifpn
    sizes = [sum(p.numel() for p in one.segmentation["decoder"].parameters()) for one in (shared, own)]
    assert sizes[0] < sizes[1] / 10
    x = images()
    with torch.no_grad():
        assert torch.equal(own.eval()(x)[2], own.segmentation_model(x))
    assert not model_of("fpn", share_bifpn=True).spec.shares_bifpn


def test_a_ready_made_backbone_is_used_whatever_levels_it_yielded() -> None:
    backbone = create_backbone("lite0", out_strides=(8, 32))
    model = effdense.create_multitask(backbone, 3, 4, "unet")
    assert model.backbone.strides == (2, 4, 8, 16, 32)
    assert model.backbone.conv_stem is backbone.conv_stem
    assert model.spec.detection.backbone == model.spec.segmentation.backbone == "lite0"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"arch": "fpm"}, "did you mean 'fpn'"),
        ({"backbone": "lite9"}, "unknown backbone 'lite9'"),
        ({"det_arch": "d9"}, "EfficientDet 'd9' is unknown"),
        ({"chanels": 64}, "no constant 'chanels'; did you mean 'channels'"),
        ({"class_names": ["one"]}, "the detection has 3 classes, but 1 names came: one"),
        ({"seg_class_names": ["one", "two"]}, "the segmentation has 4 classes, but 2 names came"),
        ({"replace_head": True}, "weights none hold no head to replace"),
        ({"arch": "bifpn", "min_level": 4}, r"adds P2 to a detector's pyramid of P3.* has P4 to P7"),
        ({"backbone": create_backbone("lite0", output_stride=16)}, "'lite0' is dilated to output stride 16"),
        ({"backbone": create_backbone("lite0", out_strides=(4, 8))}, "yields strides 2, 4, 8"),
        ({"backbone": create_backbone("lite0"), "drop_path_rate": 0.1}, "drop_path_rate 0.1 concerns the backbone"),
        ({"backbone": create_backbone("lite0"), "weights": "auto"}, "weights auto concerns the backbone"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(arguments: dict[str, object], told: str) -> None:
    values = {"backbone": "lite0", "num_classes": 3, "seg_classes": 4, **arguments}
    with pytest.raises(UserError, match=told):
        effdense.create_multitask(**values)


def test_constants_reach_the_detector() -> None:
    model = effdense.create_multitask("b0", 3, 4, det_arch="lite0", image_size=64, channels=32, drop_path_rate=0.1)
    assert (model.spec.detection.name, model.spec.detection.channels) == ("lite0", 32)
    assert model.spec.detection.image_size == model.image_size == 64
    assert model.spec.detection.drop_path_rate == model.spec.segmentation.drop_path_rate == 0.1
    assert model.spec.segmentation.backbone == model.spec.detection.backbone == "b0"
