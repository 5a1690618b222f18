"""Memory that a process frees and asks for again: on a CPU, kept, so that the system need not clear it each time.

Feature maps are tens of megabytes. glibc, the C library of most Linux systems, asks the system for each of more than
32 MiB by itself and gives it back when it is freed, as it does with what lies free at the end of its heap. The system
hands memory out in pages of 4 KiB, which it clears when they are first written to: a step that needs a gigabyte anew
waits for that a quarter of a million times.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
_MIB = 2**20
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Have this process keep the memory that it frees for what it allocates next, from now on.

    Training and prediction on a CPU are faster for it, those of batches and large images most; results are the same.
    The process stays at least as large as it ever was. Effdense's tools do this, and so does a training run on a CPU;
    ``import effdense``, `effdense.load` and ``predict`` do not, as the process may be a server of somebody's own. Of
    threads that Python starts, allocations of more than 64 MiB are still given back. Memory of a GPU is not concerned,
    nor is another allocator that was loaded before.

    Args:
        environment: variables, among which the user's own settings of glibc's malloc (``MALLOC_TRIM_THRESHOLD_`` and
            the like, or ``GLIBC_TUNABLES``) are left as they are.

    Returns:
        Whether it was done: not with settings of the user's own, nor with another C library.
    """
    return not _has_own_settings(environment) and _set(_M_MMAP_MAX, 0) and _set(_M_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Have this process give freed memory back as glibc does by itself, and what it keeps at once.

    By itself, glibc raises its two limits with the allocations that it sees, up to the ones that are set here.

    Args:
        environment: as for `keep_freed_memory`.

    Returns:
        Whether it was done.
    """
    single = 32 * _MIB
    if _has_own_settings(environment) or not _set(_M_MMAP_MAX, 65536):
        return False
    trim_freed_memory()
    return _set(_M_MMAP_THRESHOLD, single) and _set(_M_TRIM_THRESHOLD, 2 * single)


def trim_freed_memory() -> None:
    """Give back what is free now, whatever is kept from now on; where there is no glibc, do nothing."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _has_own_settings(environment: Mapping[str, str]) -> bool:
    tunables = environment.get("GLIBC_TUNABLES", "")
    return any(name in environment for name in _OWN_SETTINGS) or "glibc.malloc" in tunables


def _set(parameter: int, value: int) -> bool:
    """Set a parameter of glibc's malloc; False where there is no glibc."""
    library = _glibc()
    return library is not None and bool(library.mallopt(parameter, value))


def _glibc() -> Any:
    """Return the C library of this process, or None where it is another than glibc."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # none that is loaded without a name
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None
