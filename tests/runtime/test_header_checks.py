"""A header that does not fit the file that it is in is refused where the file is opened, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from small_export import SIDE, Exported

import effdense
from effdense.errors import UserError
from effdense.model_header import HEADER_KEY
from effdense.runtime.header_checks import check_header
from effdense.runtime.onnx_bytes import read_outline
from effdense.runtime.onnx_header import read_onnx_header
from effdense.tasks.detection.opening import open_detector
from effdense.tasks.multitask.opening import open_multitask_model
from effdense.tasks.segmentation.opening import open_segmenter

OPENERS = {"detection": open_detector, "segmentation": open_segmenter, "multitask": open_multitask_model}


def put(header: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a header with another value at a place such as ``selection.nms``."""
    first, _, rest = place.partition(".")
    return {**header, first: put(header[first], rest, value) if rest else value}


def with_header(source: Path, path: Path, header: dict[str, Any]) -> Path:
    file = onnx.load(source)
    (entry,) = (one for one in file.metadata_props if one.key == HEADER_KEY)
    entry.value = json.dumps(header)
    onnx.save(file, path)
    return path


WRONG = [
    pytest.param("detection", "class_names", ["ant"], "class_names names 1 classes, its network tells 2", id="few"),
    pytest.param("detection", "class_names", ["a", "b", "c"], "names 3 classes, its network tells 2 apart", id="many"),
    pytest.param("detection", "class_names", "ab", "class_names is 'ab', expected a list of words", id="text"),
    pytest.param("detection", "class_names", [1, 2], "class_names is [1, 2], expected a list of words", id="numbers"),
    pytest.param("detection", "category_ids", [1], "category_ids has 1 ids for 2 classes", id="few-ids"),
    pytest.param("detection", "category_ids", ["1", "2"], "expected a list of whole numbers", id="ids-as-text"),
    pytest.param("detection", "category_ids", [True, 2], "expected a list of whole numbers", id="ids-as-flags"),
    pytest.param("detection", "preprocessing.image_size", 32, f"is 32, it was exported for {SIDE}", id="size"),
    pytest.param("detection", "preprocessing.image_size", 0, "is 0, expected a whole number of pixels", id="no-size"),
    pytest.param("detection", "preprocessing.image_size", 64.0, "is 64.0, expected a whole number", id="size-as-float"),
    pytest.param("detection", "preprocessing.mean", [0.5, 0.5], "expected three numbers between", id="two-means"),
    pytest.param("detection", "preprocessing.mean", "x", "mean is 'x', expected three numbers", id="mean-as-text"),
    pytest.param("detection", "preprocessing", [1], "preprocessing is [1], expected names and values", id="list"),
    pytest.param("detection", "selection.max_detections", "many", "expected a whole number", id="many-detections"),
    pytest.param("detection", "selection.max_detections", 9, "is 9, the file gives 100", id="fewer-detections"),
    pytest.param("detection", "selection.score_threshold", "low", "expected a number between 0 and 1", id="threshold"),
    pytest.param("detection", "selection.nms_iou", None, "nms_iou is None, expected a number", id="no-overlap"),
    pytest.param("detection", "selection.nms", 1, "nms is 1, expected a word", id="nms"),
    pytest.param("detection", "selection", "x", "selection is 'x', expected names and values", id="selection"),
    pytest.param("detection", "task", ["detection"], "its task is ['detection'], expected a word", id="task-as-list"),
    pytest.param("segmentation", "class_names", ["a", "b"], "its network tells 3 apart", id="few-classes-of-pixels"),
    pytest.param("segmentation", "preprocessing.image_size", 32, "is 32, it was exported for", id="size-of-pixels"),
    pytest.param("segmentation", "inference.window", "x", "window is 'x', expected a whole number", id="window"),
    pytest.param("segmentation", "inference.tta", 5, "tta is 5, expected a list of words", id="tta"),
    pytest.param("segmentation", "inference", [], "inference is [], expected names and values", id="inference"),
    pytest.param("multitask", "detection.class_names", ["ant"], "its network tells 2 apart", id="few-of-both"),
    pytest.param("multitask", "segmentation.class_names", ["a"], "its network tells 3 apart", id="few-pixels-of-both"),
    pytest.param("multitask", "detection", "x", "its part detection is 'x', expected names", id="no-part"),
    pytest.param("multitask", "segmentation", None, "its part segmentation is None, expected", id="no-part-of-pixels"),
    pytest.param("multitask", "preprocessing.image_size", 96, "is 96, it was exported for 64", id="size-of-both"),
]


@pytest.mark.parametrize(("task", "place", "value", "says"), WRONG)
def test_what_does_not_fit_the_file_is_refused_when_it_is_opened(
    task: str, place: str, value: Any, says: str, exported: Exported, tmp_path: Path
) -> None:
    header = put(read_onnx_header(exported.files[task]), place, value)
    path = with_header(exported.files[task], tmp_path / "x.onnx", header)
    for opened in (effdense.load, OPENERS[task]):
        with pytest.raises(UserError, match=r"the header of .*x\.onnx is damaged or of another version") as refused:
            opened(path)
        assert says in str(refused.value)


def test_a_size_that_the_network_does_not_have_is_refused_whatever_the_export_says(
    exported: Exported, tmp_path: Path
) -> None:
    header = read_onnx_header(exported.files["detection"])
    for place in ("preprocessing.image_size", "export.image_size"):
        header = put(header, place, 320)
    path = with_header(exported.files["detection"], tmp_path / "x.onnx", header)
    with pytest.raises(UserError, match=f"image_size is 320, its network sees {SIDE}"):
        effdense.load(path)


def test_a_long_value_is_cut_in_the_sentence() -> None:
    with pytest.raises(ValueError, match=r"class_names is '(x{36})\.\.\., expected"):
        check_header({"task": "detection", "class_names": "x" * 999}, {}, {})


def test_nothing_is_said_where_the_file_states_no_shape() -> None:
    header = {"class_names": ["a"], "category_ids": [1], "preprocessing": {"image_size": 320}}
    header |= {"selection": {"max_detections": 7}}
    for shapes in ({}, {"class_logits": ()}, {"class_logits": (None, None, None), "pixels": (None, 3, None, None)}):
        check_header({"task": "detection", **header}, {}, shapes)


@pytest.mark.parametrize("task", OPENERS)
def test_shapes_are_read_as_onnx_reads_them(task: str, exported: Exported) -> None:
    graph = onnx.load(exported.files[task]).graph
    expected = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        sizes = value.type.tensor_type.shape.dim
        expected[value.name] = tuple(one.dim_value if one.HasField("dim_value") else None for one in sizes)
    found = read_outline(exported.files[task]).shapes
    assert found == expected
    assert found["class_logits"][-1] == 2
    assert found["mask_logits"] == (None, 3, SIDE, SIDE)
    assert found["images"] == (None, None, None, 3)


def test_whatever_byte_is_wrong_the_error_is_one_for_people(exported: Exported, tmp_path: Path) -> None:
    whole = exported.files["detection"].read_bytes()
    path = tmp_path / "x.onnx"
    refused = 0
    for number in range(80):
        damaged = bytearray(whole)
        place = number if number % 2 else len(whole) - 13 * number - 1
        damaged[place] ^= 1 << number % 8
        path.write_bytes(damaged)
        try:
            read_onnx_header(path)
        except UserError:
            refused += 1
    assert refused > 10
