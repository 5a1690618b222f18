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
        pytest.param({"mAP": 0.15}, {"mAP": 0.06}, 0.1, "0.1; take more images", id="hardly-more-than-the-tolerance"),
        pytest.param({"mAP": 0.99}, {"mAP": 0.99}, 0.0, "as 1 are needed for a tolerance of 0", id="below-a-point"),
        pytest.param({"mAP": 1.0}, {"mAP": 1.0}, 0.1, None, id="a-point"),
        pytest.param(
            {"mAP": 14.9},
            {"mAP": 14.9},
            1.5,
            "1.5; take a smaller --tolerance, more",
            id="below-ten-times-the-tolerance",
        ),
        pytest.param({"mAP": 15.0}, {"mAP": 14.0}, 1.5, None, id="ten-times-the-tolerance"),
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


def fed_otherwise(scores: dict[str, float]) -> Gate:
    whole = Measured("onnxruntime", {"mAP": 41.2, "mIoU": 70.0}, 40.0)
    again = Measured("onnxruntime", scores, 20.0, given="images as they are")
    return Gate(Measured("pytorch", dict(whole.scores), 10.0), whole, 200, 0.1, (again,))


@pytest.mark.parametrize(
    ("scores", "apart", "says"),
    [
        pytest.param({"mAP": 41.2}, 0.0, None, id="equal"),
        pytest.param({"mAP": 41.15}, 0.05, None, id="tolerated"),
        pytest.param({"mAP": 3.0}, 38.2, "and mAP 3.00 given images as they are, where the checkpoint", id="worse"),
        pytest.param({"mAP": NAN}, NAN, "and mAP nan given images as they are, where", id="not-a-number"),
    ],
)
def test_a_file_that_is_fed_in_two_ways_passes_in_both_or_not_at_all(
    scores: dict[str, float], apart: float, says: str | None
) -> None:
    found = fed_otherwise(scores)
    assert found.points_apart == pytest.approx({"mAP": apart, "mIoU": 0.0}, nan_ok=True)
    assert found.refusal is None if says is None else says in str(found.refusal)
    assert found.record()["otherwise"] == [{"given": "images as they are", "points": scores}]


def test_the_second_way_is_said_where_it_scores_otherwise() -> None:
    assert len(fed_otherwise({"mAP": 41.2004}).lines()) == 2
    line = fed_otherwise({"mAP": 41.15}).lines()[2]
    assert " ".join(line.split()) == "the same mAP 41.15 given images as they are"


def write(path: Path) -> None:
    model = parser.parse_model(COPYING)
    write_header(model, {"task": "detection", "class_names": ["a"], "export": {"precision": "float32", "gate": None}})
    onnx.save(model, path)


def scoring(score: float) -> Any:
    return lambda path: (Measured("onnxruntime", {"mAP": score if path.exists() else NAN}, 2.0),)


def through(out: Path, score: float, export: Any = write, exported: Any = None) -> Gate:
    return export_through_gate(
        out,
        export=export,
        checkpoint=lambda: Measured("pytorch", {"mAP": 50.0}, 1.0),
        exported=exported or scoring(score),
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


@pytest.mark.parametrize(
    ("error", "says"),
    [
        pytest.param(FileNotFoundError(2, "No such file", "/data/7.jpg"), "No such file: '/data/7.jpg'", id="image"),
        pytest.param(OSError(24, "Too many open files"), "Too many open files", id="handles"),
    ],
)
def test_what_stops_the_comparison_is_not_taken_for_a_full_disk(error: OSError, says: str, tmp_path: Path) -> None:
    def stop(path: Path) -> Any:
        raise error

    with pytest.raises(UserError, match="not written, as it could not be compared with its checkpoint") as refused:
        through(tmp_path / "x.onnx", 50.0, exported=stop)
    assert says in str(refused.value)
    assert "free some space" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_still_said(tmp_path: Path) -> None:
    def stop(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        through(tmp_path / "x.onnx", 50.0, stop)


def test_a_place_that_takes_no_file_is_refused_before_the_work(tmp_path: Path) -> None:
    def never(path: Path) -> None:
        pytest.fail("it was exported")

    (tmp_path / "x.onnx").mkdir()
    (tmp_path / "a").write_bytes(b"")
    for out, says in (("x.onnx", "x.onnx is a folder, expected the name"), ("a/x.onnx", "cannot be written")):
        with pytest.raises(UserError, match=says):
            through(tmp_path / out, 50.0, never)


def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        through(tmp_path / ("x" * 300 + ".onnx"), 50.0, lambda path: pytest.fail("it was exported"))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_package_that_exporting_needs_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_exporter()
    monkeypatch.setattr(gates, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=rf"exporting needs {missing}: pip install 'effdense\[onnx\]'"):
        require_exporter()
