"""What bad input gets at the command line: one sentence, exit code 2, nothing half written."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import effdense
from effdense.errors import UserError
from effdense.tools import eval_det, predict, train_det, train_multi, train_seg

SMALL = ["--weights", "none", "--image-size", "64", "--epochs", "1"]
SMALL += ["--bifpn-channels", "16", "--bifpn-repeats", "1", "--head-repeats", "1"]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two images of one class for each split, in COCO's layout."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        images, annotations = [], []
        for number in (1, 2):
            picture = np.random.default_rng([number, len(split)]).integers(0, 256, (48, 64, 3), np.uint8)
            cv2.imwrite(str(root / split / f"{number}.png"), picture)
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [4, 4, 20, 20]})
            annotations[-1] |= {"area": 400, "iscrowd": 0}
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images of one class in Pascal VOC's layout."""
    root = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        picture = np.random.default_rng(len(name)).integers(0, 256, (48, 64, 3), np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), picture)
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>\n<filename>{name}.jpg</filename>\n<size><width>64</width><height>48</height></size>\n"
            "<object>\n<name>cell</name>\n<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>\n"
            "</object>\n</annotation>\n"
        )
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    (root / "ImageSets/Main/val.txt").write_text("b\n")
    return root


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _break_label(root: Path) -> None:
    _edit(root / "annotations/instances_train.json", lambda c: c["annotations"][0].update(category_id=99))


def _no_boxes(root: Path) -> None:
    _edit(root / "annotations/instances_train.json", lambda c: c.update(annotations=[]))


def _cut_json(root: Path) -> None:
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text()[:-40])


TRAIN_FAULTS = [
    pytest.param(None, ["--backbone", "b22"], ["b22", "b2"], id="unknown-backbone"),
    pytest.param(None, ["--arch", "d9"], ["d9", "d7"], id="unknown-arch"),
    pytest.param(None, ["--dataset", "cocoo"], ["cocoo", "coco"], id="unknown-dataset"),
    pytest.param(None, ["--bach-size", "4"], ["--bach-size", "--batch-size"], id="unknown-flag"),
    pytest.param(None, ["--batch-size", "many"], ["batch-size", "many"], id="wrong-value"),
    pytest.param(None, ["--epochs", "0"], ["epochs", "0"], id="zero-epochs"),
    pytest.param(None, ["--train-split", "trian"], ["trian", "train"], id="unknown-split"),
    pytest.param(None, ["--weights", "nowhere.pth"], ["nowhere.pth"], id="missing-weights"),
    pytest.param(None, ["--device", "tpu"], ["tpu", "cpu"], id="unknown-device"),
    pytest.param(None, ["--focal-alpha", "1"], ["focal_alpha", "less than 1"], id="constant-out-of-range"),
    pytest.param(None, ["--freeze-stages", "2"], ["freeze"], id="freezing-random-weights"),
    pytest.param(None, ["--replace-head"], ["--replace-head"], id="no-head-to-replace"),
    pytest.param(None, ["--no-ema", "--ema-decay", "0.5"], ["--ema-decay", "no effect"], id="ignored-setting"),
    pytest.param(_break_label, [], ["99", "annotation id 1", "instances_train.json"], id="label-outside-classes"),
    pytest.param(_no_boxes, [], ["no example"], id="no-positive-example"),
    pytest.param(_cut_json, [], ["instances_train.json:1", "JSON"], id="broken-json"),
    pytest.param(lambda r: (r / "train/1.png").unlink(), [], ["train/1.png"], id="missing-image"),
    pytest.param(lambda r: (r / "train/1.png").write_bytes(b"no"), [], ["train/1.png"], id="broken-image"),
    pytest.param(lambda r: shutil.rmtree(r), [], ["coco", "does not exist"], id="missing-folder"),
    pytest.param(lambda r: shutil.rmtree(r / "annotations"), [], ["looked for", "Found"], id="no-such-layout"),
]


@pytest.mark.parametrize(("damage", "flags", "says"), TRAIN_FAULTS)
def test_training_refuses_in_one_sentence_and_writes_nothing(
    damage: Callable[[Path], Any] | None,
    flags: list[str],
    says: list[str],
    coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage is not None:
        damage(coco)
    out = tmp_path / "run"
    code = train_det.main(["--dataset", "coco", "--data-root", str(coco), "--out", str(out), *SMALL, *flags])
    error = capsys.readouterr().err
    assert code == 2, error
    assert all(word in error for word in says), error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_broken_xml_is_named_with_its_line(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = voc / "Annotations/a.xml"
    path.write_text(path.read_text().replace("</object>", "</objekt>"))
    code = train_det.main(["--dataset", "voc", "--data-root", str(voc), "--out", str(tmp_path / "run"), *SMALL])
    error = capsys.readouterr().err
    assert code == 2
    assert "a.xml:7" in error


def test_an_unknown_yaml_key_is_named_with_line_and_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 3\nbatchsize: 4\n")
    assert train_det.main(["--config", str(tmp_path / "my.yaml")]) == 2
    error = capsys.readouterr().err
    assert "my.yaml, line 2" in error
    assert "batch_size" in error


def test_a_pickle_that_would_run_code_is_refused_as_weights(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(shutil.rmtree))
    flags = ["--dataset", "coco", "--data-root", str(coco), "--out", str(tmp_path / "run"), *SMALL]
    assert train_det.main([*flags, "--weights", str(tmp_path / "evil.pth")]) == 2
    assert "evil.pth" in capsys.readouterr().err


@pytest.fixture
def trained(coco: Path, tmp_path: Path) -> Path:
    flags = ["--dataset", "coco", "--data-root", str(coco), "--out", str(tmp_path / "run"), "--batch-size", "2", *SMALL]
    assert train_det.main(flags) == 0
    return tmp_path / "run" / "best.safetensors"


def test_skip_broken_goes_on_and_counts(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coco / "train/1.png").write_bytes(b"no")
    flags = ["--dataset", "coco", "--data-root", str(coco), "--out", str(tmp_path / "run"), "--batch-size", "1", *SMALL]
    flags += ["--image-size", "129"]  # from here on the coarsest level has more than one cell
    assert train_det.main([*flags, "--skip-broken"]) == 0
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_batches_of_one_image_that_batch_norm_cannot_learn_from_are_refused(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", "coco", "--data-root", str(coco), "--out", str(tmp_path / "run"), *SMALL]
    assert train_det.main([*flags, "--batch-size", "1"]) == 2
    assert "--batch-size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_is_not_scored_on_other_classes(trained: Path, coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit(coco / "annotations/instances_val.json", lambda c: c["categories"][0].update(name="other"))
    assert eval_det.main([str(trained), "--dataset", "coco", "--data-root", str(coco)]) == 2
    error = capsys.readouterr().err
    assert "other" in error
    assert "thing" in error
    assert "demo" not in error
    assert eval_det.main([str(trained)]) == 2
    error = capsys.readouterr().err
    assert "the classes differ" in error
    assert "these are the demo scenes: name a data set of your own by --dataset" in error


def test_a_run_of_another_task_is_resumed_by_the_tool_that_began_it(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--resume", str(trained.parent)]
    assert train_multi.main(flags) == 2
    assert "train_det began that run: go on with it by that" in capsys.readouterr().err
    (trained.parent / "last.safetensors").unlink()
    assert train_seg.main(flags) == 2
    assert "another tool may have begun that run" in capsys.readouterr().err


def test_a_folder_in_place_of_its_model_is_told_where_that_is(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_det.main([str(trained.parent)]) == 2
    assert f"{trained.parent} is a folder; the model in it is {trained}" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no model file"):
        effdense.load(trained.parent.parent)


def test_an_image_that_cannot_be_predicted_on_is_refused_with_the_way_past_it(
    trained: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (coco / "val/1.png").read_bytes()
    (coco / "val/1.png").write_bytes(whole[: len(whole) // 2])
    flags = [str(trained), str(coco / "val"), "--out", str(tmp_path / "drawn")]
    assert predict.main(flags) == 2
    error = capsys.readouterr().err
    assert "1.png" in error
    assert "; --skip-broken goes on without it" in error
    assert predict.main([*flags, "--skip-broken"]) == 0


def test_a_truth_without_objects_is_refused(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found, out = coco / "annotations/instances_val.json", tmp_path / "found.json", tmp_path / "scores"
    found.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "score": 0.5}]))
    flags = ["--predictions", str(found), "--annotations", str(truth), "--out", str(out)]
    assert eval_det.main(flags) == 0
    shutil.rmtree(out)
    _edit(truth, lambda content: content.update(annotations=[]))
    assert eval_det.main(flags) == 2
    assert f"{truth} has no objects to find" in capsys.readouterr().err
    assert not out.exists()


def test_a_head_of_other_classes_is_replaced_only_when_asked_for(
    trained: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        _edit(
            coco / f"annotations/instances_{split}.json",
            lambda c: c["categories"].append({"id": 2, "name": "second"}),
        )
    small = [flag if flag != "none" else str(trained) for flag in SMALL]
    flags = ["--dataset", "coco", "--data-root", str(coco), "--batch-size", "2", *small]
    assert train_det.main([*flags, "--out", str(tmp_path / "refused")]) == 2
    assert "--replace-head" in capsys.readouterr().err
    assert train_det.main([*flags, "--out", str(tmp_path / "replaced"), "--replace-head"]) == 0
    assert "untrained" in capsys.readouterr().err


EVAL_FAULTS = [
    pytest.param([], "either a model file or --predictions", id="nothing-to-score"),
    pytest.param(["nowhere.safetensors"], "nowhere.safetensors", id="missing-model"),
    pytest.param(["--predictions", "dets.json"], "--annotations", id="no-truth"),
    pytest.param(["--predictions", "no.json", "--annotations", "no.json"], "no.json", id="missing-files"),
]


@pytest.mark.parametrize(("flags", "says"), EVAL_FAULTS)
def test_scoring_refuses_in_one_sentence(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert eval_det.main(flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


PREDICT_FAULTS = [
    pytest.param(["m.safetensors"], "images", id="no-images"),
    pytest.param(["m.safetensors", "photos"], "m.safetensors", id="missing-model"),
    pytest.param(["m.safetensors", "photos", "--dataset", "demo"], "not both", id="both"),
]


@pytest.mark.parametrize(("flags", "says"), PREDICT_FAULTS)
def test_predicting_refuses_in_one_sentence(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict.main(flags) == 2
    assert says in capsys.readouterr().err


def test_the_three_tools_work_on_one_model(trained: Path, coco: Path, tmp_path: Path) -> None:
    shown = ["--dataset", "coco", "--data-root", str(coco)]
    assert eval_det.main([str(trained), *shown, "--out", str(tmp_path / "scores")]) == 0
    assert {path.name for path in (tmp_path / "scores").iterdir()} >= {"metrics.json", "detections.json"}
    truth = str(coco / "annotations/instances_val.json")
    assert eval_det.main(["--predictions", str(tmp_path / "scores/detections.json"), "--annotations", truth]) == 0
    assert predict.main([str(trained), str(coco / "val"), "--out", str(tmp_path / "drawn")]) == 0
    written = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert written == {"1.jpg", "2.jpg", "overview.jpg", "detections.json", "images.json"}
