"""The tool export: a sound file stays with both scores printed, a damaged one does not; .onnx for other tools."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_export
from onnx import numpy_helper
from PIL import Image
from small_export import SIDE, Exported, photo, write_data

from effdense.runtime import gate as gates
from effdense.runtime import session as sessions
from effdense.runtime.export_config import ExportConfig
from effdense.runtime.onnx_header import read_onnx_header
from effdense.tasks.detection import gate as detection_gate
from effdense.tasks.multitask import gate as multitask_gate
from effdense.tasks.segmentation import gate as segmentation_gate
from effdense.tools import eval_det, eval_multi, eval_seg, export, predict
from effdense.training.checkpoint import save_model

TASKS = ["detection", "segmentation", "multitask"]


def checkpoint(exported: Exported, task: str) -> Path:
    return exported.checkpoint if task == "multitask" else exported.checkpoint.with_name(f"{task}.safetensors")


@pytest.fixture
def ready_made(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None] | None], None]:
    """Let exports be copies of the file that was made before, damaged by a function, as an export takes seconds."""

    def install(damage: Callable[[Any], None] | None = None) -> None:
        for module, name, task in (
            (detection_gate, "export_detector", "detection"),
            (segmentation_gate, "export_segmenter", "segmentation"),
            (multitask_gate, "export_multitask", "multitask"),
        ):

            def copy(model: Any, path: Path, *, precision: str, task: str = task) -> None:
                file = onnx.load(exported.files[task])
                if damage is not None:
                    damage(file)
                onnx.save(file, path)

            monkeypatch.setattr(module, name, copy)

    return install


def other_mean(file: Any) -> None:
    """Normalise images otherwise than the network was trained with: every constant of three channels is doubled."""
    changed = 0
    for tensor in file.graph.initializer:
        if tuple(tensor.dims) in ((1, 3, 1, 1), (3,)) and tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * 2, tensor.name))
            changed += 1
    assert changed


def other_weights(file: Any) -> None:
    """Turn round the filters of a layer, as a transposed kernel would."""
    kernel = max((one for one in file.graph.initializer if len(one.dims) == 4), key=lambda one: np.prod(one.dims))
    values = numpy_helper.to_array(kernel)
    kernel.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1, ::-1]), kernel.name))


def black_where_it_resizes(file: Any) -> None:
    """Let images that do not fit the square already become black."""
    (white,) = (one for one in file.graph.initializer if one.name == "white")
    white.CopyFrom(numpy_helper.from_array(np.float32(0), white.name))


def one_pixel_is_image(file: Any) -> None:
    """Let an image of which nothing else is said have one pixel."""
    (default,) = (one for one in file.graph.initializer if one.name == "contents_hw")
    default.CopyFrom(numpy_helper.from_array(np.ones((1, 2), np.int64), default.name))


def what_is_said_is_one_pixel(file: Any) -> None:
    """Let an image have one pixel where it is said how many it has."""
    (stated,) = (node for node in file.graph.node if node.output[0].endswith("/stated"))
    stated.input[1] = stated.output[0].replace("stated", "one")


@pytest.mark.parametrize("task", TASKS)
def test_a_sound_file_stays_and_both_scores_and_speeds_are_printed(
    task: str, exported: Exported, ready_made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready_made()
    out = tmp_path / "x.onnx"
    flags = ["--out", str(out), "--tolerance", "1"]
    assert export.main([str(checkpoint(exported, task)), "--format", "onnx", *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    gate = read_onnx_header(out)["export"]["gate"]
    shown = {name: f"{points:.2f}" for name, points in gate["exported"]["points"].items()}
    otherwise = [
        f"given {one['given']}"
        for one in gate["otherwise"]
        if any(f"{points:.2f}" != shown[name] for name, points in one["points"].items())
    ]
    assert [line.split()[0] for line in said] == ["checkpoint", "exported", *["the"] * len(otherwise), "6"]
    assert all(line.endswith(words) for line, words in zip(said[2:-1], otherwise, strict=True))
    for name in ("mAP",) * (task != "segmentation") + ("mIoU",) * (task != "detection"):
        assert all(name in line for line in said[:2])
    assert all("images/s" in line for line in said[:2])
    assert f"wrote {out}" in said[-1]
    assert gate["images"] == 6
    assert gate["exported"]["runtime"] == "onnxruntime"
    assert read_onnx_header(out)["export"]["checkpoint"] == checkpoint(exported, task).name


@pytest.mark.parametrize("damage", [other_mean, other_weights])
@pytest.mark.parametrize("task", TASKS)
def test_a_damaged_file_is_deleted_and_the_exit_code_is_two(
    task: str, damage: Any, exported: Exported, ready_made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready_made(damage)
    assert export.main([str(checkpoint(exported, task)), "--out", str(tmp_path / "x.onnx")]) == 2
    error = capsys.readouterr().err
    assert "x.onnx is not written: it scores" in error
    assert "points apart, and 0.1 are tolerated" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "damage", "given"),
    [
        pytest.param("detection", black_where_it_resizes, "images as they are", id="fit-of-a-detector"),
        pytest.param("detection", one_pixel_is_image, "images as they are", id="default-of-a-detector"),
        pytest.param("multitask", what_is_said_is_one_pixel, "images that are padded already", id="contents-of-both"),
        pytest.param("segmentation", black_where_it_resizes, "images as they are", id="fit-of-a-segmenter"),
        pytest.param("multitask", black_where_it_resizes, "images as they are", id="fit-of-both"),
    ],
)
def test_damage_that_effdenses_own_way_does_not_meet_is_seen(
    task: str,
    damage: Any,
    given: str,
    exported: Exported,
    ready_made: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ready_made(damage)
    flags = ["--out", str(tmp_path / "x.onnx"), "--tolerance", "1"]
    assert export.main([str(checkpoint(exported, task)), *flags]) == 2
    assert re.search(rf", and (m\w+ [\d.]+,? ?)+ given {given},", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_detectors_file_is_its_checkpoint_to_the_tenth_of_a_point(
    exported: Exported, ready_made: Any, tmp_path: Path
) -> None:
    ready_made()
    for runtime in ("onnxruntime", "openvino"):
        flags = ["--out", str(tmp_path / f"{runtime}.onnx"), "--runtime", runtime, "--threads", "1"]
        # Of random weights, a grey level by which the file resizes otherwise is more than a tenth.
        assert export.main([str(checkpoint(exported, "detection")), *flags, "--tolerance", "0.5"]) == 0
        gate = read_onnx_header(tmp_path / f"{runtime}.onnx")["export"]["gate"]
        assert gate["exported"]["runtime"] == runtime
        assert gate["exported"]["points"] == pytest.approx(gate["checkpoint"]["points"], abs=0.1)


def test_the_sample_is_as_large_as_was_asked_for(exported: Exported, ready_made: Any, tmp_path: Path) -> None:
    ready_made()
    flags = ["--out", str(tmp_path / "x.onnx"), "--sample", "4", "--tolerance", "1"]
    assert export.main([str(checkpoint(exported, "detection")), *flags]) == 0
    assert read_onnx_header(tmp_path / "x.onnx")["export"]["gate"]["images"] == 4


@pytest.mark.slow
def test_selection_and_image_size_reach_the_file_and_its_checkpoint(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_export, "SIZES", [(96, 96), (70, 96), (96, 50)])  # random weights magnify a grey level
    write_data(tmp_path / "data", exported.model.with_image_size(96))
    flags = ["--out", str(tmp_path / "x.onnx"), "--image-size", "96", "--max-detections", "50", "--nms-iou", "0.6"]
    flags += ["--dataset", "coco", "--data-root", str(tmp_path / "data/boxes"), "--tolerance", "0.5"]
    assert export.main([str(checkpoint(exported, "detection")), *flags]) == 0
    header = read_onnx_header(tmp_path / "x.onnx")
    assert header["preprocessing"]["image_size"] == 96
    assert header["selection"] == {"score_threshold": 0.001, "nms": "hard", "nms_iou": 0.6, "max_detections": 50}


@pytest.mark.slow
def test_a_model_with_a_window_is_exported_to_see_images_whole(exported: Exported, tmp_path: Path) -> None:
    model, out = tmp_path / "windowed.safetensors", tmp_path / "x.onnx"
    exported.model.segmenter.with_inference(window=48, scene_size=0).save(model)
    flags = f"--out {out} --dataset folder --data-root {exported.data / 'pixels'}".split()
    assert export.main([str(model), *flags]) == 2
    assert not out.exists()
    assert export.main([str(model), *flags, "--window", "0", "--tolerance", "1"]) == 0
    assert not read_onnx_header(out)["inference"]["window"]


REFUSED = [
    pytest.param("", "MODEL must be given", id="no-model"),
    pytest.param("no.safetensors", "there is no model file no.safetensors", id="missing"),
    pytest.param("{onnx}", "is an exported model", id="exported-already"),
    pytest.param("{det} --out x.pt", "out is x.pt, expected a name that ends in .onnx", id="name"),
    pytest.param("{det} --format tflite", "'tflite' is none of onnx", id="format"),
    pytest.param("{det} --precision float16", "'float16' is none of float32, bfloat16", id="precision"),
    pytest.param("{det} --precision bfloat16 --runtime onnxruntime", "no effect on ONNX Runtime", id="bf16-on-ort"),
    pytest.param("{det} --tolerance -1", "tolerance is -1.0, expected 0 to 1 points", id="tolerance"),
    pytest.param("{det} --tolerance 80", "tolerance is 80.0, expected 0 to 1 points", id="tolerance-of-anything"),
    pytest.param("{det} --tolerance nan", "--tolerance: expected a number, came 'nan'", id="tolerance-nan"),
    pytest.param("{det} --sample 0", "sample is 0, expected 1 or more", id="sample"),
    pytest.param("{det} --threads 0", "threads is 0, expected 1 or more", id="threads"),
    pytest.param("{det} --nms soft", "'soft' is none of hard", id="soft-nms"),
    pytest.param("{det} --nms-iou 2", "nms_iou is 2.0, expected a number between 0 and 1", id="nms-iou"),
    pytest.param(
        "{det} --labels masks", "--labels has no effect because {det} is a detector", id="masks-of-a-detector"
    ),
    pytest.param("{det} --window 0", "--window has no effect because {det} is a detector", id="window-of-a-detector"),
    pytest.param("{seg} --window 64", "'64' is none of 0", id="window"),
    pytest.param("{seg} --max-detections 9", "because {seg} is a segmentation model", id="boxes-of-a-segmenter"),
    pytest.param("{det} --dataset folder --data-root x", "'folder' is none of demo, coco, voc", id="no-boxes"),
    pytest.param("{det} --dataset voc --data-root nowhere", "no data for --dataset voc: looked", id="no-data"),
    pytest.param("{plain}", "does not say what it was trained on", id="no-data-named"),
    pytest.param("{poem}", "is a model for 'poetry'; this version of effdense knows", id="other-task"),
]


@pytest.mark.parametrize(("line", "says"), REFUSED)
def test_what_cannot_be_exported_is_refused_in_one_sentence(
    line: str,
    says: str,
    exported: Exported,
    ready_made: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ready_made()
    monkeypatch.chdir(tmp_path)
    places = {"det": checkpoint(exported, "detection"), "seg": checkpoint(exported, "segmentation")}
    places |= {"onnx": exported.files["detection"]}
    if "{plain}" in line:
        detector = exported.model.detector.with_image_size(SIDE)
        detector.header = {}
        detector.save(tmp_path / "plain.safetensors")
    if "{poem}" in line:
        save_model(tmp_path / "poem.safetensors", exported.model.model, {"task": "poetry"})
    places |= {"plain": tmp_path / "plain.safetensors", "poem": tmp_path / "poem.safetensors"}
    assert export.main([word.format(**places) for word in line.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert says.format(**places) in error
    assert len(error.splitlines()) == 1 or says.startswith("no data")  # which shows how the folder must look
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        pytest.param("--seg-data folder:{data}/pixels", "nothing of the boxes in the exported file", id="masks-alone"),
        pytest.param("--det-data coco:{data}/boxes", "give both, --seg-data KIND:FOLDER as well", id="boxes-alone"),
    ],
)
def test_a_model_of_both_is_not_proven_by_one(
    flags: str, says: str, exported: Exported, ready_made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready_made(lambda file: pytest.fail("it was exported"))
    flags = f"--out {tmp_path / 'x.onnx'} " + flags.format(data=exported.data)
    assert export.main([str(exported.checkpoint), *flags.split()]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_data_that_score_nothing_cannot_prove_an_export(
    exported: Exported, ready_made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready_made()
    content = json.loads((exported.data / "boxes/annotations/instances_val.json").read_text())
    content["annotations"] = [{**box, "bbox": [0, 0, 2, 2]} for box in content["annotations"]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    data = [
        "--dataset",
        "coco",
        "--annotations",
        str(tmp_path / "val.json"),
        "--images",
        str(exported.data / "boxes/val"),
    ]
    assert export.main([str(checkpoint(exported, "detection")), "--out", str(tmp_path / "x.onnx"), *data]) == 2
    assert "too little to tell a sound file from a damaged one" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime", "openvino"])
def test_a_missing_package_is_named_before_anything_is_done(
    missing: str,
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (gates, sessions):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == missing else object())
    flags = ["--runtime", missing] if missing != "onnxscript" else []
    assert export.main([str(checkpoint(exported, "detection")), "--out", str(tmp_path / "x.onnx"), *flags]) == 2
    assert "pip install 'effdense[" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_data_of_a_run_are_what_its_model_is_compared_on() -> None:
    config = ExportConfig(Path("m.safetensors"))
    same = {"model": "m.safetensors", "batch_size": 8, "workers": 0, "skip_broken": False}
    run = {"dataset": "voc", "data_root": "/d", "val_split": "test", "classes": ["a"], "labels": "auto", "lr": 1.0}
    both = {"dataset": "demo", "data_root": None, "val_split": "val", "det_data": "voc:/b", "seg_data": "folder:/c:d"}
    both |= {"binary_masks": True}
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("detection", run, {"dataset": "voc", "data_root": "/d"}),
        (
            "segmentation",
            run,
            {"dataset": "voc", "data_root": "/d", "classes": ["a"], "labels": "auto"},
        ),
        ("detection", both, {"dataset": "voc", "data_root": "/b"}),
        ("segmentation", both, {"dataset": "folder", "data_root": "/c:d", "binary_masks": True}),
        ("multitask", both, {name: value for name, value in both.items() if name not in ("data_root", "val_split")}),
    ]
    for task, settings, expected in cases:
        found = config.score_settings({"task": task, "config": settings})
        assert found == {**same, **expected, "split": settings["val_split"]}
    moved = ExportConfig(Path("m.safetensors"), data_root=Path("/e"), split="train")
    found = moved.score_settings({"task": "detection", "config": run})
    assert (found["dataset"], found["data_root"], found["split"]) == ("voc", "/e", "train")
    named = ExportConfig(Path("m.safetensors"), dataset="coco", data_root=Path("/f"))
    assert named.score_settings({"task": "detection", "config": run}) == {**same, "dataset": "coco", "data_root": "/f"}


def test_eval_det_scores_a_file_as_its_checkpoint(exported: Exported, tmp_path: Path) -> None:
    data = ["--dataset", "coco", "--data-root", str(exported.data / "boxes")]
    numbers = []
    for name, model in (("a", checkpoint(exported, "detection")), ("b", exported.files["detection"])):
        assert eval_det.main([str(model), *data, "--out", str(tmp_path / name)]) == 0
        numbers.append(json.loads((tmp_path / name / "metrics.json").read_text())["coco"]["metrics"]["AP"])
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_eval_seg_says_that_a_file_has_no_calibration_error(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "folder", "--data-root", str(exported.data / "pixels"), "--out", str(tmp_path)]
    assert eval_seg.main([str(exported.files["segmentation"]), *data]) == 0
    said = capsys.readouterr()
    assert "gives labels without probabilities" in said.err
    assert "calibration" not in said.out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "calibration" not in metrics
    assert metrics["about"]["calibration_error"].startswith("none: ")
    assert metrics["segmentation"]["metrics"]["mIoU"] > 0.99
    assert not (tmp_path / "reliability.png").exists()


def test_eval_multi_scores_both_of_a_file(exported: Exported, tmp_path: Path) -> None:
    data = ["--det-data", f"coco:{exported.data / 'boxes'}", "--seg-data", f"folder:{exported.data / 'pixels'}"]
    assert eval_multi.main([str(exported.files["multitask"]), *data, "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "segmentation" / "metrics.json").read_text())["about"]
    assert about["calibration_error"].startswith("none: ")
    assert "calibration_error" not in json.loads((tmp_path / "detection" / "metrics.json").read_text())["about"]


@pytest.mark.parametrize("runtime", ["auto", "openvino"])
@pytest.mark.parametrize("task", TASKS)
def test_predict_leaves_of_a_file_what_it_leaves_of_a_checkpoint(
    task: str, runtime: str, exported: Exported, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for number, size_hw in enumerate([(40, 60), (SIDE, SIDE)]):
        Image.fromarray(photo(number, size_hw)).save(tmp_path / "photos" / f"{number}.png")
    left = []
    for out, model, flags in (
        ("a", checkpoint(exported, task), []),
        ("b", exported.files[task], ["--runtime", runtime, "--threads", "1"]),
    ):
        assert predict.main([str(model), str(tmp_path / "photos"), "--out", str(tmp_path / out), *flags]) == 0
        left.append({path.relative_to(tmp_path / out) for path in (tmp_path / out).rglob("*")})
    assert left[0] == left[1]


OF_TOOLS = [
    pytest.param(eval_det, "{det}", "--nms soft", "--nms has no effect because {det} has its own built in", id="nms"),
    pytest.param(eval_det, "{det}", "--nms-iou 0.4", "export makes another of the checkpoint", id="nms-iou"),
    pytest.param(eval_det, "{det}", "--image-size 32", "--image-size has no effect because {det} has", id="size"),
    pytest.param(eval_det, "{det}", "--max-detections 300", "exported with 100 and has dropped", id="more-boxes"),
    pytest.param(eval_det, "{det}", "--score-threshold 0", "exported with 0.001", id="lower-threshold"),
    pytest.param(eval_det, "{det}", "--device cuda", "runs on the CPU, not on cuda", id="gpu"),
    pytest.param(eval_det, "{det}", "--threads 0", "threads is 0, expected 1 or more", id="threads"),
    pytest.param(eval_det, "{det}", "--runtime opnvino", "did you mean 'openvino'", id="misspelt-runtime"),
    pytest.param(eval_det, "{seg}", "", "is a segmenter; it has no detection head", id="masks-for-eval-det"),
    pytest.param(eval_det, "{checkpoint}", "--runtime openvino", "because PyTorch runs whatever is", id="runtime"),
    pytest.param(eval_det, "{checkpoint}", "--threads 2", "because PyTorch runs whatever is no", id="thread"),
    pytest.param(eval_seg, "{seg}", "--window 32", "--window has no effect because {seg} has its own", id="window"),
    pytest.param(eval_seg, "{seg}", "--tta hflip", "--tta has no effect because", id="tta"),
    pytest.param(eval_seg, "{seg}", "--batch-size 4", "because {seg} runs images one by one", id="batch"),
    pytest.param(eval_seg, "{det}", "", "is a detector; it has no segmentation head", id="boxes-for-eval-seg"),
    pytest.param(eval_multi, "{multi}", "--nms soft", "--nms has no effect because {multi}", id="nms-of-both"),
    pytest.param(eval_multi, "{multi}", "--image-size 96", "--image-size has no effect", id="size-of-both"),
    pytest.param(eval_multi, "{det}", "", "is a detector; it has no segmentation head", id="one-task-alone"),
    pytest.param(predict, "{seg}", "photos --save-probabilities", "{seg} gives labels alone", id="probabilities"),
    pytest.param(predict, "{multi}", "photos --save-probabilities", "{multi} gives labels alone", id="probs-of-both"),
    pytest.param(predict, "{seg}", "photos --image-size 32", "--image-size has no effect because {seg}", id="size-seg"),
    pytest.param(predict, "{det}", "photos --window 32", "--window belongs to segmentation models", id="other-task"),
    pytest.param(predict, "{foreign}", "photos", "an ONNX file that effdense did not export", id="foreign"),
    pytest.param(predict, "{half}", "photos", "is not a whole ONNX file", id="truncated"),
    pytest.param(eval_det, "{half}", "", "in the middle of its content", id="truncated-too"),
    pytest.param(eval_seg, "nowhere.onnx", "", "there is no model file nowhere.onnx", id="missing"),
]


@pytest.mark.parametrize(("tool", "model", "flags", "says"), OF_TOOLS)
def test_what_a_tool_cannot_ask_of_a_file_is_refused_in_one_sentence(
    tool: Any,
    model: str,
    flags: str,
    says: str,
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo(0, (8, 8))).save(tmp_path / "photos" / "a.png")
    places = {"det": exported.files["detection"], "seg": exported.files["segmentation"]}
    places |= {"multi": exported.files["multitask"], "checkpoint": checkpoint(exported, "detection")}
    places |= {"foreign": tmp_path / "foreign.onnx", "half": tmp_path / "half.onnx"}
    if "{foreign}" in model:
        file = onnx.load(exported.files["detection"])
        del file.metadata_props[:]
        onnx.save(file, places["foreign"])
    if "{half}" in model:
        shutil.copy(exported.files["detection"], places["half"])
        with places["half"].open("rb+") as file:
            file.truncate(places["half"].stat().st_size // 2)
    assert tool.main([model.format(**places), *flags.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert says.format(**places) in error
    assert len(error.splitlines()) == 1


def test_the_runtime_that_a_file_needs_and_that_is_missing_is_named(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions, "find_spec", lambda name: None if name in ("onnxruntime", "openvino") else object())
    assert eval_det.main([str(exported.files["detection"])]) == 2
    assert (
        "ONNX Runtime runs exported models, and is not installed: pip install 'effdense[onnx]'"
        in capsys.readouterr().err
    )
