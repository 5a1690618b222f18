"""Weights into a model of both tasks: of its like, of either task, of a backbone; what is missing is said."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from effdense.backbones import build
from effdense.backbones import weights as backbone_weights
from effdense.backbones.registry import create_backbone
from effdense.backbones.weights import save_backbone
from effdense.errors import UserError
from effdense.tasks.detection.model import EfficientDet, create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask.model import MultitaskModel, create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.multitask.weights import load_weights
from effdense.tasks.segmentation.model import SegmentationModel, create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter

OBJECTS = ("cat", "dog")
PIXELS = ("sky", "sea", "land")
SMALL = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def multitask(arch: str = "fpn", backbone: str = "lite0", **arguments: Any) -> MultitaskModel:
    names = {"class_names": OBJECTS, "seg_class_names": PIXELS, "image_size": 64, **SMALL, **arguments}
    return create_multitask(backbone, len(names["class_names"]), len(names["seg_class_names"]), arch, **names)


def trained(model: nn.Module) -> nn.Module:
    """Make every number of a model its own, statistics of the images included."""
    generator = torch.Generator().manual_seed(7)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    model.backbone.set_statistics(MEAN, STD)  # type: ignore[operator, union-attr]
    return model


def detector(path: Path, backbone: str = "lite0", **arguments: Any) -> EfficientDet:
    model = create_efficientdet("auto", len(OBJECTS), backbone=backbone, **SMALL, **arguments)
    Detector(trained(model), OBJECTS, image_size=64).save(path)  # type: ignore[arg-type]
    return model


def segmenter(path: Path, arch: str = "fpn", **arguments: Any) -> SegmentationModel:
    model = create_segmentation_model(arch, len(PIXELS), backbone="lite0", **arguments)
    Segmenter(trained(model), PIXELS, image_size=64).save(path)  # type: ignore[arg-type]
    return model


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def differs(one: nn.Module, other: nn.Module) -> set[str]:
    first, second = one.state_dict(), other.state_dict()
    return {name for name, value in first.items() if value.shape != second[name].shape or not value.equal(second[name])}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


ARCHS = [
    pytest.param({"arch": "fpn", "auxiliary": True}, id="fpn"),
    pytest.param({"arch": "pspnet"}, id="pspnet"),
    pytest.param({"arch": "bifpn"}, id="bifpn-shared"),
    pytest.param({"arch": "bifpn", "share_bifpn": False}, id="bifpn-of-its-own"),
]


@pytest.mark.parametrize("arguments", ARCHS)
def test_a_multitask_file_is_loaded_whole(
    arguments: dict[str, Any], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = trained(multitask(**arguments))
    Multitask(source).save(file)  # type: ignore[arg-type]
    loaded = multitask(**arguments, weights=str(file))
    assert equal(loaded, source)
    assert (loaded.backbone.mean, loaded.backbone.std) == (MEAN, STD)
    assert loaded.backbone.weights_source == f"{file} (whole multitask model)"
    assert "untrained" not in caplog.text


@pytest.mark.parametrize("kind", ["multitask", "detector", "backbone"])
def test_the_file_is_read_once(kind: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "multitask":
        Multitask(multitask()).save(file)
    elif kind == "detector":
        detector(file)
    else:
        save_backbone(create_backbone("lite0"), file)
    calls: list[str | Path] = []
    original = backbone_weights.read_state

    def counting(path: str | Path) -> Any:
        calls.append(path)
        return original(path)

    monkeypatch.setattr(backbone_weights, "read_state", counting)
    monkeypatch.setattr(build, "read_state", counting)
    multitask(weights=str(file))
    assert calls == [str(file)]


def test_names_that_nobody_gave_are_those_of_the_file(file: Path) -> None:
    Multitask(multitask()).save(file)
    loaded = create_multitask("lite0", 2, 3, weights=str(file), image_size=64, **SMALL)
    assert (loaded.class_names, loaded.seg_class_names) == (OBJECTS, PIXELS)
    other = create_multitask("lite0", 4, 3, weights=str(file), replace_head=True, image_size=64, **SMALL)
    assert (other.class_names, other.seg_class_names) == (("0", "1", "2", "3"), PIXELS)


@pytest.mark.parametrize("arguments", ARCHS)
def test_of_a_detector_backbone_and_detection_are_taken_and_the_rest_is_said_to_be_untrained(
    arguments: dict[str, Any], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = detector(file)
    loaded = multitask(**arguments, weights=str(file))
    assert equal(loaded.efficientdet, source)
    assert (loaded.backbone.mean, loaded.backbone.std) == (MEAN, STD)
    arch = arguments["arch"]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [f"decoder and head of the {arch} start untrained: of {file} the rest is used"]


@pytest.mark.parametrize("arch", ["fpn", "unet", "deeplabv3plus"])
def test_of_a_segmenter_backbone_and_segmentation_are_taken(
    arch: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undilated = {"output_stride": 32} if arch == "deeplabv3plus" else {}
    source = segmenter(file, arch, **undilated)
    loaded = multitask(arch, weights=str(file))
    assert equal(loaded.segmentation_model, source)
    assert (loaded.backbone.mean, loaded.backbone.std) == (MEAN, STD)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [f"BiFPN and head of the detection start untrained: of {file} the rest is used"]


def test_of_a_segmenter_on_a_detectors_pyramid_the_pyramid_becomes_the_detectors(file: Path) -> None:
    source = trained(multitask("bifpn"))
    Multitask(source).segmenter.save(file)  # type: ignore[arg-type]
    loaded = multitask("bifpn", weights=str(file))
    assert equal(loaded.segmentation_model, source.segmentation_model)  # type: ignore[arg-type]
    assert equal(loaded.detection["neck"], source.detection["neck"])  # type: ignore[index]
    assert {name.split(".")[1] for name in differs(loaded, source)} == {"head"}


def test_a_segmenter_with_a_pyramid_of_its_own_is_not_one_that_reads_the_detectors(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = segmenter(file, "bifpn")
    own = multitask("bifpn", share_bifpn=False, weights=str(file))
    assert equal(own.segmentation_model, source)
    caplog.clear()
    shared = multitask("bifpn", weights=str(file))
    assert equal(shared.backbone, source.backbone)
    assert "BiFPN and head of the detection and decoder and head of the bifpn start untrained" in caplog.text


@pytest.mark.parametrize("arch", ["unet", "pspnet"])
def test_of_another_architecture_the_backbone_is_taken_and_it_is_said(
    arch: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = segmenter(file, "fpn")
    assert equal(multitask(arch, weights=str(file)).backbone, source.backbone)
    assert f"head of the detection and decoder and head of the {arch} start untrained" in caplog.text


def test_a_multitask_file_of_another_architecture_still_gives_the_detection(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = trained(multitask("unet"))
    Multitask(source).save(file)  # type: ignore[arg-type]
    loaded = multitask("fpn", weights=str(file))
    assert equal(loaded.efficientdet, source.efficientdet)  # type: ignore[arg-type]
    assert "decoder and head of the fpn start untrained" in caplog.text


def test_a_backbone_alone_is_taken_and_nothing_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = create_backbone("lite0")
    backbone.set_statistics(MEAN, STD)
    save_backbone(backbone, file)
    loaded = multitask(weights=str(file))
    assert equal(loaded.backbone, backbone)
    assert (loaded.backbone.mean, loaded.backbone.std) == (MEAN, STD)
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_pspnets_backbone_is_too_short_and_says_which_stages_are_missing(file: Path) -> None:
    segmenter(file, "pspnet")
    with pytest.raises(UserError, match=r"w\.safetensors.* ends after stage 2.*needs stages 3, 4, 5, 6 too"):
        multitask("pspnet", weights=str(file))


def test_weights_by_effdets_names_are_those_of_a_detector(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import effdet
    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    config.update({"num_classes": 2, "fpn_cell_repeats": 1, "box_class_repeats": 1, "fpn_channels": 16})
    theirs = effdet.EfficientDet(config, pretrained_backbone=False).state_dict()
    torch.save(theirs, tmp_path / "theirs.pth")
    loaded = multitask(weights=str(tmp_path / "theirs.pth"))
    alone = create_efficientdet("lite0", 2, weights=str(tmp_path / "theirs.pth"), **SMALL)
    assert equal(loaded.efficientdet, alone)
    assert loaded.backbone.mean == alone.backbone.mean == (0.5, 0.5, 0.5)


def test_a_ready_made_backbone_is_filled_with_the_rest(file: Path) -> None:
    source = detector(file)
    backbone = create_backbone("lite0")
    loaded = create_multitask(backbone, 2, 3, weights=str(file), class_names=OBJECTS, image_size=64, **SMALL)
    assert equal(loaded.efficientdet, source)
    assert equal(backbone, source.backbone)


def test_frozen_stages_are_filled_too(file: Path) -> None:
    source = trained(multitask())
    Multitask(source).save(file)  # type: ignore[arg-type]
    model = multitask()
    model.freeze(["backbone", "detection"])
    load_weights(model, file)
    assert equal(model, source)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


# --- other classes


CLASSES = [
    pytest.param({"class_names": ("cat", "cow")}, r"class 1 is 'dog' in weights .* and 'cow' in the data", id="object"),
    pytest.param({"class_names": ("cat",)}, "for 2 classes, the model has 1", id="fewer-objects"),
    pytest.param({"seg_class_names": ("sky", "sea", "lake")}, r"class 2 is 'land' .* and 'lake'", id="pixels"),
    pytest.param({"seg_class_names": (*PIXELS, "x")}, "for 3 classes, the model has 4", id="more-pixels"),
]


@pytest.mark.parametrize(("names", "says"), CLASSES)
def test_other_classes_are_refused_without_replace_head(names: dict[str, Any], says: str, file: Path) -> None:
    Multitask(multitask()).save(file)
    with pytest.raises(UserError, match=f"{says}.*--replace-head"):
        multitask(weights=str(file), **names)


@pytest.mark.parametrize(("names", "says"), CLASSES)
def test_replace_head_leaves_the_last_layer_of_that_head_alone_untrained(
    names: dict[str, Any], says: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del says
    source = trained(multitask())
    Multitask(source).save(file)  # type: ignore[arg-type]
    loaded = multitask(weights=str(file), replace_head=True, **names)
    last = "detection.head.classes.predict.pointwise." if "class_names" in names else "segmentation.head.0."
    assert {name.rpartition(".")[0] + "." for name in differs(loaded, source)} == {last}
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1


def test_replace_head_without_effect_is_said_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = trained(multitask())
    Multitask(source).save(file)  # type: ignore[arg-type]
    assert equal(multitask(weights=str(file), replace_head=True), source)
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert said == [f"--replace-head changes nothing: {file} is for the same classes"]


def test_replace_head_of_a_backbone_is_refused(file: Path) -> None:
    save_backbone(create_backbone("lite0"), file)
    with pytest.raises(UserError, match="neither a detector nor a fpn, hence no head to replace"):
        multitask(weights=str(file), replace_head=True)


# --- what does not fit


def test_another_backbone_is_named(file: Path) -> None:
    detector(file)
    with pytest.raises(UserError, match="on backbone 'lite0', the model is on 'b0': give --backbone lite0"):
        multitask(backbone="b0", weights=str(file))


def test_other_constants_of_the_detector_are_refused_by_their_flags(file: Path) -> None:
    detector(file, anchor_scale=2.0, act="silu")
    says = r"channels 16, not 24, anchor_scale 2.0, not 3.0.*give --bifpn-channels 16 --anchor-scale 2.0 --act silu"
    with pytest.raises(UserError, match=says):
        multitask(weights=str(file), channels=24)


def test_another_pyramid_below_a_segmenter_is_refused(file: Path) -> None:
    multitask("bifpn", act="silu").segmenter.save(file)
    with pytest.raises(UserError, match=r"w\.safetensors reads a detector's pyramid of .*silu.*relu6"):
        multitask("bifpn", weights=str(file))


def test_a_dilated_segmenter_is_warned_of_and_refused_where_it_is_frozen(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter(file, "deeplabv3plus", output_stride=16)
    multitask("deeplabv3plus", weights=str(file))
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len([text for text in said if "with output stride 16, which dilates" in text]) == 1
    with pytest.raises(UserError, match=r"output stride 16, which dilates.*leave segmentation out of --freeze"):
        multitask("deeplabv3plus", weights=str(file), frozen=("backbone", "segmentation"))


def test_an_auxiliary_head_that_a_frozen_segmenter_lacks_is_refused(file: Path) -> None:
    segmenter(file)
    with pytest.raises(UserError, match=r"without an auxiliary head: leave --auxiliary-weight out"):
        multitask(weights=str(file), auxiliary=True, frozen=("segmentation",))
    segmenter(file, auxiliary=True)
    assert "auxiliary" in multitask(weights=str(file), auxiliary=True, frozen=("segmentation",)).segmentation


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        pytest.param("imagnet", "expected auto, imagenet, none or a file; did you mean 'imagenet'", id="mistyped"),
        pytest.param("coco", "'coco', which is no file; expected auto, imagenet, none or a file", id="other-task"),
        pytest.param("nowhere.safetensors", "cannot read weights from nowhere.safetensors", id="missing"),
    ],
)
def test_what_is_no_file_is_refused(weights: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        multitask(weights=weights)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors are no EfficientNet's"):
        multitask(weights=str(tmp_path / "x.safetensors"))
