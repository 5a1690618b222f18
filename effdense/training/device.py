"""Where a model runs."""

from __future__ import annotations

import torch

from effdense.errors import UserError


def choose_device(name: str) -> torch.device:
    """Turn the ``--device`` setting into a device; ``auto`` is the GPU if there is one.

    Raises:
        UserError: the name is none, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device is {name!r}, but torch {torch.__version__} sees no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices")
    return device
