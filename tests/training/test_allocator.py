"""Keeping freed memory: only where it can be done, and with the results that there were."""

from __future__ import annotations

import platform

import pytest
import torch

from effdense.training.allocator import keep_freed_memory


def test_a_gpu_is_left_alone() -> None:
    assert not keep_freed_memory(torch.device("cuda"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_on_a_cpu_it_is_done_and_may_be_done_again() -> None:
    assert keep_freed_memory(torch.device("cpu"))
    assert keep_freed_memory(torch.device("cpu"))


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory(torch.device("cpu"))
