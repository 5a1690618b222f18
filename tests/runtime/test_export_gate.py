"""The gate: what passes, what is refused and in which words; a refused file leaves nothing behind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from effdense.errors import UserError
from effdense.runtime import gate as gates
from effdense.runtime.gate import Gate, Measured, export_through_gate, require_exporter
from effdense.runtime.onnx_header import read_onnx_header, write_header

COPYING = """
<ir_version: 10, opset_import: ["" : 18]> copying (float[n] x) => (float[n] y) { y = Identity (x) }
"""
NAN = math.nan


def gate(before: dict[str, float], after: dict[str, float], tolerance: float = 0.1) -> Gate:
    return Gate(Measured("pytorch", before, 10.0), Measured("onnxruntime", after, 40.0), 200, tolerance)


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "says"),
    [
        pytest.param({"mAP": 41.2}, {"mAP": 41.2}, 0.1, None, id="equal"),
        pytest.param({"mAP": 41.2}, {"mAP": 41.3}, 0.1, None, id="as-much-as-is-tolerated"),
        pytest.param({"mAP": 41.2}, {"mAP": 41.05}, 0.1, "0.15 points apart, and 0.1 are tolerated", id="worse"),
        pytest.param({"mAP": 41.2}, {"mAP": 41.4}, 0.1, "0.20 points apart", id="better"),
        pytest.param({"mAP": 41.2}, {"mAP": 41.4}, 0.5, None, id="more-tolerated"),
        pytest.param({"mAP": 41.2}, {"mAP": 41.2001}, 0.0, "0.00 points apart, and 0 are", id="nothing-tolerated"),
        pytest.param({"mAP": 41.2, "mIoU": 70.0}, {"mAP": 41.2, "mIoU": 69.0}, 0.1, "1.00 points", id="one-of-two"),
        pytest.param({"mIoU": 70.0}, {"mIoU": NAN}, 0.1, "nan points apart", id="not-a-number"),
        pytest.param({"mIoU": 70.0}, {"mIoU": 0.0}, 0.1, "70.00 points apart", id="nothing-found"),
        pytest.param({"mAP": 0.0}, {"mAP": 0.0}, 0.1, "too little to tell a sound file", id="both-find-nothing"),
        pytest.param({"mAP": 0.05}, {"mAP": 0.0}, 0.1, "too little to tell", id="less-than-the-tolerance"),
        pytest.param({"mAP": NAN}, {"mAP": NAN}, 0.1, "too little to tell", id="nothing-to-find"),
        pytest.param({"mAP": 0.0, "mIoU": 70.0}, {"mAP": 0.0, "mIoU": 70.0}, 0.1, "too little", id="one-finds-nothing"),
        pytest.param({}, {}, 0.1, "scores nothing", id="no-score"),
    ],
)
def test_the_gate_lets_pass_what_scores_the_same(
    before: dict[str, float], after: dict[str, float], tolerance: float, says: str | None
) -> None:
    refusal = gate(before, after, tolerance).refusal
    assert refusal is None if says is None else refusal is not None and says in refusal


def test_a_refusal_names_both_scores_and_both_speeds() -> None:
    refusal = gate({"mAP": 41.2, "mIoU": 70.0}, {"mAP": 40.0, "mIoU": 69.5}).refusal
    assert refusal is not None
    assert all(word in refusal for word in ("mAP 41.20, mIoU 70.00", "mAP 40.00, mIoU 69.50", "10.0 im", "40.0 im"))


def test_the_lines_for_the_terminal_name_both_scores_and_both_speeds() -> None:
    lines = gate({"mAP": 41.2}, {"mAP": 41.25}).lines()
    assert [line.split() for line in lines] == [
        ["checkpoint", "mAP", "41.20", "10.0", "images/s", "(PyTorch)"],
        ["exported", "file", "mAP", "41.25", "40.0", "images/s", "(ONNX", "Runtime)"],
    ]


def write(path: Path) -> None:
    model = parser.parse_model(COPYING)
    write_header(model, {"task": "detection", "class_names": ["a"], "export": {"precision": "float32", "gate": None}})
    onnx.save(model, path)


def through(out: Path, score: float, export: Any = write) -> Gate:
    return export_through_gate(
        out,
        export=export,
        checkpoint=lambda: Measured("pytorch", {"mAP": 50.0}, 1.0),
        exported=lambda path: Measured("onnxruntime", {"mAP": score if path.exists() else NAN}, 2.0),
        images=3,
        tolerance=0.1,
        name="best.safetensors",
    )


def test_a_file_that_passes_says_how_it_passed(tmp_path: Path) -> None:
    passed = through(tmp_path / "new" / "x.onnx", 50.05)
    header = read_onnx_header(tmp_path / "new" / "x.onnx")
    assert header["export"] == {"precision": "float32", "checkpoint": "best.safetensors", "gate": passed.record()}
    assert header["export"]["gate"]["exported"] == {
        "runtime": "onnxruntime",
        "points": {"mAP": 50.05},
        "images_per_second": 2.0,
    }
    assert header["class_names"] == ["a"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.onnx"]


@pytest.mark.parametrize("before", [None, b"an earlier export"], ids=["nothing-there", "an-earlier-file"])
def test_a_refused_file_leaves_nothing_behind_and_an_earlier_one_as_it_was(
    before: bytes | None, tmp_path: Path
) -> None:
    if before is not None:
        (tmp_path / "x.onnx").write_bytes(before)
    with pytest.raises(UserError, match=r"x\.onnx is not written: it scores mAP 49\.00"):
        through(tmp_path / "x.onnx", 49.0)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyboardInterrupt(), UserError("no image")])
def test_an_export_that_stops_midway_leaves_nothing_behind(error: BaseException, tmp_path: Path) -> None:
    def stop(path: Path) -> None:
        write(path)
        raise error

    with pytest.raises(type(error)):
        through(tmp_path / "x.onnx", 50.0, stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_package_that_exporting_needs_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_exporter()
    monkeypatch.setattr(gates, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=rf"exporting needs {missing}: pip install 'effdense\[onnx\]'"):
        require_exporter()
