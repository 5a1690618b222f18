"""Keeping freed memory: only where it can be done, and then none of it is asked for anew."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from effdense.allocator import give_back_freed_memory, keep_freed_memory, trim_freed_memory
from effdense.training import learner

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")

FAULTS = """
import resource, sys
import numpy as np
from effdense.allocator import give_back_freed_memory, keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory({})
if "back" in sys.argv:
    assert give_back_freed_memory()
def step():
    maps = [np.full(size * 2**18, 1, np.int32) for size in (100, 8, 40)]  # MiB
    del maps
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str) -> int:
    """Return how often a process that allocates and frees the same again and again waited for a page."""
    run = subprocess.run([sys.executable, "-c", FAULTS, *words], capture_output=True, text=True, check=True)
    return int(run.stdout)


@glibc
def test_what_is_kept_is_not_asked_for_anew() -> None:
    kept, given_back = faults("keep"), faults("keep", "back")
    assert kept < 100
    assert given_back > 1000  # else the measure says nothing


@glibc
def test_it_may_be_done_again() -> None:
    try:
        assert keep_freed_memory({})
        assert keep_freed_memory({})
    finally:
        assert give_back_freed_memory()


@pytest.mark.parametrize(
    "own", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1"}]
)
def test_settings_of_the_users_own_stay(own: dict[str, str]) -> None:
    assert not keep_freed_memory(own)
    assert not give_back_freed_memory(own)


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory({})
    assert not give_back_freed_memory({})
    trim_freed_memory()


@glibc
def test_what_was_kept_goes_back_at_once() -> None:
    code = """
import os
import numpy as np
from effdense.allocator import keep_freed_memory, trim_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20
assert keep_freed_memory({})
np.full(2**26, 1, np.int32)  # 256 MiB
kept = resident()
trim_freed_memory()
print(kept - resident())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) >= 250


@pytest.mark.parametrize("name", ["eval_det", "eval_seg", "eval_multi", "predict", "export"])
def test_the_tools_keep_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool, kept = importlib.import_module(f"effdense.tools.{name}"), []
    monkeypatch.setattr(tool, "keep_freed_memory", lambda: kept.append(name))
    assert tool.main([str(tmp_path / "no.safetensors"), *(["photo.jpg"] if name == "predict" else [])]) == 2
    assert kept == [name]


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("cuda", 0)])
def test_a_training_run_keeps_it_on_a_cpu_alone(device: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, anything = [], cast(Any, None)
    monkeypatch.setattr(learner, "keep_freed_memory", lambda: kept.append(device))
    monkeypatch.setattr(learner, "parameter_groups", None)  # no further
    with pytest.raises((AttributeError, TypeError)):
        learner.build_learner(anything, anything, anything, batches_per_epoch=1, device=torch.device(device))
    assert len(kept) == times
