"""Mixed precision: which type the forward pass runs in, and the loss scaler that fp16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from effdense.errors import UserError
from effdense.ops.cpu_training import FastCpuTraining

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """How forward and backward run on one device.

    Attributes:
        name: ``fp32``, ``bf16`` or ``fp16``.
        device_type: ``cpu`` or ``cuda``.
        scaler: the gradient scaler of fp16, else None.
    """

    name: str
    device_type: str
    scaler: torch.amp.GradScaler | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward pass runs."""
        context = ExitStack()
        if self.name != "fp32":
            context.enter_context(torch.autocast(self.device_type, dtype=_DTYPES[self.name]))
        if self.device_type == "cpu":
            context.enter_context(FastCpuTraining())
        return context

    def backward(self, loss: torch.Tensor) -> None:
        """Back-propagate a scalar loss, scaled where fp16 asks for it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer; fp16 leaves a step with overflown gradients out."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to their true size, before they are clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)


def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX tiles), where autocast pays."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe()) if probe is not None else False


def choose_precision(amp: str, device: torch.device) -> Precision:
    """Turn the ``--amp`` setting into a Precision.

    ``auto`` is bf16 on GPUs that have it and fp16 with a scaler on those that do not; on a CPU it is bf16 where the
    processor has AMX tiles and fp32 elsewhere, because emulated bf16 is slower than fp32.

    Args:
        amp: ``auto``, ``off``, ``bf16`` or ``fp16``.
        device: where the model is.

    Raises:
        UserError: fp16 was asked for on a CPU, or the name is unknown.
    """
    if amp not in ("auto", "off", "bf16", "fp16"):
        raise UserError(f"amp is {amp!r}, expected auto, off, bf16 or fp16")
    if amp == "off":
        return Precision("fp32", device.type)
    if device.type != "cuda":
        if amp == "fp16":
            raise UserError("amp fp16 needs a CUDA device; on a CPU use bf16, auto or off")
        return Precision("bf16" if amp == "bf16" or cpu_has_fast_bf16() else "fp32", device.type)
    if amp == "fp16" or (amp == "auto" and not torch.cuda.is_bf16_supported(including_emulation=False)):
        return Precision("fp16", "cuda", torch.amp.GradScaler("cuda"))
    return Precision("bf16", "cuda")
