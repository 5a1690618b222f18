"""The settings of a multitask run: contradictions are refused, each task's own settings follow from them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from effdense.config import parse
from effdense.datasets.data_sources import parse_source
from effdense.errors import UserError
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.multitask.config import MultitaskConfig, absolute_source, ignored_settings
from effdense.tasks.multitask.run import resolve
from effdense.tasks.segmentation.config import SegmentationConfig

CONTRADICTIONS = [
    pytest.param({"image_size": 300}, r"multiples of 32, such as 288 or 320", id="odd-size"),
    pytest.param({"image_size": 20}, r"such as 32 or 64", id="small-size"),
    pytest.param({"freeze": ("backbone", "detection", "segmentation")}, "nothing to train", id="all-frozen"),
    pytest.param({"freeze": ("detection",)}, "--weights FILE that holds the head", id="head-of-no-file"),
    pytest.param({"freeze": ("backbone",), "weights": "none"}, "random weights", id="random-backbone-frozen"),
    pytest.param({"freeze": ("backbone", "backbone"), "weights": "none"}, "random weights", id="named-twice"),
    pytest.param(
        {"freeze": ("backbone", "segmentation"), "weights": "s.safetensors", "arch": "bifpn"},
        "--no-share-bifpn",
        id="frozen-on-a-bifpn-that-learns",
    ),
    pytest.param({"freeze": ("backbone",), "freeze_stages": 2}, "leave --freeze-stages out", id="frozen-twice"),
    pytest.param({"freeze": ("backbone",), "compare": True}, "--compare", id="compare-frozen"),
    pytest.param({"balance": "gradnorm", "gradients_every": 0}, "--gradients-every 1 or more", id="gradnorm-blind"),
    pytest.param({"balance": "gradnorm", "freeze": ("backbone",)}, "--freeze backbone takes away", id="no-gradient"),
    pytest.param(
        {"balance": "uncertainty", "freeze": ("backbone", "detection"), "weights": "d.safetensors"},
        "leaves one to train",
        id="nothing-to-balance",
    ),
    pytest.param({"det_weight": 0.0}, "det_weight is 0.0, expected more than 0", id="weight"),
    pytest.param({"mask_share": 1.0}, "mask_share is 1.0", id="share"),
    pytest.param({"seg_data": "vok:DIR"}, r"vok:DIR.*voc:FOLDER", id="kind"),
    pytest.param({"det_data": "folder:DIR"}, r"names no data set with boxes", id="kind-without-boxes"),
    pytest.param({"det_data": "voc"}, "names no folder: write voc:FOLDER", id="no-folder"),
    pytest.param({"seg_data": "demo:DIR"}, "write demo", id="demo-folder"),
    pytest.param({"arch": "fpm"}, "fpn", id="decoder"),
    pytest.param({"seg_loss": "cee"}, "cee", id="loss"),
    pytest.param({"max_detections": 0}, "max_detections is 0", id="detection-setting"),
    pytest.param({"ohem_threshold": 0.5, "seg_loss": "dice"}, "ohem", id="segmentation-setting"),
]


@pytest.mark.parametrize(("settings", "says"), CONTRADICTIONS)
def test_a_contradiction_is_refused_in_words(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MultitaskConfig(**settings)


IGNORED = [
    pytest.param(["--det-data", "voc:a", "--seg-data", "voc:b", "--dataset", "voc"], "dataset", id="dataset"),
    pytest.param(["--no-share-bifpn"], "share-bifpn", id="bifpn-of-another-decoder"),
    pytest.param(["--gradnorm-alpha", "1"], "gradnorm-alpha", id="alpha"),
    pytest.param(["--weights", "m.safetensors", "--freeze", "backbone", "--gradients-every", "3"], "gradients-every",
                 id="gradients"),
    pytest.param(["--weights", "d.safetensors", "--freeze", "backbone", "detection", "--det-weight", "2"],
                 "det-weight", id="weight-of-a-frozen-task"),
    pytest.param(["--seg-focal-gamma", "3"], "seg-focal-gamma", id="focal-of-another-loss"),
    pytest.param(["--nms", "soft", "--nms-iou", "0.3"], "nms-iou", id="nms"),
    pytest.param(["--scale-max", "1", "--max-class-share", "0.5"], "max-class-share", id="crops"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "flag"), IGNORED)
def test_a_setting_without_effect_is_refused_by_its_flag(arguments: list[str], flag: str) -> None:
    parsed = parse(MultitaskConfig, arguments, prog="train_multi", description="")
    with pytest.raises(UserError, match=f"--(no-)?{flag}"):
        parsed.refuse_ignored(ignored_settings(parsed.config))


def test_the_defaults_ignore_nothing_that_was_given() -> None:
    arguments = ["--label-smoothing", "0.1", "--image-size", "64", "--det-focal-gamma", "2", "--det-weight", "2"]
    parsed = parse(MultitaskConfig, arguments, prog="train_multi", description="")
    parsed.refuse_ignored(ignored_settings(parsed.config))


def test_every_setting_of_a_single_task_is_here_or_is_known_to_be_of_no_use() -> None:
    here = {one.name for one in fields(MultitaskConfig)} | {"det_arch", "det_focal_gamma", "seg_focal_gamma"}
    of_no_use = {"loss", "focal_gamma", "scene_size", "window", "stride", "output_stride"}
    for kind in (DetectionConfig, SegmentationConfig):
        assert {one.name for one in fields(kind)} - here <= of_no_use, kind


def test_settings_of_a_task_alone_are_those_of_the_run() -> None:
    config = MultitaskConfig(
        arch="deeplabv3", det_arch="d1", backbone="b1", det_focal_gamma=2.5, seg_focal_gamma=1.0, seg_loss="focal",
        det_data="voc:a", seg_data="folder:b", image_size=96, seed=7, mask_share=0.25,
    )  # fmt: skip
    boxes, masks = config.detection(epochs=3), config.segmentation(out=Path("x"))
    assert (boxes.dataset, boxes.data_root, masks.dataset, masks.data_root) == ("voc", Path("a"), "folder", Path("b"))
    assert (boxes.arch, boxes.focal_gamma, boxes.epochs) == ("d1", 2.5, 3)
    assert (masks.arch, masks.focal_gamma, masks.loss, masks.out) == ("deeplabv3", 1.0, "focal", Path("x"))
    assert masks.output_stride == 32  # as on the shared backbone, which is never dilated
    assert boxes.image_size == masks.image_size == 96
    assert boxes.seed == masks.seed == 7


def test_resolving_fills_in_what_depends_on_others(tmp_path: Path) -> None:
    demo = resolve(MultitaskConfig(out=tmp_path))
    assert (demo.image_size, demo.backbone) == (128, "lite0")
    apart = resolve(MultitaskConfig(det_data="voc:a", seg_data="demo", out=tmp_path))
    assert apart.image_size == 320
    assert apart.data_root is None
    assert apart.det_data == f"voc:{Path('a').absolute()}"
    assert apart.seg_data == "demo"
    assert resolve(apart) == apart


def test_a_frozen_backbone_leaves_the_tasks_whose_heads_are_not_frozen() -> None:
    assert MultitaskConfig().active == ("detection", "segmentation")
    assert MultitaskConfig(freeze=("backbone", "detection"), weights="d.safetensors").active == ("segmentation",)
    assert MultitaskConfig(freeze=("detection",), weights="d.safetensors").active == ("detection", "segmentation")


@pytest.mark.parametrize(
    ("word", "task", "name", "root"),
    [
        pytest.param("voc:DIR", "detection", "voc", Path("DIR"), id="voc"),
        pytest.param("folder:a:b", "segmentation", "folder", Path("a:b"), id="colon-in-the-folder"),
        pytest.param("demo", "segmentation", "demo", None, id="demo"),
    ],
)
def test_a_source_is_read(word: str, task: str, name: str, root: Path | None) -> None:
    source = parse_source(word, task)
    assert (source.name, source.root) == (name, root)
    assert absolute_source(word) == (word if root is None else f"{name}:{root.absolute()}")
