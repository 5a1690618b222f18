"""What bad input gets from the segmentation tools: one sentence, exit code 2, nothing half written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from effdense.palette import voc_palette
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tools import eval_seg, train_seg

SMALL = ["--weights", "none", "--image-size", "64", "--epochs", "1", "--arch", "linknet"]


def _write_mask(path: Path, values: np.ndarray[Any, Any]) -> None:
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(voc_palette().tobytes())
    picture.save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images for each split with three classes, in Pascal VOC's layout."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(("a", "b", "c", "d")):
        picture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), picture)
        mask = np.zeros((48, 64), np.uint8)
        mask[8:20, 8:30], mask[25:40, 20:50], mask[0] = 1, 2, 255
        _write_mask(root / "SegmentationClass" / f"{name}.png", mask)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("c\nd\n")
    (root / "classes.txt").write_text("background\nlow\nhigh\n")
    return root


def _stray(root: Path) -> None:
    _write_mask(root / "SegmentationClass/a.png", np.full((48, 64), 17))


def _smaller(root: Path) -> None:
    _write_mask(root / "SegmentationClass/a.png", np.zeros((24, 32)))


def _all_void(root: Path) -> None:
    for name in ("a", "b"):
        mask = np.full((48, 64), 255)
        mask[0, 0] = 255
        _write_mask(root / f"SegmentationClass/{name}.png", mask)


def _binary(root: Path) -> None:
    for path in (root / "SegmentationClass").iterdir():
        mask = np.zeros((48, 64), np.uint8)
        mask[10:20] = 255
        cv2.imwrite(str(path), mask)


TRAIN_FAULTS = [
    pytest.param(None, ["--arch", "unett"], ["unett", "unet"], id="unknown-decoder"),
    pytest.param(None, ["--loss", "ce+dicce"], ["dicce", "dice"], id="unknown-loss"),
    pytest.param(None, ["--loss", "ce+ce"], ["ce comes twice"], id="loss-term-twice"),
    pytest.param(None, ["--output-stride", "16"], ["output_stride", "linknet"], id="stride-of-another-decoder"),
    pytest.param(None, ["--backbone", "b22"], ["b22", "b2"], id="unknown-backbone"),
    pytest.param(None, ["--dataset", "vocc"], ["vocc", "voc"], id="unknown-dataset"),
    pytest.param(None, ["--max-clas-share", "1"], ["--max-class-share"], id="unknown-flag"),
    pytest.param(None, ["--max-class-share", "0"], ["max_class_share", "0"], id="share-out-of-range"),
    pytest.param(None, ["--focal-gamma", "1"], ["--focal-gamma", "no effect", "focal"], id="constant-of-another-loss"),
    pytest.param(None, ["--ohem-threshold", "0.7", "--loss", "dice"], ["pixels of the term ce"], id="ohem-without-ce"),
    pytest.param(None, ["--stride", "8"], ["--stride", "no effect"], id="stride-without-window"),
    pytest.param(None, ["--window", "64", "--stride", "65"], ["stride", "65", "64"], id="stride-beyond-window"),
    pytest.param(None, ["--window", "64"], ["window of 64", "--scene-size 0"], id="window-as-large-as-the-scene"),
    pytest.param(None, ["--window", "8"], ["window", "8", "32"], id="window-too-small"),
    pytest.param(None, ["--scene-size", "0"], ["--scene-size 0", "--window"], id="own-pixels-without-window"),
    pytest.param(
        None, ["--class-weights", "1", "2"], ["2 numbers", "3 classes", "high"], id="weights-of-other-classes"
    ),
    pytest.param(None, ["--classes", "ground", "low"], ["value 2", "a.png"], id="fewer-classes-than-values"),
    pytest.param(None, ["--labels", "panoptic"], ["panoptic", "coco"], id="labels-of-another-data-set"),
    pytest.param(None, ["--train-split", "trian"], ["trian", "train"], id="unknown-split"),
    pytest.param(None, ["--weights", "nowhere.pth"], ["nowhere.pth"], id="missing-weights"),
    pytest.param(_stray, [], ["a.png", "17"], id="value-that-is-no-class"),
    pytest.param(_smaller, [], ["a.png", "a.jpg", "32x24", "64x48"], id="mask-of-another-size"),
    pytest.param(_all_void, [], ["train", "has no labelled pixel"], id="nothing-labelled"),
    pytest.param(_binary, [], ["--binary-masks"], id="binary-masks"),
    pytest.param(lambda r: (r / "SegmentationClass/a.png").unlink(), [], ["a.png"], id="missing-mask"),
    pytest.param(lambda r: (r / "SegmentationClass/a.png").write_bytes(b"no"), [], ["a.png"], id="broken-mask"),
    pytest.param(lambda r: (r / "JPEGImages/a.jpg").unlink(), [], ["a.jpg"], id="missing-image"),
    pytest.param(
        lambda r: (r / "ImageSets/Segmentation/train.txt").write_text(""),
        [],
        ["train", "has no image"],
        id="empty-split",
    ),
    pytest.param(lambda r: shutil.rmtree(r), [], ["voc", "JPEGImages", "--download"], id="missing-folder"),
    pytest.param(lambda r: shutil.rmtree(r / "SegmentationClass"), [], ["SegmentationClass"], id="no-such-layout"),
]


@pytest.mark.parametrize(("damage", "flags", "says"), TRAIN_FAULTS)
def test_training_refuses_in_one_sentence_and_writes_nothing(
    damage: Callable[[Path], Any] | None,
    flags: list[str],
    says: list[str],
    voc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage is not None:
        damage(voc)
    out = tmp_path / "run"
    code = train_seg.main(["--dataset", "voc", "--data-root", str(voc), "--out", str(out), *SMALL, *flags])
    error = capsys.readouterr().err
    assert code == 2, error
    assert all(word in error for word in says), error
    assert "Traceback" not in error
    assert not out.exists()


def test_sound_data_train_and_say_where_the_model_is(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--dataset", "voc", "--data-root", str(voc), "--out", str(out), "--batch-size", "2", *SMALL]
    assert train_seg.main(flags) == 0
    assert "best.safetensors" in capsys.readouterr().out
    assert eval_seg.main([str(out / "best.safetensors"), *flags[:4], "--out", str(tmp_path / "scores")]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("mIoU", "Boundary mIoU", "calibration error", "low", "metrics.json"))


def test_the_scores_say_how_they_came_about(voc: Path, model: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "voc", "--data-root", str(voc), "--classes", "background", "low", "high"]
    flags += ["--window", "32", "--scene-size", "48", "--tta", "hflip", "--out", str(tmp_path)]
    assert eval_seg.main([str(model), *flags]) == 0
    about = json.loads((tmp_path / "metrics.json").read_text())["about"]
    used = {"image_size": 64, "window": 32, "stride": None, "scene_size": 48, "tta": ["hflip"]}
    used |= {"labels": "auto", "classes": ["background", "low", "high"], "binary_masks": False, "images": 2}
    assert {name: about[name] for name in used} == used


def test_without_data_the_tool_says_where_it_looked_and_offers_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("voc", "coco"):
        assert train_seg.main(["--dataset", name, "--weights", "none"]) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / "data" / name) in error
        assert "--download" in error
    assert not list(tmp_path.iterdir())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    network = create_segmentation_model("linknet", 3, backbone="lite0")
    Segmenter(network, ("background", "low", "high"), image_size=64).save(path)
    return path


EVAL_FAULTS = [
    pytest.param(["--predictions", "{voc}/SegmentationClass"], ["--annotations", "--num-classes"], id="no-truth"),
    pytest.param(["{model}", "--num-classes", "3"], ["--num-classes", "--predictions"], id="classes-of-a-model"),
    pytest.param(["{model}", "--window", "64", "--stride", "65"], ["stride", "65"], id="stride-beyond-window"),
    pytest.param(["{model}", "--tta", "hflp"], ["hflp", "hflip"], id="unknown-view"),
    pytest.param(["{model}", "--window", "0", "--scene-size", "9"], ["--scene-size"], id="scene-without-window"),
    pytest.param(["nothing.safetensors"], ["nothing.safetensors"], id="missing-model"),
    pytest.param([], ["model file", "--predictions"], id="nothing-to-score"),
    pytest.param(["{model}", "--split", "vall"], ["vall", "val"], id="unknown-split"),
    pytest.param(["{model}", "--classes", "background", "low", "tall"], ["tall"], id="classes-of-another-model"),
]


@pytest.mark.parametrize(("flags", "says"), EVAL_FAULTS)
def test_scoring_refuses_in_one_sentence(
    flags: list[str], says: list[str], voc: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [flag.format(voc=voc, model=model) for flag in flags]
    data = [] if "--predictions" in given else ["--dataset", "voc", "--data-root", str(voc)]
    code = eval_seg.main([*given, *data])
    error = capsys.readouterr().err
    assert code == 2, error
    assert all(word in error for word in says), error
    assert "Traceback" not in error


def test_masks_in_folders_are_scored_with_as_many_classes_as_said(
    voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = str(voc / "SegmentationClass")
    assert eval_seg.main(["--predictions", masks, "--annotations", masks, "--num-classes", "3"]) == 0
    assert "1.0000" in capsys.readouterr().out
    assert eval_seg.main(["--predictions", masks, "--annotations", masks, "--num-classes", "2"]) == 2
    assert "2" in capsys.readouterr().err
