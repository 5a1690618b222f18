"""The header of an exported file: written into an ONNX model, read back without a package, refused where it is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.runtime.onnx_header import is_exported, read_metadata, read_onnx_header, write_header

HEADER = {
    "task": "detection",
    "class_names": ["cat", "fjällräv"],
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "image_size": 64},
    "export": {"precision": "float32", "image_size": 64, "gate": None},
}
BOTH = {
    "task": "multitask",
    "detection": {"class_names": ["cat"]},
    "segmentation": {"class_names": ["ground", "cat"]},
    "preprocessing": {},
    "export": {},
}


def model(weights: int = 8) -> Any:
    """Return an ONNX model that adds a constant."""
    value = helper.make_tensor("w", TensorProto.FLOAT, [weights], [0.5] * weights)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [value])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def written(path: Path, header: dict[str, Any], weights: int = 8) -> Path:
    made = model(weights)
    write_header(made, header)
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("weights", [1, 100_000], ids=["few-weights", "many-weights"])
def test_a_header_that_is_written_is_read_back(weights: int, tmp_path: Path) -> None:
    assert read_onnx_header(written(tmp_path / "a.onnx", HEADER, weights)) == {"format": 1, **HEADER}


def test_a_second_header_replaces_the_first_and_leaves_what_others_wrote(tmp_path: Path) -> None:
    made = model()
    made.metadata_props.add(key="author", value="somebody")
    write_header(made, {**HEADER, "epoch": 1})
    write_header(made, {**HEADER, "epoch": 2})
    onnx.save(made, tmp_path / "a.onnx")
    assert read_onnx_header(tmp_path / "a.onnx")["epoch"] == 2
    assert read_metadata(tmp_path / "a.onnx")["author"] == "somebody"
    assert len({entry.key for entry in made.metadata_props}) == len(made.metadata_props) == 5


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(
            HEADER,
            {"task": "detection", "class_names": ["cat", "fjällräv"], "preprocessing": HEADER["preprocessing"]},
            id="detection",
        ),
        pytest.param(
            BOTH,
            {"task": "multitask", "class_names": ["cat"], "seg_class_names": ["ground", "cat"], "preprocessing": {}},
            id="multitask",
        ),
    ],
)
def test_other_readers_find_task_classes_and_preprocessing(
    header: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    metadata = read_metadata(written(tmp_path / "a.onnx", header))
    del metadata["effdense"]
    assert {name: text if name == "task" else json.loads(text) for name, text in metadata.items()} == expected


def foreign(path: Path) -> None:
    onnx.save(model(), path)


def truncated(path: Path) -> None:
    path.write_bytes(written(path, HEADER, 1000).read_bytes()[:-40])


def truncated_weights(path: Path) -> None:
    path.write_bytes(written(path, HEADER, 1000).read_bytes()[:500])


def with_header(text: str) -> Any:
    def write(path: Path) -> None:
        made = model()
        made.metadata_props.add(key="effdense", value=text)
        onnx.save(made, path)

    return write


REFUSED = [
    pytest.param(lambda path: None, "there is no model file", id="missing"),
    pytest.param(lambda path: path.mkdir(), "there is no model file", id="folder"),
    pytest.param(lambda path: path.write_bytes(b""), "not a whole ONNX file (it has no graph)", id="empty"),
    pytest.param(lambda path: path.write_text("no model"), "not a whole ONNX file", id="text"),
    pytest.param(lambda path: path.write_bytes(b"\x89PNG\r\n" + bytes(99)), "not a whole ONNX file", id="picture"),
    pytest.param(lambda path: path.write_bytes(b"\xff" * 99), "not a whole ONNX file", id="endless-number"),
    pytest.param(truncated, "not a whole ONNX file", id="truncated"),
    pytest.param(truncated_weights, "ends after 500 bytes, in the middle", id="truncated-weights"),
    pytest.param(foreign, "an ONNX file that effdense did not export", id="foreign"),
    pytest.param(with_header("{"), "is damaged (no JSON", id="no-json"),
    pytest.param(with_header("[1]"), "is damaged (a list instead", id="list"),
    pytest.param(with_header("{}"), "is damaged (it names no format)", id="no-format"),
    pytest.param(with_header('{"format": 9}'), "has format 9", id="other-format"),
    pytest.param(with_header('{"format": 1}'), "says nothing of its export", id="no-export"),
]


@pytest.mark.parametrize(("write", "says"), REFUSED)
def test_what_is_no_exported_file_is_refused(write: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    write(path)
    with pytest.raises(UserError) as refused:
        read_onnx_header(path)
    assert says in str(refused.value)
    assert str(path) in str(refused.value)


def test_what_needs_weights_says_that_an_exported_file_has_none_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an exported model.*\.safetensors file that it was made of"):
        read_header(written(tmp_path / "a.onnx", HEADER))


@pytest.mark.parametrize(("name", "exported"), [("a.onnx", True), ("A.ONNX", True), ("onnx", False), ("a.pt", False)])
def test_an_exported_file_is_known_by_its_name(name: str, exported: bool) -> None:
    assert is_exported(name) is exported


def test_a_header_is_read_without_onnx_and_without_torch(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", HEADER)
    code = (
        "import sys; from effdense.runtime.onnx_header import read_onnx_header as read\n"
        f"assert read({str(path)!r})['task'] == 'detection'\n"
        "print({'onnx', 'onnxruntime', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
