"""Images that need no resizing reach the network as the file's own first stage would bring them there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from small_export import photo

from effdense.runtime.export import joined
from effdense.runtime.onnx_boxes import contents
from effdense.runtime.onnx_pieces import fitting
from effdense.runtime.openvino_session import OpenVino

SIDE = 64
NOTHING = (0, 0)

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[batch, 3, 64, 64] pixels) => (float[batch, 3, 64, 64] mask_logits) { mask_logits = Neg (pixels) }
"""
LAST = """
<ir_version: 10, opset_import: ["" : 18]>
last (float[batch, 3, 64, 64] mask_logits, int64[2] size_hw, int64[2] fitted_hw)
    => (float[batch, 3, 64, 64] dark, int64[2] shrunk_by)
{
    dark = Identity (mask_logits)
    shrunk_by = Sub (size_hw, fitted_hw)
}
"""
LAST_OF_BOXES = """
<ir_version: 10, opset_import: ["" : 18]>
last_of_boxes (float[batch, 2] limits, float[batch, 2] originals) => (float[batch, 2] growth)
{
    growth = Div (originals, limits)
}
"""

TASKS = ["detection", "segmentation", "multitask"]


def exported(task: str, folder: Path) -> Path:
    """Write a file with the first stage that a task's have, and little behind it."""
    pieces = [fitting(SIDE, (124, 116, 104), may_be_done=task != "detection"), parser.parse_model(NETWORK)]
    pieces.append(parser.parse_model(LAST))
    if task != "segmentation":
        pieces[1:1] = [contents()]
        pieces.append(parser.parse_model(LAST_OF_BOXES))
    whole = joined(pieces)
    values = list(whole.graph.output)
    del whole.graph.output[:]
    for value in values:
        is_output = value.name in ("dark", "shrunk_by", "growth")
        (whole.graph.output if is_output else whole.graph.value_info).append(value)
    onnx.save(whole, folder / f"{task}.onnx")
    return folder / f"{task}.onnx"


def opened(path: Path) -> OpenVino:
    return OpenVino(path, "float32", 1, SIDE)


@pytest.mark.parametrize(
    ("size_hw", "contents_hw", "original_hw"),
    [
        pytest.param((64, 64), NOTHING, NOTHING, id="the square"),
        pytest.param((64, 64), (40, 64), NOTHING, id="the square, padded"),
        pytest.param((64, 64), NOTHING, (200, 201), id="the square, of a larger image"),
        pytest.param((64, 37), NOTHING, NOTHING, id="as high as the square"),
        pytest.param((1, 64), (0, 30), NOTHING, id="as wide as the square, one side stated"),
        pytest.param((37, 40), NOTHING, (370, 400), id="smaller, and fitted"),
        pytest.param((64, 40), (50, 39), (640, 400), id="padded and fitted"),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_it_gives_what_the_files_first_stage_gives(
    task: str, size_hw: tuple[int, int], contents_hw: tuple[int, int], original_hw: tuple[int, int], tmp_path: Path
) -> None:
    session = opened(exported(task, tmp_path))
    first, padding = session._stages[0], session._padding
    assert padding is not None
    contents, original = np.array([contents_hw]), np.array(original_hw)
    images = photo(3, size_hw)[None]
    if not padding.suffices(images, original):
        assert task == "detection"  # whose files cannot be told that an image is fitted, and enlarge it
        assert max(size_hw) < SIDE
        return
    given = {"images": images, "contents_hw": contents, "original_hw": original}
    found = first.request.infer({name: given[name] for name in first.inputs})
    outputs = padding.outputs(images, contents)
    for place, name in enumerate(first.outputs):
        assert outputs[name].shape == found[place].shape
        assert outputs[name].dtype == found[place].dtype
        np.testing.assert_array_equal(outputs[name], found[place])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size_hw", [(65, 64), (30, 65), (200, 300), (63, 63)])
def test_images_of_another_size_are_left_to_the_file(size_hw: tuple[int, int], task: str, tmp_path: Path) -> None:
    padding = opened(exported(task, tmp_path))._padding
    assert padding is not None
    assert not padding.suffices(photo(3, size_hw)[None], np.array(NOTHING))
    assert not padding.suffices(photo(3, size_hw)[None], np.array((0, 90)))


class _Silent:
    def infer(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the file's first stage was run")


@pytest.mark.parametrize("task", TASKS)
def test_the_files_first_stage_is_run_for_images_to_be_resized_alone(task: str, tmp_path: Path) -> None:
    session = opened(exported(task, tmp_path))
    expected = session.run(photo(0, (SIDE, SIDE))[None])
    session._stages[0].request = _Silent()
    found = session.run(photo(0, (SIDE, SIDE))[None])
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(AssertionError, match="first stage"):
        session.run(photo(0, (SIDE, SIDE + 1))[None])


def other_constant(model: onnx.ModelProto) -> None:
    (white,) = [one for one in model.graph.initializer if one.name == "white"]
    white.CopyFrom(onnx.numpy_helper.from_array(np.float32(127), "white"))


def other_operation(model: onnx.ModelProto) -> None:
    (rounding,) = [node for node in model.graph.node if node.op_type == "Round"]
    rounding.op_type = "Floor"


def other_wiring(model: onnx.ModelProto) -> None:
    (upper,) = [node for node in model.graph.node if node.output[0] == "upper"]
    upper.input[:] = upper.input[::-1]


def padding_of_two_colours(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 9, np.uint8), "other_fill"))
    (lower,) = [node for node in model.graph.node if node.output[0] == "lower"]
    lower.input[0] = "other_fill"


def padding_without_a_name(model: onnx.ModelProto) -> None:
    (fill,) = [one for one in model.graph.initializer if one.name == "fill"]
    fill.name = "colour"
    for node in model.graph.node:
        node.input[:] = ["colour" if name == "fill" else name for name in node.input]


@pytest.mark.parametrize(
    "change", [other_constant, other_operation, other_wiring, padding_of_two_colours, padding_without_a_name]
)
@pytest.mark.parametrize("task", TASKS)
def test_a_file_that_fits_images_in_another_way_keeps_it(
    task: str, change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = onnx.load(exported(task, tmp_path))
    change(model)
    onnx.save(model, tmp_path / "other.onnx")
    assert opened(tmp_path / "other.onnx")._padding is None


def test_a_file_that_calls_an_input_by_another_name_keeps_its_stage(tmp_path: Path) -> None:
    model = onnx.load(exported("detection", tmp_path))
    for value in (*model.graph.input, *model.graph.initializer):
        value.name = "padded_hw" if value.name == "contents_hw" else value.name
    for node in model.graph.node:
        node.input[:] = ["padded_hw" if name == "contents_hw" else name for name in node.input]
    onnx.save(model, tmp_path / "other.onnx")
    assert opened(tmp_path / "other.onnx")._padding is None


@pytest.mark.parametrize("images", [np.zeros((1, SIDE, SIDE, 1), np.uint8), np.zeros((1, SIDE, SIDE, 3), np.float32)])
def test_what_is_no_image_is_left_to_the_file_to_refuse(images: Any, tmp_path: Path) -> None:
    padding = opened(exported("multitask", tmp_path))._padding
    assert padding is not None
    assert not padding.suffices(images, np.array(NOTHING))


def test_a_file_that_knows_contents_in_another_way_keeps_it(tmp_path: Path) -> None:
    model = onnx.load(exported("detection", tmp_path))
    (limits,) = [node for node in model.graph.node if node.output[0] == "limits"]
    (before,) = [node for node in model.graph.node if node.output[0] == limits.input[0]]
    before.op_type = "Min"
    onnx.save(model, tmp_path / "other.onnx")
    assert opened(tmp_path / "other.onnx")._padding is None
