"""What the tools print: names of files and classes as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effdense.tools import console


@pytest.mark.parametrize("name", ["runs/[/x]/metrics.json", "runs/[bold]x/a.json", "plain.json", ""])
def test_the_path_of_a_file_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console._show_files(console._console(), [Path(name)])
    assert capsys.readouterr().out == f"wrote {Path(name)}\n"


def test_no_file_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    console._show_files(console._console(), [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("records", "says"),
    [
        pytest.param([], "", id="no-epoch"),
        pytest.param([{"epoch": 1, "score": None}], "", id="never-scored"),
        pytest.param(
            [{"epoch": 1, "score": 0.5, "AP": 0.2, "mIoU": 0.8}, {"epoch": 2, "score": 0.4, "AP": 0.4, "mIoU": 0.4}],
            "best epoch 1: mean 0.5000, mAP 0.2000, mIoU 0.8000\n",
            id="first-decides",
        ),
        pytest.param([{"epoch": 3, "score": 0.5, "AP": 0.5}], "best epoch 3: mean 0.5000, mAP 0.5000\n", id="one-task"),
        pytest.param(
            [{"epoch": 3, "score": 0.0, "AP": None, "mIoU": 0.1}], "best epoch 3: mean 0.0000, mIoU 0.1000\n", id="null"
        ),
    ],
)
def test_the_result_of_a_training_is_said_as_far_as_there_is_one(
    records: list[dict[str, float | None]], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    best = tmp_path / "best.safetensors"
    console.show_training_result(best, {"score": "mean", "AP": "mAP", "mIoU": "mIoU"})
    assert capsys.readouterr().out == f"{says}model: {best}\n"
