"""What the tools print: names of files and classes as they are."""

from __future__ import annotations

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
