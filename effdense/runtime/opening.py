"""A model from a file, be it a checkpoint or an exported one: which of the two it is, and what each can be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from effdense.errors import UserError
from effdense.runtime.onnx_header import is_exported
from effdense.runtime.session import Runtime
from effdense.training.device import choose_device
from effdense.transforms import Transform, eval_transform, mean_fill
from effdense.types import UInt8

C = TypeVar("C", bound="Movable")
E_co = TypeVar("E_co", covariant=True)


class Movable(Protocol):
    """A model of a checkpoint, as far as opening one goes."""

    def to(self: C, device: torch.device | str) -> C:
        """Move it, and return it."""
        ...


class LoadsExported(Protocol[E_co]):
    """What loads an exported file of one task."""

    def __call__(self, path: Path, *, runtime: Runtime, threads: int | None) -> E_co:
        """Return what predicts."""
        ...


def open_model(
    path: str | Path,
    load_checkpoint: Callable[[Path], C],
    load_exported: LoadsExported[E_co],
    *,
    device: str = "cpu",
    runtime: Runtime = "auto",
    threads: int | None = None,
) -> C | E_co:
    """Open a file by the loader of its kind.

    Args:
        path: a .safetensors file of a training run, or an .onnx file of ``effdense export``.
        load_checkpoint: takes the former.
        load_exported: takes the latter.
        device: auto, cpu, cuda or cuda:N; an exported file runs on the CPU.
        runtime: of an exported file: see `effdense.runtime.session.open_session`.
        threads: of an exported file, likewise.

    Raises:
        UserError: what the loader refuses; a device, a runtime or threads that a file of this kind has no use for.
    """
    path = Path(path)
    if is_exported(path):
        refuse_other_device(path, device)
        return load_exported(path, runtime=runtime, threads=threads)
    for name, value in (("runtime", None if runtime == "auto" else runtime), ("threads", threads)):
        if value is not None:
            raise UserError(
                f"{name} {value} has no effect on {path}, which PyTorch runs: it belongs to exported files (.onnx); "
                "leave it out"
            )
    return load_checkpoint(path).to(choose_device(device))


def refuse_other_device(source: object, device: torch.device | str) -> None:
    """Refuse to move an exported model off the CPU.

    Args:
        source: the file, for the error.
        device: where to; ``auto`` is the CPU.

    Raises:
        UserError: it is another device.
    """
    if str(device) not in ("auto", "cpu"):
        raise UserError(
            f"{source} is an exported model, which runs on the CPU, not on {device}; use the checkpoint there"
        )


def refuse_other_size(source: str, image_size: int, wanted: int) -> None:
    """Refuse to run an exported model at another image size.

    Args:
        source: the file, for the error.
        image_size: side of the square that it fits images into, in pixels.
        wanted: another, or the same.

    Raises:
        UserError: it is another.
    """
    if wanted != image_size:
        raise UserError(
            f"{source} was exported for images fitted into {image_size} pixels; for {wanted}, export the checkpoint "
            f"again with --image-size {wanted}"
        )


def fitting_transform(header: Mapping[str, Any]) -> Transform:
    """Return the transform of the checkpoint that an exported file was made of, by the file's header.

    Raises:
        KeyError, TypeError, ValueError: the header is damaged.
    """
    preprocessing = header["preprocessing"]
    side = int(preprocessing["image_size"])
    return eval_transform((side, side), fill=mean_fill(preprocessing["mean"]))


def pixels_of(images: torch.Tensor) -> UInt8:
    """Return a batch's images, (B, 3, H, W), as an exported file takes them, (B, H, W, 3)."""
    pixels: UInt8 = images.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
