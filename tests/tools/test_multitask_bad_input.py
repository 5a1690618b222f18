"""What bad input gets from the multitask tools: one sentence, exit code 2, nothing half written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import effdense
from effdense.errors import UserError
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tools import eval_det, eval_multi, eval_seg, join, train_multi

BACKBONE = "test_efficientnet"
OBJECTS, PIXELS = ("low", "high"), ("ground", "low", "high")
NETWORK: dict[str, Any] = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
SMALL = ["--backbone", BACKBONE, "--det-arch", "d0", "--arch", "linknet", "--image-size", "64", "--epochs", "1"]
SMALL += ["--bifpn-channels", "16", "--bifpn-repeats", "1", "--head-repeats", "1", "--batch-size", "4"]
NO_WEIGHTS = ["--weights", "none"]


@pytest.fixture
def data(labelled: Path, tmp_path: Path) -> Path:
    """A copy to be damaged, with boxes/ and pixels/."""
    shutil.copytree(labelled, tmp_path / "data", symlinks=True)
    for link in (tmp_path / "data/pixels").rglob("*.png"):
        if link.is_symlink():
            target = tmp_path / "data" / link.readlink().relative_to(labelled)
            link.unlink()
            link.symlink_to(target)
    return tmp_path / "data"


def _detector(backbone: str, *names: str) -> Detector:
    return Detector(create_efficientdet("d0", len(names), backbone=backbone, **NETWORK), names, image_size=64)


def _segmenter(backbone: str, *names: str, **changes: Any) -> Segmenter:
    model = create_segmentation_model("linknet", len(names), backbone=backbone)
    return Segmenter(model, names, **({"image_size": 64} | changes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, a segmenter and a model of both on the same kind of backbone, and some that do not fit them."""
    folder = tmp_path_factory.mktemp("models")
    _detector(BACKBONE, *OBJECTS).save(folder / "det.safetensors")
    _detector(BACKBONE, "a", "b", "c").save(folder / "det_others.safetensors")
    _detector("lite0", *OBJECTS).save(folder / "det_lite0.safetensors")
    _segmenter(BACKBONE, *PIXELS).save(folder / "seg.safetensors")
    segmenter = _segmenter(BACKBONE, *PIXELS)
    segmenter.model.backbone.load_state_dict(effdense.load(folder / "det.safetensors").model.backbone.state_dict())
    segmenter.save(folder / "seg_like_det.safetensors")
    segmenter.model.backbone.set_statistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    segmenter.save(folder / "seg_statistics.safetensors")
    both = create_multitask(
        BACKBONE, 2, 3, "linknet", det_arch="d0", class_names=OBJECTS, seg_class_names=PIXELS, image_size=64, **NETWORK
    )
    Multitask(both).save(folder / "both.safetensors")
    torch.save(_detector(BACKBONE, *OBJECTS).model.state_dict(), folder / "bare.pth")
    (folder / "broken.safetensors").write_bytes((folder / "det.safetensors").read_bytes()[:-1000])
    return folder


# --- training


def _edit(root: Path, change: Callable[[Any], Any], *splits: str) -> None:
    for split in splits or ("train", "val"):
        path = root / f"boxes/annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def _capital(root: Path) -> None:
    _edit(root, lambda content: content["categories"][0].update(name="Low"))


def _broken_box(root: Path) -> None:
    _edit(root, lambda content: content["annotations"][0].update(bbox=[5, 5, float("nan"), 4]))


def _no_box(root: Path) -> None:
    _edit(root, lambda content: content.update(annotations=[]))


def _truncated(root: Path) -> None:
    path = root / "boxes/train/train0.png"
    path.write_bytes(path.read_bytes()[:60])


def _stray(root: Path) -> None:
    cv2.imwrite(str(root / "pixels/masks/train/train8.png"), np.full((48, 64), 17, np.uint8))


def _smaller_mask(root: Path) -> None:
    cv2.imwrite(str(root / "pixels/masks/train/train5.png"), np.zeros((24, 32), np.uint8))


def _boxes_of_another_size(root: Path) -> None:
    _edit(root, lambda content: [image.update(width=48, height=64) for image in content["images"]])


def _all_void(root: Path) -> None:
    for path in (root / "pixels/masks/train").iterdir():
        cv2.imwrite(str(path), np.full((48, 64), 255, np.uint8))


def _no_masks(root: Path) -> None:
    shutil.rmtree(root / "pixels/masks")


def _one_mask_less(root: Path) -> None:
    (root / "pixels/masks/train/train8.png").unlink()


BOTH = ["--det-data", "coco:{data}/boxes", "--seg-data", "folder:{data}/pixels"]
BOXES = BOTH[:2]
MASKS = BOTH[2:]
ONE = ["--dataset", "coco", "--data-root", "{data}/boxes"]
DET, SEG, WHOLE = (["--weights", f"{{models}}/{name}.safetensors"] for name in ("det", "seg", "both"))

FAULTS = [
    # the command line
    pytest.param(None, [*BOTH, "--balence", "fixed"], ["--balence", "--balance"], id="unknown-flag"),
    pytest.param(None, [*BOTH, "--balance", "gradnrm"], ["gradnrm", "gradnorm"], id="unknown-balance"),
    pytest.param(None, [*BOTH, "--arch", "unett"], ["unett", "unet"], id="unknown-decoder"),
    pytest.param(None, [*BOTH, "--det-arch", "d9"], ["d9", "d7"], id="unknown-detector"),
    pytest.param(None, [*BOTH, "--backbone", "b22"], ["b22", "b2"], id="unknown-backbone"),
    pytest.param(None, [*BOTH, "--image-size", "300"], ["300", "multiples of 32", "288 or 320"], id="size-not-shared"),
    pytest.param(None, [*BOTH, "--freeze", "neck"], ["neck", "backbone"], id="unknown-part"),
    pytest.param(None, [*BOTH, "--freeze", "detection"], ["--freeze detection", "--weights FILE"], id="freeze-no-file"),
    pytest.param(None, [*BOTH, "--freeze", "backbone"], ["random weights", "--weights none"], id="freeze-random"),
    pytest.param(
        None, [*BOTH, "--freeze", "backbone", "detection", "segmentation"], ["nothing to train"], id="freeze-all"
    ),
    pytest.param(None, [*BOTH, "--mask-share", "0"], ["mask_share", "more than 0"], id="share-out-of-range"),
    pytest.param(None, [*BOTH, "--gradnorm-alpha", "1"], ["--gradnorm-alpha", "no effect"], id="constant-unused"),
    pytest.param(None, [*BOTH, "--no-share-bifpn"], ["--share-bifpn", "no effect", "linknet"], id="no-bifpn-to-share"),
    pytest.param(None, [*BOTH, "--data-root", "x"], ["--data-root"], id="two-ways-to-name-data"),
    pytest.param(None, [*BOTH, "--batch-size", "1"], ["--batch-size 2", "got 1"], id="batch-of-one"),
    pytest.param(None, [*BOTH, "--batch-size", "2"], ["--batch-size", "one image"], id="one-image-of-a-label"),
    pytest.param(
        None, [*BOTH, "--arch", "pan"], ["image_size is 64", "256 or 288", "--image-size"], id="pan-in-64-pixels"
    ),
    # which data
    pytest.param(None, ["--det-data", "cocoo:{data}/boxes", *MASKS], ["cocoo", "coco:FOLDER"], id="unknown-kind"),
    pytest.param(None, ["--det-data", "folder:{data}/pixels", *MASKS], ["folder", "boxes"], id="kind-without-boxes"),
    pytest.param(None, ["--det-data", "coco:{data}/nowhere", *MASKS], ["nowhere"], id="missing-folder"),
    pytest.param(None, BOXES, ["no masks are given", "--seg-data", "train_det"], id="boxes-alone"),
    pytest.param(None, MASKS, ["no boxes are given", "--det-data", "train_seg"], id="masks-alone"),
    pytest.param(
        None, ["--dataset", "voc", "--data-root", "{data}"], ["neither", "JPEGImages"], id="data-with-neither-label"
    ),
    pytest.param(None, ["--dataset", "voc", "--data-root", "{data}/nowhere"], ["nowhere"], id="no-such-folder"),
    pytest.param(None, ["--dataset", "folder", "--data-root", "{data}"], ["folder", "coco"], id="dataset-of-masks"),
    pytest.param(None, [*BOTH, "--train-split", "trian"], ["trian", "train"], id="unknown-split"),
    # labels
    pytest.param(_capital, BOTH, ["contradict", "'Low'", "'low'"], id="class-lists-that-contradict"),
    pytest.param(_broken_box, BOTH, ["annotation id 1", "instances_train.json"], id="broken-box"),
    pytest.param(_no_box, BOTH, ["train", "no example"], id="no-box-at-all"),
    pytest.param(_truncated, BOTH, ["train0.png"], id="truncated-image"),
    pytest.param(_stray, BOTH, ["train8.png", "17"], id="value-that-is-no-class"),
    pytest.param(_smaller_mask, BOTH, ["train5.png", "32x24", "64x48"], id="mask-of-another-size"),
    pytest.param(_boxes_of_another_size, BOTH, ["48x64", "64x48"], id="boxes-of-another-size"),
    pytest.param(_all_void, BOTH, ["train", "no labelled pixel"], id="nothing-labelled"),
    pytest.param(_no_masks, BOTH, ["masks"], id="no-masks"),
    pytest.param(_one_mask_less, BOTH, ["train8.png"], id="missing-mask"),
    pytest.param(None, [*BOTH, "--classes", "ground", "low"], ["value 2"], id="fewer-classes-than-values"),
    # weights
    pytest.param(None, [*BOTH, "--weights", "nowhere.pth"], ["nowhere.pth"], id="missing-weights"),
    pytest.param(
        None, [*BOTH, "--weights", "{models}/broken.safetensors"], ["broken.safetensors"], id="broken-weights"
    ),
    pytest.param(
        None,
        [*BOTH, "--weights", "{models}/det_lite0.safetensors"],
        ["det_lite0.safetensors", "'lite0'", BACKBONE],
        id="weights-of-another-backbone",
    ),
    pytest.param(
        None,
        [*BOTH, "--weights", "{models}/det_others.safetensors"],
        ["for the detection head, ", "det_others.safetensors", "--replace-head"],
        id="weights-for-other-classes",
    ),
    pytest.param(
        None,
        [*MASKS, "--weights", "{models}/seg.safetensors", "--freeze", "backbone", "detection"],
        ["seg.safetensors", "segmenter", "no detection head"],
        id="freeze-a-head-that-the-file-lacks",
    ),
    pytest.param(
        None,
        [*BOTH, *SEG, "--freeze", "detection"],
        ["--freeze detection", "seg.safetensors", "does not hold"],
        id="freeze-a-head-that-the-file-lacks-with-its-labels",
    ),
    pytest.param(
        None,
        [*BOTH, "--weights", "{models}/det_others.safetensors", "--freeze", "detection", "--replace-head"],
        ["3 classes", "--freeze detection keeps that head"],
        id="freeze-a-head-that-is-replaced",
    ),
    pytest.param(
        None,
        [*BOTH, "--weights", "{models}/seg.safetensors", "--arch", "fpn", "--freeze", "segmentation"],
        ["--freeze segmentation", "seg.safetensors", "(fpn)"],
        id="freeze-the-head-of-another-decoder",
    ),
    pytest.param(
        None,
        [*MASKS, "--weights", "{models}/bare.pth", "--freeze", "backbone", "detection"],
        ["bare.pth", "--det-data"],
        id="freeze-a-head-that-names-no-classes",
    ),
    pytest.param(
        None,
        [*MASKS, *DET, "--freeze", "backbone", "detection", "--det-weight", "2"],
        ["--det-weight", "no effect"],
        id="weight-of-what-does-not-learn",
    ),
    pytest.param(
        None,
        [*BOTH, *DET, "--freeze", "backbone", "detection", "--balance", "uncertainty"],
        ["uncertainty", "two tasks"],
        id="balance-of-one-task",
    ),
]


@pytest.mark.parametrize(("damage", "flags", "says"), FAULTS)
def test_training_refuses_in_one_sentence_and_writes_nothing(
    damage: Callable[[Path], Any] | None,
    flags: list[str],
    says: list[str],
    data: Path,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if damage is not None:
        damage(data)
    out = tmp_path / "run"
    given = [flag.format(data=data, models=models) for flag in flags]
    weights = [] if "--weights" in given else NO_WEIGHTS
    code = train_multi.main(["--out", str(out), *SMALL, *weights, *given])
    error = capsys.readouterr().err
    assert code == 2, error
    assert all(word in error for word in says), error
    assert "Traceback" not in error
    assert {entry.name for entry in tmp_path.iterdir()} == {"data"}


@pytest.fixture(scope="module")
def run(labelled: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    given = [flag.format(data=labelled, models=models) for flag in [*BOTH, *WHOLE]]
    assert train_multi.main(["--out", str(out), *SMALL, *given]) == 0
    return out


def test_sound_data_train_and_say_where_the_model_is(
    run: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [flag.format(data=labelled) for flag in BOTH]
    assert eval_multi.main([str(run / "best.safetensors"), *given, "--out", str(tmp_path / "scores")]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("AP50", "mIoU", "low", "high", "ground"))


def _one_image_less(root: Path) -> None:
    _edit(root, lambda content: content["images"].pop(0), "train")
    _edit(
        root,
        lambda content: content.update(annotations=[one for one in content["annotations"] if one["image_id"]]),
        "train",
    )


def _renamed(root: Path) -> None:
    (root / "pixels/classes.txt").write_text("floor\nlow\nhigh\n")


RESUMED = [
    pytest.param(None, ["--lr", "0.1"], ["--lr", "--resume"], id="another-setting"),
    pytest.param(None, ["--freeze", "backbone"], ["--freeze", "--resume"], id="another-freeze"),
    pytest.param(_one_image_less, [], ["12 images", "11", "the same data"], id="another-number-of-images"),
    pytest.param(_renamed, [], ["classes", "the same data"], id="classes-of-another-name"),
    pytest.param(lambda root: shutil.rmtree(root / "pixels"), [], ["pixels"], id="masks-that-are-gone"),
]


@pytest.mark.parametrize(("damage", "flags", "says"), RESUMED)
def test_resuming_refuses_in_one_sentence_and_changes_nothing(
    damage: Callable[[Path], Any] | None,
    flags: list[str],
    says: list[str],
    run: Path,
    labelled: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage is not None:
        damage(data)
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace(str(labelled), str(data)))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    assert train_multi.main(["--resume", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in says), error
    assert "Traceback" not in error
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


# --- scoring, views, joining


SCORING = [
    pytest.param(eval_seg, ["{models}/det.safetensors", *ONE], ["det.safetensors", "no segmentation head"], id="seg"),
    pytest.param(eval_det, ["{models}/seg.safetensors", *ONE], ["seg.safetensors", "no detection head"], id="det"),
    pytest.param(eval_multi, ["{models}/det.safetensors", *BOTH], ["det.safetensors", "no segmentation"], id="multi"),
    pytest.param(eval_multi, ["nowhere.safetensors", *BOTH], ["nowhere.safetensors"], id="missing-model"),
    pytest.param(eval_multi, ["{models}/broken.safetensors", *BOTH], ["broken.safetensors"], id="broken-model"),
    pytest.param(eval_multi, ["{models}/both.safetensors", *BOTH, "--split", "vall"], ["vall", "val"], id="split"),
    pytest.param(eval_multi, ["{models}/both.safetensors", "--det-data", "voc"], ["voc:FOLDER"], id="no-folder"),
    pytest.param(eval_multi, [], ["MODEL must be given"], id="no-model"),
]


@pytest.mark.parametrize(("tool", "flags", "says"), SCORING)
def test_scoring_refuses_in_one_sentence(
    tool: Any,
    flags: list[str],
    says: list[str],
    labelled: Path,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tool.main([flag.format(data=labelled, models=models) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in says), error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_view_that_a_model_does_not_have_is_refused(models: Path) -> None:
    detector, segmenter = effdense.load(models / "det.safetensors"), effdense.load(models / "seg.safetensors")
    with pytest.raises(UserError, match=r"det\.safetensors is a detector; it has no segmentation head"):
        detector.segmenter  # noqa: B018 - asking is what is refused
    with pytest.raises(UserError, match=r"seg\.safetensors is a segmenter; it has no detection head"):
        segmenter.detector  # noqa: B018


JOINS = [
    pytest.param(
        ["det", "seg"],
        ["do not share one backbone", "conv_stem.weight is the first tensor that differs"],
        id="weights-that-differ",
    ),
    pytest.param(["det_lite0", "seg"], ["'lite0'", BACKBONE], id="networks-that-differ"),
    pytest.param(["det", "seg_statistics"], ["another mean", "0.1"], id="statistics-that-differ"),
    pytest.param(["seg", "det"], ["seg.safetensors is a segmenter", "no detection head"], id="the-wrong-way-round"),
    pytest.param(["det", "det"], ["det.safetensors is a detector", "no segmentation head"], id="two-detectors"),
    pytest.param(["det", "nowhere"], ["nowhere.safetensors"], id="missing-file"),
    pytest.param(["det"], ["segmenter"], id="one-file"),
]


@pytest.mark.parametrize(("files", "says"), JOINS)
def test_joining_refuses_in_one_sentence_and_writes_nothing(
    files: list[str], says: list[str], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "joined.safetensors"
    assert join.main([*(str(models / f"{name}.safetensors") for name in files), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in says), error
    assert "Traceback" not in error
    assert not out.exists()


def test_two_heads_on_the_same_backbone_join(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "joined.safetensors"
    files = [str(models / name) for name in ("det.safetensors", "seg_like_det.safetensors")]
    assert join.main([*files, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert effdense.load(out).class_names == OBJECTS
