"""Model and state files: whole, safe, and never half written."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from effdense.errors import UserError
from effdense.files import replacing, write_atomically
from effdense.model_header import read_header
from effdense.training import checkpoint
from effdense.training.checkpoint import (
    load_state,
    read_tensors,
    require_space,
    save_model,
    save_state,
    state_bytes,
)


def test_a_model_file_gives_back_header_and_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    save_model(str(tmp_path / "m.safetensors"), model, {"task": "x", "class_names": ["ä", "b"]})  # a text will do
    header = read_header(tmp_path / "m.safetensors")
    assert header == {"format": 1, "task": "x", "class_names": ["ä", "b"]}
    tensors = read_tensors(tmp_path / "m.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_a_model_file_is_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", nn.Linear(1, 1), {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def _foreign_format(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path, metadata={"effdense": json.dumps({"format": 99})})


def _with_header(text: str) -> Any:
    return lambda path: save_file({"a": torch.ones(1)}, path, metadata={"effdense": text})


BAD_MODELS = [
    pytest.param(lambda path: None, "there is no model file", id="missing"),
    pytest.param(lambda path: path.write_bytes(b"junk"), "not a whole effdense model", id="junk"),
    pytest.param(lambda path: path.write_bytes(pickle.dumps(print)), "not a whole effdense model", id="pickle"),
    pytest.param(lambda path: torch.save({"a": 1}, path), "not a whole effdense model", id="torch-file"),
    pytest.param(lambda path: save_file({"a": torch.ones(1)}, path), "no effdense header", id="foreign-weights"),
    pytest.param(_foreign_format, "has format 99", id="later-format"),
    pytest.param(_with_header('{"format": 1, "ta'), "header .* is damaged", id="cut-header"),
    pytest.param(_with_header(""), "header .* is damaged", id="empty-header"),
    pytest.param(_with_header("[" * 100_000), "header .* is damaged", id="deep-header"),
    pytest.param(_with_header('["format", 1]'), "header .* is damaged", id="list-for-header"),
    pytest.param(_with_header("null"), "header .* is damaged", id="null-for-header"),
    pytest.param(_with_header("{}"), "header .* is damaged", id="no-format"),
    pytest.param(_with_header('{"format": "1"}'), "has format '1'", id="format-of-another-type"),
]


@pytest.mark.parametrize(("write", "says"), BAD_MODELS)
def test_a_file_that_is_no_model_is_refused_by_name(write: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write(path)
    with pytest.raises(UserError, match=says) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"tensor": torch.randn(3), "number": 2, "nested": {"list": [1.5, None, "text"]}}
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert torch.equal(loaded.pop("tensor"), state["tensor"])  # type: ignore[arg-type]
    assert loaded == {"number": 2, "nested": {"list": [1.5, None, "text"]}}


class _Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("kind", ["missing", "cut", "pickle"])
def test_a_state_that_cannot_be_used_is_refused_and_never_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    if kind == "cut":
        save_state(path, {"a": torch.ones(1000)})
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "pickle":
        torch.save({"a": _Harmful()}, path)
    with pytest.raises(UserError, match=r"state\.pt"):
        load_state(path)
    assert not (tmp_path / "harmed").exists()


def _fail_while_writing(path: Path, failure: Exception) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise failure


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(OSError(28, "No space left on device"), id="disk-full"),
        pytest.param(RuntimeError("[enforce fail] PytorchStreamWriter failed writing file"), id="torch-disk-full"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(failure: Exception, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UserError, match="cannot be written"):
        _fail_while_writing(path, failure)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_fault_of_ours_while_writing_is_not_dressed_up_as_the_users(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        _fail_while_writing(tmp_path / "file", RuntimeError("a bug"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("private", [False, True])
def test_what_a_killed_process_left_is_replaced_by_the_next_write(private: bool, tmp_path: Path) -> None:
    stale = tmp_path / ".file.part"
    stale.write_text("half of something much longer")
    stale.chmod(0o600 if private else 0o644)
    write_atomically(tmp_path / "file", "whole")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "whole")]
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(("durable", "waits"), [(True, 1), (False, 0)])
def test_only_a_durable_write_waits_for_the_disk(
    durable: bool, waits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    write_atomically(tmp_path / "file", b"\x00\xff", durable=durable)
    assert (tmp_path / "file").read_bytes() == b"\x00\xff"
    assert len(waited) == waits


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "below" / "x", "text")


def test_a_run_that_will_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(UserError, match="MB free"):
        require_space(tmp_path, 1 << 60)


def test_the_size_of_a_state_counts_every_tensor() -> None:
    assert state_bytes(nn.Linear(10, 5)) == 4 * (50 + 5)
    assert checkpoint.FORMAT == 1
