"""The log of a run: loss sums, the stop at a non-finite loss, metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from effdense.errors import UserError
from effdense.training.runlog import Board, EpochBar, LossMeter, MetricsFile, NonFiniteLossError, write_record


def _losses(value: float) -> dict[str, torch.Tensor]:
    return {"class": torch.tensor(value), "box": torch.tensor(2 * value)}


@pytest.mark.parametrize("every", [1, 3, 100])
def test_means_do_not_depend_on_how_often_the_device_is_read(every: int) -> None:
    meter = LossMeter(every)
    for step in range(7):
        meter.add(step, (step,), _losses(float(step)))
    assert meter.means() == {"class": 3.0, "box": 6.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run_naming_step_images_and_terms(bad: float, every: int) -> None:
    meter = LossMeter(every)

    def four_steps() -> None:
        for step in range(4):
            value = bad if step == 2 else 1.0
            meter.add(step, (10 * step, 10 * step + 1), {"class": torch.tensor(value), "box": torch.tensor(0.5)})

    with pytest.raises(NonFiniteLossError) as error:
        four_steps()
    text = str(error.value)
    assert "step 2" in text
    assert "[20, 21]" in text
    assert f"class {bad}" in text
    assert "box 0.5" in text


def test_a_meter_goes_on_from_a_saved_state_as_if_never_stopped() -> None:
    whole, first, second = LossMeter(), LossMeter(), LossMeter()
    for step in range(6):
        whole.add(step, (), _losses(step / 3))
        if step < 2:
            first.add(step, (), _losses(step / 3))
    second.restore(first.state())
    for step in range(2, 6):
        second.add(step, (), _losses(step / 3))
    assert second.means() == whole.means()


def _missing_some(step: int) -> dict[str, torch.Tensor]:
    """Boxes in every second step, masks in every third, none at all in step 1."""
    terms = {"box": step % 2 == 0, "mask": step % 3 == 0}
    return {name: torch.tensor(float(step)) for name, there in terms.items() if there}


@pytest.mark.parametrize("every", [1, 2, 100])
def test_the_mean_of_a_term_is_over_the_steps_that_had_it(every: int) -> None:
    meter = LossMeter(every)
    assert meter.means() == {}
    for step in range(7):
        meter.add(step, (step,), _missing_some(step))
    assert meter.means() == {"box": (0 + 2 + 4 + 6) / 4, "mask": (0 + 3 + 6) / 3}


def test_a_meter_with_terms_missing_goes_on_from_a_saved_state() -> None:
    whole, first, second = LossMeter(), LossMeter(), LossMeter()
    for step in range(9):
        whole.add(step, (), _missing_some(step))
        if step < 4:
            first.add(step, (), _missing_some(step))
    second.restore(first.state())
    for step in range(4, 9):
        second.add(step, (), _missing_some(step))
    assert second.means() == whole.means()
    assert second.state() == whole.state()


def test_a_meter_goes_on_from_the_state_of_a_version_that_counted_steps_alone() -> None:
    meter = LossMeter()
    meter.restore({"sums": {"class": 6.0, "box": 3.0}, "steps": 3})
    meter.add(3, (), {"class": torch.tensor(2.0)})
    assert meter.means() == {"class": 2.0, "box": 1.0}


def test_images_are_named_by_their_files_where_these_are_known() -> None:
    meter = LossMeter(path_of=lambda image_id: Path(f"photos/{image_id}.jpg"))
    with pytest.raises(NonFiniteLossError, match=r"at step 4 \(box nan; images photos/7\.jpg, photos/9\.jpg\): lower"):
        meter.add(4, (7, 9), {"box": torch.tensor(math.nan)})


def test_a_step_that_lacks_terms_is_named_with_those_that_it_has() -> None:
    meter = LossMeter(3)
    meter.add(0, (1,), {"box": torch.tensor(0.5)})
    meter.add(1, (2,), {"mask": torch.tensor(math.nan)})
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(mask nan; image ids \[2\]\)"):
        meter.add(2, (3,), {"box": torch.tensor(0.5), "mask": torch.tensor(0.5)})


def test_metrics_are_one_strict_json_object_a_line(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"epoch": 1, "AP": 0.5})
    metrics.append({"epoch": 2, "AP": math.nan})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "AP": 0.5}, {"epoch": 2, "AP": None}]
    assert metrics.lines == 2


def test_resuming_cuts_the_lines_that_the_state_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for epoch in range(3):
        metrics.append({"epoch": epoch})
    path.write_text(path.read_text() + '{"epoch": 3, "half')
    assert MetricsFile(path, lines=2).lines == 2
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


def test_an_append_that_fails_leaves_no_half_line_and_names_the_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on the size of a file on this system")
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append({"epoch": 1})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))  # room for five bytes of the line
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written"):
            metrics.append({"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert metrics.lines == 1
    metrics.append({"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_a_cut_on_resuming_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n')

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written .*No space left"):
        MetricsFile(path, lines=1)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [
        ("metrics.jsonl", '{"epoch": 0}\n{"epoch": 1}\n')
    ]


def test_a_record_is_a_line_of_the_file_and_its_numbers_are_drawn_with_the_losses_together(tmp_path: Path) -> None:
    drawn: list[tuple[dict[str, float], int]] = []

    class Noting(Board):
        def __init__(self) -> None: ...

        def scalars(self, values: dict[str, float], step: int) -> None:
            drawn.append((values, step))

    record = {"epoch": 2, "step": 40, "lr": 0.1, "total": 3.0, "box": 1.0, "mIoU": 0.5, "APlarge": None}
    write_record(record, ["box", "total"], metrics=MetricsFile(tmp_path / "metrics.jsonl"), board=Noting(), step=40)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line.pop("time") > 0
    assert line == record
    assert drawn == [({"lr": 0.1, "loss/total": 3.0, "loss/box": 1.0, "mIoU": 0.5}, 40)]


def test_the_bar_is_silent_where_the_output_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    bar = EpochBar("epoch 1/1", 3)
    bar.advance(4, {"total": 1.0})
    bar.close()
    assert bar.images == 4
    assert bar.images_per_second() > 0
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
