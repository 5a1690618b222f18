"""The tool eval-multi: tables and files of both tasks; one sentence for what does not fit, and nothing written."""

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
from PIL import Image

import effdense
from effdense.palette import voc_palette
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tools import eval_det, eval_multi, eval_seg, main

THINGS, STUFF = ("low", "high"), ("background", "low", "high")
SMALL: dict[str, Any] = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    names: dict[str, Any] = {"class_names": THINGS, "seg_class_names": STUFF}
    both = create_multitask("lite0", 2, 3, "linknet", **names, image_size=64, **SMALL)
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            if name.endswith("pointwise.weight") and "head.classes" in name:
                parameter.mul_(30)
    Multitask(both).save(folder / "multi.safetensors")
    detector = create_efficientdet("lite0", 2, **SMALL)
    Detector(detector, THINGS, image_size=64).save(folder / "det.safetensors")
    return {path.stem: path for path in folder.iterdir()}


Box = tuple[str, tuple[int, int, int, int]]

BOXES: tuple[Box, ...] = (("low", (3, 3, 30, 30)), ("high", (12, 3, 39, 30)))


def _xml(name: str, boxes: tuple[Box, ...]) -> str:
    objects = [
        f"<object>\n<name>{found}</name>\n<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox>\n</object>\n"
        for found, (left, top, right, bottom) in boxes
    ]
    size = "<size><width>64</width><height>48</height></size>"
    return f"<annotation>\n<filename>{name}.jpg</filename>\n{size}\n{''.join(objects)}</annotation>\n"


def _write_mask(path: Path, values: np.ndarray[Any, Any]) -> None:
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(voc_palette().tobytes())
    picture.save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images of the split val in Pascal VOC's layout: one with boxes, one with a mask, one with both."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(("a", "b", "c")):
        picture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), picture)
        mask = np.zeros((48, 64), np.uint8)
        mask[8:20, 8:30], mask[25:40, 20:50], mask[0] = 1, 2, 255
        if name != "a":
            _write_mask(root / "SegmentationClass" / f"{name}.png", mask)
        if name != "c":
            (root / "Annotations" / f"{name}.xml").write_text(_xml(name, BOXES))
    (root / "ImageSets/Main/val.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("b\nc\n")
    (root / "classes.txt").write_text("background\nlow\nhigh\n")
    return root


def _metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def test_both_are_scored_as_the_single_tools_score_the_same_file(
    models: dict[str, Path], voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = effdense.load(models["multi"]).predict(voc / "JPEGImages/b.jpg").detections  # some are to be right
    corners = [tuple(box) for box in (found.boxes_xyxy[:9:3].round().astype(int) + np.array([1, 1, 0, 0])).tolist()]
    boxes = tuple((THINGS[label], box) for label, box in zip(found.labels[:9:3], corners, strict=True))
    (voc / "Annotations/b.xml").write_text(_xml("b", boxes))
    data = ["--dataset", "voc", "--data-root", str(voc), "--batch-size", "1"]
    flags = ["--nms", "soft", "--score-threshold", "0.01", "--max-detections", "50", "--confusion-score", "0.1"]
    both, det, seg = (tmp_path / name for name in ("both", "det", "seg"))
    assert eval_multi.main([str(models["multi"]), *data, *flags, "--out", str(both)]) == 0
    shown = capsys.readouterr().out
    assert eval_det.main([str(models["multi"]), *data, *flags, "--out", str(det)]) == 0
    assert eval_seg.main([str(models["multi"]), *data, "--out", str(seg)]) == 0
    for ours, theirs in ((both / "detection", det), (both / "segmentation", seg)):
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        one, other = _metrics(ours), _metrics(theirs)
        assert one.pop("about") != other.pop("about")
        assert one == other
    assert (both / "detection/detections.json").read_bytes() == (det / "detections.json").read_bytes()
    assert _metrics(both / "detection")["coco"]["metrics"]["AR100"] > 0
    words = ("AP50", "VOC AP50", "high", "mIoU", "Boundary mIoU", "calibration error", "background")
    assert all(word in shown for word in words)
    assert shown.index("VOC AP50") < shown.index("mIoU")
    for name in ("detection/metrics.json", "segmentation/metrics.json"):
        assert f"wrote {both / name}" in shown


def test_the_scores_say_how_they_came_about(models: dict[str, Path], voc: Path, tmp_path: Path) -> None:
    flags = ["--det-data", f"voc:{voc}", "--seg-data", f"voc:{voc}", "--no-calibration", "--image-size", "96"]
    assert eval_multi.main([str(models["multi"]), *flags, "--classes", *STUFF, "--out", str(tmp_path / "out")]) == 0
    det, seg = (_metrics(tmp_path / "out" / name)["about"] for name in ("detection", "segmentation"))
    used = {"model": str(models["multi"]), "dataset": "voc", "data_root": str(voc), "split": "val", "image_size": 96}
    assert {name: det[name] for name in used} == {name: seg[name] for name in used} == used
    assert (det["images"], seg["images"], seg["classes"]) == (2, 2, list(STUFF))
    assert det["selection"]["nms"] == "hard"


@pytest.mark.parametrize(
    ("flag", "task", "shown", "hidden"),
    [
        pytest.param("--det-data", "detection", "AP50", "mIoU", id="boxes"),
        pytest.param("--seg-data", "segmentation", "mIoU", "AP50", id="masks"),
    ],
)
def test_one_label_alone_is_scored_alone(
    flag: str,
    task: str,
    shown: str,
    hidden: str,
    models: dict[str, Path],
    voc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert eval_multi.main([str(models["multi"]), flag, f"voc:{voc}", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert shown in said
    assert hidden not in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == [task]


def test_nothing_is_written_without_a_folder(
    models: dict[str, Path], voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main.main(["eval-multi", str(models["multi"]), "--dataset", "voc", "--data-root", str(voc)]) == 0
    assert not list((tmp_path / "here").iterdir())


def test_an_image_that_cannot_be_read_is_left_out_as_asked(models: dict[str, Path], voc: Path, tmp_path: Path) -> None:
    (voc / "JPEGImages/a.jpg").write_bytes(b"no")
    flags = ["--dataset", "voc", "--data-root", str(voc), "--skip-broken", "--out", str(tmp_path / "out")]
    assert eval_multi.main([str(models["multi"]), *flags]) == 0
    about = [_metrics(tmp_path / "out" / name)["about"]["images"] for name in ("detection", "segmentation")]
    assert about == [1, 2]


def _stray_box(root: Path) -> None:
    (root / "Annotations/a.xml").write_text(_xml("a", (("wasp", (3, 3, 30, 30)),)))


def _stray_value(root: Path) -> None:
    _write_mask(root / "SegmentationClass/b.png", np.full((48, 64), 17))


def _other_size(root: Path) -> None:
    _write_mask(root / "SegmentationClass/b.png", np.zeros((24, 32)))


def _other_classes(root: Path) -> None:
    (root / "classes.txt").write_text("background\nlow\ntall\n")


DATA = "--dataset voc --data-root {voc}"

FAULTS = [
    pytest.param(None, "", ["MODEL must be given"], id="nothing"),
    pytest.param(None, "nowhere.safetensors", ["nowhere.safetensors"], id="missing-model"),
    pytest.param(None, "{det} " + DATA, ["det.safetensors is a detector", "no segmentation head"], id="a-detector"),
    pytest.param(None, "{multi} --dataset vocc", ["vocc", "voc"], id="unknown-data-set"),
    pytest.param(None, "{multi} --dataset folder", ["demo, coco, voc", "--seg-data folder:DIR"], id="masks-alone"),
    pytest.param(None, "{multi} --splitt val", ["--splitt", "--split"], id="unknown-flag"),
    pytest.param(None, "{multi} --det-data vocc:{voc}", ["vocc", "'voc'", "boxes"], id="unknown-kind"),
    pytest.param(
        None, "{multi} --det-data folder:{voc}", ["folder", "no data set with boxes"], id="kind-without-boxes"
    ),
    pytest.param(None, "{multi} --seg-data voc", ["names no folder", "voc:FOLDER"], id="no-folder"),
    pytest.param(None, "{multi} --seg-data voc:{voc}/no", ["voc/no", "does not exist"], id="missing-folder"),
    pytest.param(None, "{multi} --data-root {voc}", ["--data-root", "demo"], id="root-of-the-demo-set"),
    pytest.param(
        None, "{multi} --det-data voc:{voc} " + DATA, ["--dataset", "no effect", "--det-data"], id="two-names"
    ),
    pytest.param(
        None, "{multi} --det-data voc:{voc} --data-root {voc}", ["--data-root", "no effect"], id="two-folders"
    ),
    pytest.param(
        None,
        "{multi} --det-data voc:{voc} --annotations a.json --images .",
        ["--annotations", "no effect"],
        id="two-files",
    ),
    pytest.param(None, "{multi} --dataset coco --annotations a.json", ["--annotations", "--images"], id="no-images"),
    pytest.param(
        None,
        "{multi} --dataset coco --annotations a.json --images . --split test",
        ["--split", "no effect"],
        id="split-of-a-file",
    ),
    pytest.param(None, "{multi} " + DATA + " --annotations a --images b", ["coco", "voc"], id="file-of-another-kind"),
    pytest.param(None, "{multi} " + DATA + " --split vall", ["vall", "val"], id="unknown-split"),
    pytest.param(None, "{multi} " + DATA + " --labels panoptic", ["panoptic", "coco"], id="labels-of-another-kind"),
    pytest.param(None, "{multi} " + DATA + " --nms soft --nms-iou 0.4", ["--nms-iou", "no effect"], id="no-threshold"),
    pytest.param(
        None, "{multi} " + DATA + " --confusion-score 0.4", ["--confusion-score", "no effect"], id="no-picture"
    ),
    pytest.param(
        None,
        "{multi} --det-data voc:{voc} --no-boundary",
        ["--boundary", "no effect", "no masks"],
        id="boundary-of-boxes",
    ),
    pytest.param(
        None,
        "{multi} --det-data voc:{voc} --classes a b",
        ["--classes", "no effect", "no masks"],
        id="classes-of-boxes",
    ),
    pytest.param(
        None, "{multi} --seg-data voc:{voc} --nms soft", ["--nms", "no effect", "no boxes"], id="suppression-of-masks"
    ),
    pytest.param(None, "{multi} --score-threshold 2", ["score_threshold is 2.0", "between 0 and 1"], id="score"),
    pytest.param(None, "{multi} --batch-size 0", ["batch_size is 0", "1 or more"], id="batch"),
    pytest.param(None, "{multi} " + DATA + " --image-size 80", ["80", "multiples of 32", "64 x 64"], id="odd-size"),
    pytest.param(None, "{multi} --image-size 0", ["image_size is 0", "1 or more"], id="no-size"),
    pytest.param(None, "{multi} --workers -1", ["workers is -1", "0 or more"], id="workers"),
    pytest.param(None, "{multi} " + DATA + " --device tpu", ["tpu", "cpu"], id="unknown-device"),
    pytest.param(None, "{multi} " + DATA + " --classes background low tall", ["tall"], id="classes-of-another-model"),
    pytest.param(_other_classes, "{multi} " + DATA, ["tall", "multi.safetensors"], id="mask-classes-of-another-model"),
    pytest.param(_stray_box, "{multi} " + DATA, ["wasp"], id="box-classes-of-another-model"),
    pytest.param(_stray_value, "{multi} " + DATA, ["b.png", "17"], id="value-that-is-no-class"),
    pytest.param(_other_size, "{multi} " + DATA, ["b.png", "32x24", "64x48"], id="mask-of-another-size"),
    pytest.param(
        lambda r: (r / "JPEGImages/a.jpg").write_bytes(b"no"), "{multi} " + DATA, ["a.jpg"], id="broken-image"
    ),
    pytest.param(lambda r: (r / "SegmentationClass/c.png").unlink(), "{multi} " + DATA, ["c.png"], id="missing-mask"),
    pytest.param(lambda r: (r / "Annotations/a.xml").unlink(), "{multi} " + DATA, ["a.xml"], id="missing-boxes"),
    pytest.param(
        lambda r: shutil.rmtree(r / "SegmentationClass"),
        "{multi} " + DATA,
        ["masks", "--seg-data", "eval_det"],
        id="no-masks",
    ),
    pytest.param(
        lambda r: shutil.rmtree(r / "Annotations"),
        "{multi} " + DATA,
        ["boxes", "--det-data", "eval_seg"],
        id="no-boxes",
    ),
    pytest.param(lambda r: shutil.rmtree(r), "{multi} " + DATA, ["voc", "JPEGImages"], id="no-such-folder"),
]


@pytest.mark.parametrize(("damage", "line", "says"), FAULTS)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    damage: Callable[[Path], Any] | None,
    line: str,
    says: list[str],
    models: dict[str, Path],
    voc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if damage is not None:
        damage(voc)
    out = tmp_path / "out"
    flags = [] if "--confusion-score" in line else ["--out", str(out)]
    assert eval_multi.main([word.format(voc=voc, **models) for word in line.split()] + flags) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in says), error
    assert "Traceback" not in error
    assert not out.exists()
