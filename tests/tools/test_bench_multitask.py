from __future__ import annotations

import pytest

from effdense.tools.bench_multitask import Case, MultitaskBenchConfig, cases_of, main

QUICK = ["--image-size", "64", "--repeats", "1", "--classes", "2", "--seg-classes", "3", "--device", "cpu"]


@pytest.mark.slow
def test_the_table_has_a_row_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backbone", "lite0", "--arch", "Linknet", "bifpn", *QUICK]) == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row[:1] == ["lite0"]]
    assert [row[1:3] for row in rows] == [["linknet", "64"], ["bifpn, shared", "64"], ["bifpn, its own", "64"]]
    for row in rows:
        in_turn, shared, ratio = (float(cell) for cell in row[7:10])
        assert 0 < shared < in_turn
        assert ratio == pytest.approx(shared / in_turn, abs=0.01)
        assert 0 < float(row[10]) < 1


def test_only_bifpn_can_share_its_pyramid() -> None:
    config = MultitaskBenchConfig(backbone=("lite0", "b0"), arch=("fpn", "BiFPN"))
    assert cases_of(config)[:3] == [
        Case("lite0", "fpn", False),
        Case("lite0", "bifpn", True),
        Case("lite0", "bifpn", False),
    ]
    assert len(cases_of(config)) == 6


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--arch", "unt"], "'unt' is unknown"),
        (["--backbone", "b99"], "'b99'"),
        (["--image-size", "0"], "image_size is 0"),
        (["--image-size", "100"], "multiples of 32"),
        (["--repeats", "0"], "repeats is 0"),
        (["--device", "gpu"], "device is 'gpu'"),
    ],
    ids=["arch", "backbone", "no size", "size", "repeats", "device"],
)
def test_what_does_not_exist_is_refused(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, *flags]) == 2
    assert told in capsys.readouterr().err
