"""A head that is kept: what its file says of constants, images and selection holds, or the run is refused."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from effdense.backbones.registry import create_backbone
from effdense.backbones.weights import save_backbone
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector, Selection
from effdense.tasks.detection.setup import spec_of
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.multitask.run import resolve
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.training.checkpoint import save_model

BACKBONE = "test_efficientnet"
ODD: dict[str, Any] = {
    "channels": 16, "bifpn_repeats": 1, "head_repeats": 2, "anchor_scale": 2.0, "num_scales": 2, "max_level": 6,
    "aspect_ratios": ((2**0.5, 0.5**0.5), (1.0, 1.0)), "act": "relu6", "fusion": "sum",
}  # fmt: skip
"""Constants of which none is the published one."""

SELECTION = Selection(0.05, "soft", 0.4, 20)
FROZEN: dict[str, Any] = {"freeze": ("backbone", "detection"), "seg_data": "voc:b"}
FROZEN_PIXELS: dict[str, Any] = {"freeze": ("backbone", "segmentation"), "det_data": "voc:a", "arch": "linknet"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "d.safetensors"
    model = create_efficientdet("d1", 2, backbone=BACKBONE, **ODD)
    Detector(model, ("a", "b"), image_size=96, selection=SELECTION).save(path)
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "s.safetensors"
    Segmenter(create_segmentation_model("linknet", 3, backbone=BACKBONE), ("x", "y", "z"), image_size=96).save(path)
    return path


def config(weights: Path, out: Path, **changes: Any) -> MultitaskConfig:
    return MultitaskConfig(weights=str(weights), out=out, **changes)


def constants(spec: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items() if name in ODD}


@pytest.mark.parametrize("freeze", [{}, FROZEN], ids=["learns", "frozen"])
def test_constants_that_were_not_given_are_those_of_the_file(
    freeze: dict[str, Any], detector: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "effdense"):
        resolved = resolve(config(detector, tmp_path, **freeze))
    spec = spec_of(resolved.detection())
    assert constants(spec) == ODD
    assert (spec.name, spec.backbone) == ("d1", BACKBONE)
    assert "anchor_scale 2.0" in caplog.text
    assert resolve(resolved) == resolved


def test_they_are_those_of_a_multitask_file_too(tmp_path: Path) -> None:
    model = create_multitask(BACKBONE, 2, 3, det_arch="d1", image_size=64, **ODD)
    Multitask(model).save(tmp_path / "m.safetensors")
    resolved = resolve(config(tmp_path / "m.safetensors", tmp_path))
    assert constants(spec_of(resolved.detection())) == ODD
    assert resolved.image_size == 128  # of the demo: no head is frozen


def test_what_was_given_is_not_overridden_so_that_loading_can_refuse_it(detector: Path, tmp_path: Path) -> None:
    given = resolve(config(detector, tmp_path, anchor_scale=3.0, det_arch="d1"))
    assert (given.anchor_scale, given.num_scales) == (3.0, 2)
    other = resolve(config(detector, tmp_path, det_arch="d2"))
    assert (other.backbone, other.bifpn_channels, other.anchor_scale) == (BACKBONE, None, None)


def test_images_and_selection_of_a_frozen_detector_are_kept(detector: Path, tmp_path: Path) -> None:
    kept = resolve(config(detector, tmp_path, **FROZEN))
    assert kept.image_size == 96
    assert [kept.score_threshold, kept.nms, kept.nms_iou, kept.max_detections] == [0.05, "soft", 0.4, 20]
    learns = resolve(config(detector, tmp_path, det_data="voc:a", seg_data="voc:b"))
    assert learns.image_size == 640  # the D1's
    assert (learns.score_threshold, learns.nms) == (0.001, "hard")


def test_another_selection_is_taken_and_said(detector: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = resolve(config(detector, tmp_path, **FROZEN, nms="hard", score_threshold=0.05))
    assert (kept.nms, kept.score_threshold, kept.max_detections) == ("hard", 0.05, 20)
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert said == ["nms is hard, as asked; with the detector that is kept it was soft"]


@pytest.mark.parametrize(
    ("freeze", "file"), [(FROZEN, "detector"), (FROZEN_PIXELS, "segmenter")], ids=["detector", "segmenter"]
)
def test_another_image_size_than_that_of_a_frozen_head_is_refused(
    freeze: dict[str, Any], file: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(file)
    assert resolve(config(path, tmp_path, **freeze)).image_size == 96
    with pytest.raises(UserError, match=r"--image-size is 64, .* images of 96 pixels.*leave --image-size out"):
        resolve(config(path, tmp_path, **freeze, image_size=64))


@pytest.mark.parametrize(
    ("inference", "says"),
    [
        pytest.param(Inference(window=32), "a window of 32 pixels", id="window"),
        pytest.param(Inference(tta=("hflip",)), "--tta hflip", id="views"),
    ],
)
def test_a_frozen_segmenter_has_to_look_at_images_whole(
    inference: Inference, says: str, segmenter: Path, tmp_path: Path
) -> None:
    header = read_header(segmenter) | {"inference": asdict(inference)}
    save_model(tmp_path / "s.safetensors", torch.nn.Conv2d(1, 1, 1), header)
    with pytest.raises(UserError, match=rf"s\.safetensors looks at images with {says}"):
        resolve(config(tmp_path / "s.safetensors", tmp_path, **FROZEN_PIXELS))
    resolve(config(tmp_path / "s.safetensors", tmp_path, arch="linknet"))  # it learns to look at them whole


def test_of_a_backbone_its_name_is_taken(tmp_path: Path) -> None:
    save_backbone(create_backbone(BACKBONE), tmp_path / "b.safetensors")
    assert resolve(config(tmp_path / "b.safetensors", tmp_path, freeze=("backbone",))).backbone == BACKBONE


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda header: header["model"].pop("backbone"), id="no-backbone"),
        pytest.param(lambda header: header["model"].update(later=1), id="constant-of-a-later-version"),
        pytest.param(lambda header: header.pop("selection"), id="no-selection"),
        pytest.param(lambda header: header.update(preprocessing=[1]), id="list-for-preprocessing"),
    ],
)
def test_a_damaged_header_is_an_error_that_names_the_file(damage: Any, detector: Path, tmp_path: Path) -> None:
    header = read_header(detector)
    damage(header)
    save_model(tmp_path / "x.safetensors", torch.nn.Conv2d(1, 1, 1), header)
    with pytest.raises(UserError, match=r"x\.safetensors.* damaged"):
        resolve(config(tmp_path / "x.safetensors", tmp_path, **FROZEN))


@pytest.mark.parametrize("weights", ["none", "auto", "gone.safetensors"])
def test_without_a_file_nothing_is_filled_in(weights: str, tmp_path: Path) -> None:
    resolved = resolve(MultitaskConfig(weights=weights, out=tmp_path))
    assert (resolved.backbone, resolved.anchor_scale, resolved.det_arch) == ("lite0", None, "auto")
