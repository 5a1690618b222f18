"""The tool predict: which settings a model has, by its task; one sentence for what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import effdense
from effdense.model_header import read_header
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tools import predict
from effdense.training.checkpoint import save_model

CLASSES = ("background", "cat", "dog")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    detector = create_efficientdet("lite0", 3, channels=16, bifpn_repeats=1, head_repeats=1)
    Detector(detector, CLASSES, image_size=64).save(folder / "det.safetensors")
    segmenter = create_segmentation_model("fpn", 3, backbone="lite0")
    Segmenter(segmenter, CLASSES, image_size=64, inference=Inference(scene_size=64)).save(folder / "seg.safetensors")
    names = {"class_names": ("ant", "bee"), "seg_class_names": CLASSES}
    small = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
    both = create_multitask("lite0", 2, 3, "linknet", **names, image_size=64, **small)  # type: ignore[arg-type]
    Multitask(both).save(folder / "multi.safetensors")
    save_model(folder / "other.safetensors", nn.Linear(1, 1), {"task": "poetry"})
    (folder / "text.safetensors").write_text("no model")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def test_a_segmentation_model_leaves_masks(
    models: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict.main([str(models["seg"]), str(photos), "--out", str(out)]) == 0
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"a.jpg", "b.jpg", "overview.jpg", "classes.txt", "masks/a.png", "masks/b.png"}
    said = capsys.readouterr().out
    assert "2 images drawn" in said
    assert str(out / "masks") in said


def test_flags_of_a_segmentation_model_reach_it(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    flags = ["--window", "32", "--stride", "20", "--scene-size", "50", "--tta", "hflip", "1.25", "--save-probabilities"]
    assert predict.main([str(models["seg"]), str(photos), "--out", str(tmp_path / "out"), *flags]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
    segmenter = effdense_load(models["seg"]).with_inference(window=32, stride=20, scene_size=50, tta=("hflip", "1.25"))
    np.testing.assert_array_equal(found, segmenter.predict(photos / "a.png").mask)
    assert (tmp_path / "out" / "probabilities" / "b.npz").exists()


def effdense_load(path: Path) -> Segmenter:
    loaded = effdense.load(path)
    assert isinstance(loaded, Segmenter)
    return loaded


def test_a_detector_leaves_detections(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict.main([str(models["det"]), str(photos), "--out", str(out), "--draw-above", "0.9"]) == 0
    assert {path.name for path in out.iterdir()} == {"a.jpg", "b.jpg", "overview.jpg", "detections.json", "images.json"}


def test_a_multitask_model_leaves_detections_and_masks(
    models: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--out", str(out), "--draw-above", "0.9", "--opacity", "0.2", "--save-probabilities"]
    assert predict.main([str(models["multi"]), str(photos), *flags]) == 0
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    of_each = {f"{folder}{name}.{suffix}" for folder, suffix in FOLDERS.items() for name in ("a", "b")}
    assert files == of_each | {"overview.jpg", "classes.txt", "detections.json", "images.json"}
    found = effdense.load(models["multi"]).predict(photos / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(out / "masks" / "a.png")), found.segmentation.mask)
    entries = json.loads((out / "detections.json").read_text())
    assert len([entry for entry in entries if entry["image_id"] == 1]) == len(found.detections) > 0
    said = capsys.readouterr().out
    assert "2 images, 0 objects drawn" in said
    assert all(str(out / name) in said for name in ("detections.json", "masks"))


FOLDERS = {"": "jpg", "masks/": "png", "probabilities/": "npz"}


def test_a_data_set_keeps_its_image_ids_for_a_multitask_model(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    photos.rename(root / "val")
    content = {
        "images": [{"id": 7, "file_name": "b.png", "width": 60, "height": 40}],
        "annotations": [],
        "categories": [{"id": 5, "name": "bee"}, {"id": 9, "name": "ant"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    flags = ["--dataset", "coco", "--data-root", str(root), "--out", str(tmp_path / "out")]
    assert predict.main([str(models["multi"]), *flags]) == 0
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {entry["image_id"] for entry in entries} == {7}
    assert {entry["category_id"] for entry in entries} == {5, 9}
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["b.png"]


def test_a_data_set_stands_in_for_images(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "data" / name / "val").mkdir(parents=True)
    for number, photo in enumerate(sorted(photos.iterdir())):
        image = Image.open(photo)
        image.save(tmp_path / "data" / "images" / "val" / f"{number}.png")
        Image.new("L", image.size, number).save(tmp_path / "data" / "masks" / "val" / f"{number}.png")
    (tmp_path / "data" / "classes.txt").write_text("background\ncat\ndog\n")
    flags = ["--dataset", "folder", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert predict.main([str(models["seg"]), *flags]) == 0
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["0.png", "1.png"]


@pytest.mark.parametrize("masks", ["binary", "none", "broken"])
def test_a_data_set_needs_no_masks_and_no_classes_to_be_predicted_on(
    masks: str, models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "data" / "images" / "val").mkdir(parents=True)
    for photo in photos.iterdir():
        photo.rename(tmp_path / "data" / "images" / "val" / photo.name)
    if masks != "none":
        (tmp_path / "data" / "masks" / "val").mkdir(parents=True)
        for name in ("a.png", "b.png"):
            Image.new("L", (60, 40), 255).save(tmp_path / "data" / "masks" / "val" / name)
    if masks == "broken":
        (tmp_path / "data" / "masks" / "val" / "a.png").write_bytes(b"no")
    flags = ["--dataset", "folder", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert predict.main([str(models["seg"]), *flags]) == 0
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["a.png", "b.png"]


def test_the_model_may_stand_in_a_yaml_file(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    text = f"model: {models['seg']}\nimages: [{photos}]\nopacity: 0.3\nout: {tmp_path / 'out'}\n"
    (tmp_path / "my.yaml").write_text(text)
    assert predict.main(["--config", str(tmp_path / "my.yaml")]) == 0
    assert (tmp_path / "out" / "masks").is_dir()


REFUSED = [
    pytest.param("", "MODEL must be given: A .safetensors file", id="no-model"),
    pytest.param("{seg}", "give either images", id="no-images"),
    pytest.param("nowhere {photos}", "there is no model file nowhere", id="missing-model"),
    pytest.param("nowhere {photos} --draw-above 0.4", "there is no model file nowhere", id="missing-model-with-flag"),
    pytest.param("{text} {photos}", "not a whole effdense model", id="no-model-file"),
    pytest.param("{other} {photos}", "a model for 'poetry'; this version of effdense knows detection", id="other-task"),
    pytest.param(
        "{seg} {photos} --draw-above 0.4",
        "--draw-above belongs to detectors; {seg} is a segmentation model: leave it out",
        id="detectors-flag",
    ),
    pytest.param(
        "{det} {photos} --tta hflip",
        "--tta belongs to segmentation models; {det} is a detector: leave it out",
        id="segmenters-flag",
    ),
    pytest.param(
        "{multi} {photos} --window 64",
        "--window belongs to segmentation models; {multi} is a multitask model: leave it out",
        id="segmenters-flag-of-both",
    ),
    pytest.param("{multi} {photos} --opacity 2", "opacity is 2.0, expected a number between 0 and 1", id="opacity"),
    pytest.param("{multi} {photos} --split val2", "--split has no effect because no --dataset", id="ignored-of-both"),
    pytest.param("{multi} --dataset folder", "name the images themselves, or the folder", id="masks-alone"),
    pytest.param("{det} {photos} --no-save-probabilities", "--save-probabilities belongs to", id="segmenters-switch"),
    pytest.param("{seg} {photos} --windo 64", "flag '--windo' is unknown; did you mean '--window'?", id="misspelt"),
    pytest.param("{det} {photos} --drawabove 1", "did you mean '--draw-above'", id="misspelt-of-a-detector"),
    pytest.param("{seg} {photos} --split test", "--split has no effect because no --dataset", id="ignored"),
    pytest.param("{det} --dataset folder", "'folder' is none of none, demo, coco, voc", id="data-set-of-the-other"),
    pytest.param("{seg} {photos} --stride 20", "stride 20 has no effect on whole images", id="stride-alone"),
    pytest.param("{seg} {photos} --window 32 --image-size 32", "image_size 32 has no effect", id="size-and-window"),
    pytest.param("{seg} {photos} --window 31", "window is 31, expected 32 or more", id="small-window"),
    pytest.param("{seg} {photos} --window 64 --stride 65", "stride is 65, more than the window's 64", id="stride"),
    pytest.param("{seg} {photos} --window 900000 --scene-size 0", "use a smaller --window", id="more-than-memory"),
    pytest.param("{seg} {photos} --tta hflp", "did you mean 'hflip'", id="tta"),
    pytest.param("{det} {photos} --out {text}/a", "nothing can be written to {text}/a", id="unwritable"),
    pytest.param("{seg} {photos} --out {text}/a", "nothing can be written to {text}/a", id="unwritable-of-a-segmenter"),
    pytest.param("{multi} {photos} --out {text}/a", "nothing can be written to {text}/a", id="unwritable-of-both"),
]


@pytest.mark.parametrize(("line", "says"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(
    line: str,
    says: str,
    models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {**models, "photos": photos}
    assert predict.main([word.format(**places) for word in line.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert says.format(**places) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "drawn").exists()


HELP = [
    pytest.param("--help", ["MODEL --help", "--skip-broken"], ["--draw-above", "--window"], id="no-model"),
    pytest.param("{det} --help", ["--draw-above", "detections.json"], ["--window"], id="detector"),
    pytest.param("-h {seg}", ["--window", "--tta", "--opacity"], ["--draw-above"], id="segmenter"),
    pytest.param("{multi} --help", ["--draw-above", "--opacity"], ["--window", "--tta"], id="multitask"),
    pytest.param("{seg} --window 64 --help", ["--window", "--tta"], ["--draw-above"], id="with-flags"),
    pytest.param("{text} --help", ["MODEL --help"], ["--draw-above", "--window"], id="no-model-file"),
]


@pytest.mark.parametrize(("line", "shown", "hidden"), HELP)
def test_help_lists_what_the_model_has(
    line: str, shown: list[str], hidden: list[str], models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        predict.main([word.format(**models) for word in line.split()])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text for word in shown)
    assert not any(word in text for word in hidden)


def test_help_of_a_model_and_its_header_are_read_without_torch(models: dict[str, Path]) -> None:
    code = (
        "import sys; from effdense.tools.predict import main\n"
        f"try: main([{str(models['seg'])!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(str('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ})
    assert "--window" in done.stdout
    assert done.stderr == "False"
    assert read_header(models["seg"])["task"] == "segmentation"
