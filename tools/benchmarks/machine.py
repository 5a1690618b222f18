"""What a benchmark ran on: without it, its numbers say little."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "effdet",
    "segmentation-models-pytorch",
    "onnxruntime",
    "openvino",
    "opencv-python-headless",
    "Pillow",
    "numpy",
    "pycocotools",
    "hotcoco",
)
_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
"""What of a CPU decides how fast networks run, by Linux's names."""


def machine(device: str, threads: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a line: CPU, cores, memory, GPU, threads.

    Args:
        device: cpu or cuda.
        threads: that both sides were given.
        cpuinfo: Linux's description of the CPU; elsewhere there is none.
    """
    parts = [cpu_name(cpuinfo), f"{_cores()} cores", f"{_memory_gib():.0f} GiB" if _memory_gib() else ""]
    if device == "cuda":
        import torch

        parts.append(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    parts.append(f"threads: {threads}")
    return ", ".join(filter(None, parts))


def cpu_name(cpuinfo: Path) -> str:
    """Return the CPU's name, with the instructions that networks use."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.M)
    there = flags.group(1).split() if flags else []
    shown = [label for flag, label in _FLAGS.items() if flag in there]
    label = name.group(1).strip() if name else platform.processor() or platform.machine() or "unknown CPU"
    return f"{label} ({', '.join(shown)})" if shown else label


def versions() -> str:
    """Return a line: Python and every package that a row may depend on, as far as it is installed."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # a container or taskset may give fewer than there are
    return os.cpu_count() or 1


def _memory_gib() -> float:
    """Return the machine's memory, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return 0.0
