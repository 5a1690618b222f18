"""Where nothing can be written is known before the work, and what to do fits the reason."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from effdense.errors import UserError
from effdense.files import replacing, require_writable
from effdense.tools import eval_det, eval_multi, eval_seg, train_det

REASONS = [
    (errno.ENOSPC, "free some space"),
    (errno.EACCES, "that you may write to"),
    (errno.EROFS, "read-only"),
    (errno.ENOENT, "can be made there"),
    (errno.ENAMETOOLONG, "shorter name"),
    (errno.EIO, "choose another folder"),
]


@pytest.mark.parametrize(("number", "says"), REASONS)
def test_the_hint_fits_the_reason(number: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **named: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for writes in (lambda: require_writable(tmp_path / "a"), lambda: replacing(tmp_path / "a").__enter__()):
        with pytest.raises(UserError, match=says) as told:
            writes()
        assert os.strerror(number) in str(told.value)
        assert ("free some space" in str(told.value)) == (number == errno.ENOSPC)


@pytest.mark.parametrize("there", [True, False])
def test_looking_leaves_nothing_behind(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    if there:
        folder.mkdir(parents=True)
    require_writable(folder)
    assert folder.exists() == there
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (tmp_path / "a").exists() == there


def test_looking_where_a_file_is_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UserError, match="a file is where a folder should be"):
            require_writable(folder)
    with pytest.raises(UserError, match="choose a shorter name"):
        require_writable(tmp_path / "new" / ("x" * 300))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (eval_det.main, ["missing.safetensors"]),
        (eval_det.main, ["--predictions", "missing.json", "--annotations", "missing.json"]),
        (eval_seg.main, ["missing.safetensors", "--dataset", "demo"]),
        (eval_multi.main, ["missing.safetensors", "--dataset", "demo"]),
        (train_det.main, ["--dataset", "coco", "--data-root", "missing"]),
    ],
)
def test_tools_say_so_before_they_look_at_anything_else(
    tool: Callable[..., int], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert tool([*arguments, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "nothing can be written to" in capsys.readouterr().err
