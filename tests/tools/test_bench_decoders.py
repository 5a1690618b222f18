from __future__ import annotations

import pytest
import torch

from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tools import bench_decoders
from effdense.tools.bench_decoders import main

QUICK = ["--size", "64", "--repeats", "1", "--classes", "3", "--no-export"]


def test_the_table_has_a_row_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--arch", "pspnet", "PAN", "--backbone", "lite0", *QUICK]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "lite0" in line]
    assert [[row[0].strip(), row[4].strip(), row[5].strip()] for row in rows] == [
        ["pspnet", "yes", "-"],
        ["pan", "yes", "-"],
    ]


def test_a_check_that_fails_is_said_and_the_command_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_decoders, "any_size_fault", lambda model: "no, at 1 x 1")
    assert main(["--arch", "pspnet", "--backbone", "lite0", *QUICK]) == 1
    assert "no, at 1 x 1" in capsys.readouterr().out


def test_a_model_that_is_wrong_at_some_size_is_found() -> None:
    model = create_segmentation_model("pspnet", 3).eval()
    model.head = torch.nn.Sequential(model.head, torch.nn.AvgPool2d(3, 1))
    with torch.no_grad():
        assert bench_decoders.any_size_fault(model) == "no, at 32 x 32"


@pytest.mark.slow
def test_a_model_that_does_not_export_says_why() -> None:
    model = create_segmentation_model("pspnet", 3).eval()
    with torch.no_grad():
        assert bench_decoders.export_fault(model) == ""
        model.head.register_forward_hook(lambda module, _, logits: logits * float(logits.sum()))
        assert bench_decoders.export_fault(model).startswith("no, ")


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--arch", "unt"], "'unt' is unknown"), (["--backbone", "b99"], "'b99'"), (["--size", "0"], "size is 0")],
    ids=["arch", "backbone", "size"],
)
def test_what_does_not_exist_is_refused(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, *flags]) == 2
    assert told in capsys.readouterr().err
