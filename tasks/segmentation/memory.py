"""Whether what is about to be computed fits into memory, said before the machine comes to a halt.

A window that is too large fails late and badly otherwise: a GPU runs out in the middle of a forward pass, and a Linux
machine grants memory that it does not have and kills the process when it is used.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from effdense.allocator import trim_freed_memory
from effdense.errors import UserError

PROBE = 128
"""Side of the image that a forward pass is measured on, in pixels."""

_WORKSPACE = 1.8
"""What convolutions need beside inputs and outputs, and an allocator wastes, as a factor: the most that was measured
over seven decoders and three backbones on a CPU, where it lay between 1.2 and 1.8."""

_MEMINFO = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be used on a device, or None where the system does not say.

    On a GPU what PyTorch holds but does not use counts as available.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.M)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def require_memory(bytes_needed: int, device: torch.device | None, what: str, advice: str) -> None:
    """Refuse what does not fit.

    Args:
        bytes_needed: beside what is in memory already.
        device: where; None is main memory.
        what: what needs it, for the message.
        advice: what to do, for the message.

    Raises:
        UserError: less than ``bytes_needed`` is available; names both numbers.
    """
    free = available_bytes(device or torch.device("cpu"))
    if free is not None and bytes_needed > free and (device is None or device.type == "cpu"):
        trim_freed_memory()  # what this process has freed and kept counts as taken
        free = available_bytes(torch.device("cpu"))
    if free is not None and bytes_needed > free:
        where = f" on {device}" if device is not None and device.type == "cuda" else ""
        raise UserError(
            f"{what} would need about {gigabytes(bytes_needed)} of memory, and {gigabytes(free)} is free{where}: "
            f"{advice}"
        )


def forward_in_words(shape: tuple[int, int, int, int], name: str, flag: str) -> tuple[str, str]:
    """Return what runs, and what to change where it is too large.

    Args:
        shape: of the images, (B, 3, H, W).
        name: what one of them is called.
        flag: that sets their size.
    """
    count, _, height, width = shape
    advice = f"use a smaller {flag}" + (" or --batch-size" if count > 1 else "")
    return f"a forward pass over {count} {name}{'s' * (count > 1)} of {width}x{height} pixels", advice


def gigabytes(size: float) -> str:
    """Return a number of bytes as a person reads it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@contextlib.contextmanager
def memory_errors_explained(what: str, advice: str) -> Iterator[None]:
    """Turn the error of an allocation that failed into one for people.

    Raises:
        UserError: memory ran out within; it carries the library's own words.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one of the former, NumPy's of the latter
        if not _is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what} does not fit into memory ({reason}): {advice}") from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class ForwardMemory:
    """Whether a model's forward passes fit, asked for no more often than it has to be."""

    def __init__(self, model: nn.Module, probe: int = PROBE):
        """Begin with nothing known.

        Args:
            model: takes uint8 images (B, 3, H, W).
            probe: as for `forward_bytes`.
        """
        self.model = model
        self.probe = probe
        self._estimates: dict[tuple[int, int, int, int], int] = {}  # bytes of a forward pass, by shape of its images
        self._bytes_that_fit = 0

    def forget(self) -> None:
        """Begin anew, as on another device."""
        self._estimates.clear()
        self._bytes_that_fit = 0

    def require(
        self, shape: tuple[int, int, int, int], device: torch.device, what: str, advice: str, more: int = 0
    ) -> None:
        """Refuse a forward pass over images of a shape (B, 3, H, W) that does not fit, beside ``more`` bytes.

        No more than fitted once is not asked for again: a process keeps what it has freed, and the system counts that
        as taken.

        Raises:
            UserError: as `require_memory`, whose other arguments these are.
        """
        if shape not in self._estimates:
            self._estimates[shape] = forward_bytes(self.model, shape, device, self.probe)
        needed = self._estimates[shape] + more
        if needed > self._bytes_that_fit:
            require_memory(needed, device, what, advice)
            self._bytes_that_fit = needed


@torch.inference_mode()
def forward_bytes(model: nn.Module, shape: tuple[int, int, int, int], device: torch.device, probe: int = PROBE) -> int:
    """Estimate the memory of a forward pass, weights aside, from one on a small image.

    Modules are watched as they run: the most bytes of their inputs and outputs that are alive at one time, times the
    ratio of the pixels.

    Args:
        model: takes uint8 images (B, 3, H, W).
        shape: of the images, (B, 3, H, W).
        device: where the model is.
        probe: side of the small image, in pixels, where ``shape`` is larger; one that the model takes.
    """
    batch, channels, height, width = shape
    side_hw = (min(probe, height), min(probe, width))
    images = torch.zeros((1, channels, *side_hw), dtype=torch.uint8, device=device)
    live = _LiveBytes()
    handles = [module.register_forward_hook(live.watch) for module in model.modules()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return int(_WORKSPACE * live.most * batch * height * width / (side_hw[0] * side_hw[1]))


class _LiveBytes:
    """The bytes of tensors that modules take and return, as long as these exist."""

    def __init__(self) -> None:
        self.most = 0
        self._bytes: dict[int, int] = {}
        self._holders: dict[int, int] = {}

    def watch(self, module: nn.Module, inputs: object, output: object) -> None:
        """Note what a module took and returned; a forward hook."""
        for tensor in _tensors((inputs, output)):
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            self._bytes[key] = storage.nbytes()
            self._holders[key] = self._holders.get(key, 0) + 1
            weakref.finalize(tensor, self._release, key)
        self.most = max(self.most, sum(self._bytes.values()))

    def _release(self, key: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key], self._bytes[key]


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
