"""The settings of a multitask run: contradictions are refused, each task's own settings follow from them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from effdense.backbones.backbone import FREEZE_LIMIT
from effdense.config import parse
from effdense.datasets.data_sources import parse_source
from effdense.errors import UserError
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.run import resolve as resolve_boxes
from effdense.tasks.multitask.config import SELECTION, MultitaskConfig, absolute_source, ignored_settings
from effdense.tasks.multitask.run import resolve
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.run import resolve as resolve_masks
from effdense.training.settings import ALL_STAGES

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
    pytest.param(
        {"balance": "gradnorm", "freeze_stages": 8, "weights": "b.safetensors"},
        "--freeze-stages 8 takes away",
        id="no-gradient-by-stages",
    ),
    pytest.param(
        {"freeze": ("detection", "segmentation"), "freeze_stages": 8, "weights": "m.safetensors"},
        "with --freeze-stages 8 leaves nothing to train",
        id="all-frozen-by-stages",
    ),
    pytest.param(
        {"freeze": ("segmentation",), "freeze_stages": 8, "weights": "s.safetensors", "arch": "bifpn"},
        "--no-share-bifpn",
        id="frozen-by-stages-on-a-bifpn-that-learns",
    ),
    pytest.param({"arch": "pan", "image_size": 128}, r"from 256 on with --arch pan, such as 256 or 288", id="pan"),
    pytest.param({"arch": "pan", "image_size": 300}, r"such as 288 or 320: .*--image-size", id="pan-odd-size"),
    pytest.param(
        {"det_data": "voc:a", "seg_data": "voc:b", "download": True},
        "--download goes with --dataset voc or coco; --det-data",
        id="download-of-folders",
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


NO_BOXES = ["--seg-data", "voc:b", "--weights", "d.safetensors", "--freeze", "backbone", "detection"]
NO_MASKS = ["--det-data", "voc:a", "--weights", "s.safetensors", "--freeze", "backbone", "segmentation"]

IGNORED = [
    pytest.param(["--det-data", "voc:a", "--seg-data", "voc:b", "--dataset", "voc"], "dataset", id="dataset"),
    pytest.param(["--no-share-bifpn"], "share-bifpn", id="bifpn-of-another-decoder"),
    pytest.param(["--gradnorm-alpha", "1"], "gradnorm-alpha", id="alpha"),
    pytest.param(["--weights", "m.safetensors", "--freeze", "backbone", "--gradients-every", "3"], "gradients-every",
                 id="gradients"),
    pytest.param(["--weights", "d.safetensors", "--freeze", "backbone", "detection", "--det-weight", "2"],
                 "det-weight", id="weight-of-a-frozen-task"),
    *(
        pytest.param(["--weights", "b.safetensors", "--freeze-stages", "8", f"--{flag}", "0.5"], flag, id=f"8-{flag}")
        for flag in ("drop-path-rate", "backbone-lr-factor")
    ),
    pytest.param(["--weights", "b.safetensors", "--freeze-stages", "8", "--gradients-every", "3"], "gradients-every",
                 id="gradients-by-stages"),
    *(
        pytest.param([*NO_BOXES, f"--{flag}", *value.split()], flag, id=f"no-boxes-{flag}")
        for flag, value in {
            "box-weight": "20", "focal-alpha": "0.5", "det-focal-gamma": "2", "mask-share": "0.3",
            "evaluator": "pycocotools",
        }.items()
    ),
    *(
        pytest.param([*NO_MASKS, f"--{flag}", *value.split()], flag, id=f"no-masks-{flag}")
        for flag, value in {
            "seg-loss": "focal", "class-weights": "1 2", "class-weighting": "median", "ohem-threshold": "0.5",
            "auxiliary-weight": "0.4", "max-class-share": "0.5", "mask-share": "0.3", "labels": "instances",
            "classes": "a b", "binary-masks": "",
        }.items()
    ),
    pytest.param([*NO_BOXES, "--seg-loss", "dice", "--label-smoothing", "0.1"], "label-smoothing", id="smoothing"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--seg-loss", "dice", "--label-smoothing", "0.1"], id="smoothing-of-the-detection-alone"),
        pytest.param([*NO_BOXES, "--nms", "soft", "--seg-loss", "focal"], id="what-a-frozen-detector-is-saved-with"),
        pytest.param([*NO_MASKS, "--box-weight", "20", "--evaluator", "pycocotools"], id="of-the-task-that-learns"),
        pytest.param(["--weights", "d.safetensors", "--freeze", "detection", "--box-weight", "20"], id="both-active"),
    ],
)
def test_what_has_an_effect_is_taken(arguments: list[str]) -> None:
    parsed = parse(MultitaskConfig, arguments, prog="train_multi", description="")
    parsed.refuse_ignored(ignored_settings(parsed.config))


def test_smoothing_is_of_the_detection_alone_where_the_other_loss_takes_none() -> None:
    config = MultitaskConfig(seg_loss="dice", label_smoothing=0.1)
    assert (config.detection().label_smoothing, config.segmentation().label_smoothing) == (0.1, 0.0)


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


@pytest.mark.parametrize(
    ("settings", "backbone"),
    [
        ({}, "lite0"),
        ({"det_arch": "d2"}, "b2"),
        ({"backbone": "b1"}, "b1"),
        ({"det_arch": "d2", "backbone": "b1"}, "b1"),
    ],
    ids=["neither", "configuration", "backbone", "both"],
)
def test_the_backbone_goes_with_the_configuration(settings: dict[str, Any], backbone: str, tmp_path: Path) -> None:
    resolved = resolve(MultitaskConfig(out=tmp_path, **settings))
    assert (resolved.backbone, resolved.detection().backbone, resolved.segmentation().backbone) == (backbone,) * 3


def test_a_decoder_that_needs_large_images_gets_them_by_default(tmp_path: Path) -> None:
    assert resolve(MultitaskConfig(arch="pan", out=tmp_path)).image_size == 256


def test_which_boxes_are_kept_is_resolved_to_the_detectors_defaults(tmp_path: Path) -> None:
    resolved = resolve(MultitaskConfig(nms="soft", out=tmp_path))
    assert [getattr(resolved, name) for name in SELECTION] == [0.001, "soft", 0.5, 100]


def test_a_file_of_weights_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pth", "none"):
        Path(name).touch()
    kinds = (MultitaskConfig, resolve), (DetectionConfig, resolve_boxes), (SegmentationConfig, resolve_masks)
    for kind, fill_in in kinds:
        found = [fill_in(kind(out=tmp_path, weights=word)).weights for word in ("w.pth", "none", "gone.pth")]
        assert found == [str(tmp_path / "w.pth"), "none", "gone.pth"]


def test_all_stages_are_as_many_as_a_backbone_counts() -> None:
    assert ALL_STAGES == FREEZE_LIMIT


def test_a_frozen_backbone_leaves_the_tasks_whose_heads_are_not_frozen() -> None:
    assert MultitaskConfig().active == ("detection", "segmentation")
    assert MultitaskConfig(freeze=("backbone", "detection"), weights="d.safetensors").active == ("segmentation",)
    assert MultitaskConfig(freeze=("detection",), weights="d.safetensors").active == ("detection", "segmentation")
    by_stages = MultitaskConfig(freeze=("detection",), freeze_stages=8, weights="d.safetensors")
    assert by_stages.active == ("segmentation",)


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
