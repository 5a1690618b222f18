"""Memory that a step frees and the next one asks for again: on a CPU, kept by the process."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory(device: torch.device) -> bool:
    """Let glibc keep the memory of freed tensors for the next ones, on a CPU under Linux.

    By default each tensor of more than a few megabytes is mapped when it is made and given back when it is freed, so
    that every step of a training loop has the kernel clear the same gigabytes anew.
    Results are not touched; the process stays as large as its largest step.

    Args:
        device: where the model runs.

    Returns:
        Whether it was done.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another libc, such as musl
        return False
    kept = bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
    log.debug("freed memory is %s", "kept for the next step" if kept else "given back")
    return kept
