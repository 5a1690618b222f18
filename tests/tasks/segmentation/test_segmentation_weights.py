"""Weights from file to model: whole segmenters, backbones alone, and backbones that another task trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import effdense
from effdense.backbones.backbone import Backbone
from effdense.backbones.registry import create_backbone
from effdense.backbones.weights import save_backbone
from effdense.errors import UserError
from effdense.tasks.detection.model import EfficientDet, create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.segmentation.model import SegmentationModel, create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.weights import CLASS_OUTPUTS
from effdense.training.checkpoint import save_model

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
NAMES = ["sky", "sea", "land"]


def segmenter(arch: str = "fpn", names: list[str] = NAMES, **arguments: object) -> SegmentationModel:
    return create_segmentation_model(arch, len(names), class_names=names, **arguments)  # type: ignore[arg-type]


def detector(**arguments: object) -> EfficientDet:
    small = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
    return create_efficientdet("lite0", 2, **small, **arguments)  # type: ignore[arg-type]


def trained(backbone: Backbone) -> None:
    """Make every number of a backbone its own, statistics of BatchNorm and of the images included."""
    generator = torch.Generator().manual_seed(7)
    for value in backbone.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.fill_(11)
    backbone.set_statistics(MEAN, STD)


def save(model: SegmentationModel | EfficientDet, path: Path) -> str:
    if isinstance(model, EfficientDet):
        Detector(model, ["cat", "dog"], image_size=64).save(path)
    else:
        Segmenter(model, NAMES[: model.num_classes], image_size=64).save(path)
    return str(path)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture
def saved(tmp_path: Path) -> tuple[SegmentationModel, str]:
    model = segmenter(auxiliary=True)
    trained(model.backbone)
    return model, save(model, tmp_path / "fpn.safetensors")


# From one task to the other, by path


@pytest.mark.parametrize("arch", ["fpn", "deeplabv3", "bifpn"])
def test_a_detectors_backbone_goes_into_a_segmenter_complete(
    arch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # a detector reads no level of stride 4, yet its file holds the stages that make it
    source = detector()
    trained(source.backbone)
    path = save(source, tmp_path / "detector.safetensors")
    with caplog.at_level(logging.INFO, "effdense"):
        model = segmenter(arch, weights=path)
    assert same(model.backbone, source.backbone)
    assert (model.backbone.mean, model.backbone.std) == (MEAN, STD)
    assert path in model.backbone.weights_source
    messages = "\n".join(record.getMessage() for record in caplog.records)
    count = len(model.backbone.state_dict())
    assert f"all of its {count} weights from file {path}, a detection file of effdense" in messages
    assert "mean 0.100 0.200 0.300 and std 0.400 0.500 0.600" in messages
    assert f"of {path} the backbone is used; decoder and head of the {arch} start untrained" in messages


@pytest.mark.parametrize("arch", ["fpn", "unet", "deeplabv3", "bifpn"])
def test_a_segmenters_backbone_goes_into_a_detector_complete(
    arch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = segmenter(arch, auxiliary=True)
    trained(source.backbone)
    path = save(source, tmp_path / "segmenter.safetensors")
    with caplog.at_level(logging.INFO, "effdense"):
        model = detector(weights=path)
    assert same(model.backbone, source.backbone)
    assert (model.backbone.mean, model.backbone.std) == (MEAN, STD)
    assert f"from file {path}, a segmentation file of effdense" in caplog.text


def test_there_and_back_again_nothing_is_lost(tmp_path: Path) -> None:
    first = detector()
    trained(first.backbone)
    second = segmenter(weights=save(first, tmp_path / "1.safetensors"))
    third = detector(weights=save(second, tmp_path / "2.safetensors"))
    assert same(first.backbone, third.backbone)
    assert (third.backbone.mean, third.backbone.std) == (MEAN, STD)


def test_pspnets_backbone_is_too_short_for_a_detector_and_says_which_stages_are_missing(tmp_path: Path) -> None:
    path = save(segmenter("pspnet"), tmp_path / "psp.safetensors")
    for make in (lambda: detector(weights=path), lambda: segmenter("unet", weights=path)):
        with pytest.raises(UserError, match=r"psp.safetensors.* ends after stage 2.*needs stages 3, 4, 5, 6 too"):
            make()
    assert segmenter("pspnet", weights=path).backbone.weights_source.endswith("(whole segmentation model)")


def test_pspnet_takes_its_part_of_a_detectors_backbone(tmp_path: Path) -> None:
    source = detector()
    trained(source.backbone)
    state = segmenter("pspnet", weights=save(source, tmp_path / "d.safetensors")).backbone.state_dict()
    whole = source.backbone.state_dict()
    assert state.keys() < whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in state.items())


@pytest.mark.parametrize("into", [segmenter, detector], ids=["segmenter", "detector"])
def test_a_backbone_of_another_size_is_refused_and_named(
    into: Callable[..., SegmentationModel | EfficientDet], tmp_path: Path
) -> None:
    path = save(create_segmentation_model("unet", 3, backbone="b0"), tmp_path / "b0.safetensors")
    with pytest.raises(UserError, match=r"do not fit.*the file is for backbone 'b0', not 'lite0'"):
        into(weights=path)


@pytest.mark.parametrize("into", [segmenter, detector], ids=["segmenter", "detector"])
def test_a_backbone_with_a_weight_missing_is_refused(
    into: Callable[..., SegmentationModel | EfficientDet], tmp_path: Path
) -> None:
    model = segmenter("unet")
    state = model.state_dict()
    del state["backbone.blocks.1.0.bn1.running_var"]
    save_file(state, tmp_path / "unet.safetensors", {"effdense": '{"task": "segmentation", "model": {"arch": "unet"}}'})
    with pytest.raises(UserError, match=r"1 missing: blocks\.1\.0\.bn1\.running_var"):
        into(weights=str(tmp_path / "unet.safetensors"))


# A backbone alone


@pytest.mark.parametrize("into", [segmenter, detector], ids=["segmenter", "detector"])
def test_a_backbone_saved_alone_goes_into_either_task(
    into: Callable[..., SegmentationModel | EfficientDet], tmp_path: Path
) -> None:
    backbone = create_backbone("lite0")
    trained(backbone)
    path = tmp_path / "backbone.safetensors"
    save_backbone(backbone, path)
    assert load_file(path).keys() == backbone.state_dict().keys()
    for loaded in (create_backbone("lite0", weights=str(path)), into(weights=str(path)).backbone):
        assert same(loaded, backbone)
        assert (loaded.mean, loaded.std) == (MEAN, STD)
    with pytest.raises(UserError, match="is a model for 'backbone'"):
        effdense.load(path)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": torch.zeros(1), "run": print}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="could run any code"):
        segmenter(weights=str(tmp_path / "x.pth"))


# Whole segmentation models


def test_a_model_of_the_same_architecture_is_loaded_whole(saved: tuple[SegmentationModel, str]) -> None:
    model, path = saved
    loaded = segmenter(auxiliary=True, weights=path)
    assert same(loaded, model)
    assert (loaded.backbone.mean, loaded.backbone.std) == (MEAN, STD)
    assert loaded.backbone.weights_source == f"{path} (whole segmentation model)"


def test_a_state_dict_without_a_header_is_loaded_whole_too(tmp_path: Path) -> None:
    model = segmenter()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "fpn.pth")
    assert same(segmenter(weights=str(tmp_path / "fpn.pth")), model)


def test_a_ready_made_backbone_is_filled_with_the_rest(saved: tuple[SegmentationModel, str]) -> None:
    backbone = create_backbone("lite0")
    loaded = segmenter(auxiliary=True, weights=saved[1], backbone=backbone)
    assert loaded.backbone is backbone
    assert same(loaded, saved[0])


@pytest.mark.parametrize("stride", [8, 16])
def test_another_output_stride_takes_the_same_weights(stride: int, tmp_path: Path) -> None:
    model = segmenter("deeplabv3")
    path = save(model, tmp_path / "deeplab.safetensors")
    loaded = segmenter("deeplabv3", weights=path, output_stride=stride)
    assert same(loaded, model)
    assert loaded.backbone.strides[-1] == stride


def test_of_another_architecture_the_backbone_is_used(
    saved: tuple[SegmentationModel, str], caplog: pytest.LogCaptureFixture
) -> None:
    loaded = segmenter("unet", weights=saved[1])
    assert same(loaded.backbone, saved[0].backbone)
    assert loaded.backbone.mean == MEAN
    assert "decoder and head of the unet start untrained" in caplog.text
    with pytest.raises(UserError, match=r"hold no unet, hence no head to replace"):
        segmenter("unet", weights=saved[1], replace_head=True)


def test_another_backbone_is_refused(saved: tuple[SegmentationModel, str]) -> None:
    with pytest.raises(UserError, match=r"is a fpn on backbone 'lite0', the model is on 'b0'.*--backbone lite0"):
        segmenter(weights=saved[1], backbone="b0")


def test_an_auxiliary_head_that_only_the_file_has_is_left_aside(saved: tuple[SegmentationModel, str]) -> None:
    loaded, whole = segmenter(weights=saved[1]), saved[0].state_dict()
    assert loaded.auxiliary is None
    assert all(torch.equal(value, whole[name]) for name, value in loaded.state_dict().items())


def test_an_auxiliary_head_that_only_the_model_has_starts_untrained_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = segmenter()
    loaded = segmenter(auxiliary=True, weights=save(model, tmp_path / "fpn.safetensors"))
    assert "the auxiliary head starts untrained" in caplog.text
    assert same(loaded.decoder, model.decoder)


# Other classes


@pytest.mark.parametrize("arch", ["fpn", "unet", "bifpn"])
def test_other_classes_are_an_error_or_a_new_head(arch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = segmenter(arch, auxiliary=True)
    path = save(model, tmp_path / "three.safetensors")
    more = [*NAMES, "bird", "fish"]
    with pytest.raises(UserError, match=r"are for 3 classes, the model has 5.*--replace-head"):
        segmenter(arch, more, weights=path)
    loaded = segmenter(arch, more, weights=path, auxiliary=True, replace_head=True)
    assert "3 classes, the model has 5" in caplog.text
    kept = {name for name in loaded.state_dict() if not name.startswith(CLASS_OUTPUTS)}
    assert len(kept) == len(model.state_dict()) - (5 if arch == "bifpn" else 4)
    assert all(torch.equal(loaded.state_dict()[name], model.state_dict()[name]) for name in kept)


def test_classes_in_another_order_are_told_apart(saved: tuple[SegmentationModel, str]) -> None:
    with pytest.raises(UserError, match=r"class 0 is 'sky' in weights from .* and 'land' in the data"):
        segmenter(names=NAMES[::-1], weights=saved[1])
    fresh = segmenter(names=NAMES[::-1], weights=saved[1], replace_head=True).state_dict()
    assert not torch.equal(fresh["head.0.weight"], saved[0].state_dict()["head.0.weight"])


def test_a_request_for_a_new_head_changes_nothing_where_the_classes_agree(
    saved: tuple[SegmentationModel, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert same(segmenter(auxiliary=True, weights=saved[1], replace_head=True), saved[0])
    assert "--replace-head changes nothing" in caplog.text


# What cannot be used


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.999], ids=["empty", "header", "half", "end"])
@pytest.mark.parametrize("into", [segmenter, detector], ids=["segmenter", "detector"])
def test_a_truncated_file_is_refused(
    kept: float, into: Callable[..., object], saved: tuple[SegmentationModel, str], tmp_path: Path
) -> None:
    content = Path(saved[1]).read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"cut\.safetensors (is a damaged|is empty)"):
        into(weights=str(path))


@pytest.mark.parametrize(
    ("statistics", "told"),
    [({"mean": [1, 2], "std": [1, 1, 1]}, "three numbers"), ({"mean": "xyz", "std": 3}, "damaged")],
    ids=["two", "text"],
)
def test_a_recorded_mean_that_is_none_is_refused(statistics: dict[str, object], told: str, tmp_path: Path) -> None:
    save_model(tmp_path / "x.safetensors", create_backbone("lite0"), {"task": "backbone", "preprocessing": statistics})
    with pytest.raises(UserError, match=told):
        segmenter(weights=str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"arch": "unnet"}, r"'unnet' is unknown; did you mean 'unet'"),
        ({"weights": "imagnet"}, r"expected auto, imagenet, none or a file; did you mean 'imagenet'"),
        ({"weights": "no/such.pth"}, "No such file"),
        ({"weights": "none", "replace_head": True}, "hold no fpn, hence no head"),
        ({"backbone": "resnet50"}, "unknown backbone 'resnet50'"),
        ({"names": []}, "1 to 255 classes; got 0"),
        ({"names": ["x"] * 256}, "1 to 255 classes; got 256"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_made_is_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        segmenter(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [{"weights": "imagenet"}, {"weights": "auto"}, {"drop_path_rate": 0.1}], ids=str)
def test_what_a_ready_made_backbone_would_ignore_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(UserError, match="the one handed in is made already"):
        segmenter(backbone=create_backbone("lite0"), **asked)
