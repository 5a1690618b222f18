"""Files of a run: whole models as safetensors with a JSON header, and the state that resuming needs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from effdense.errors import UserError
from effdense.files import replacing
from effdense.model_header import FORMAT, HEADER_KEY


def require_space(folder: Path, bytes_needed: int) -> None:
    """Refuse to begin a run whose files would not fit.

    Raises:
        UserError: the disk under ``folder`` has less than ``bytes_needed`` free.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < bytes_needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free and this run's files need {bytes_needed / 1e6:.0f} MB; "
            "free some space or choose another --out"
        )


def save_model(path: str | Path, model: torch.nn.Module, header: dict[str, Any]) -> None:
    """Write a whole model: weights and a JSON header that `effdense.load` rebuilds it from.

    Args:
        path: ends in .safetensors.
        model: whose state_dict is written, each tensor once.
        header: task, architecture, class names, preprocessing, scores.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={HEADER_KEY: text})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a safetensors file, on the CPU."""
    with safe_open(path, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write what resuming needs: tensors, numbers, texts and containers of them."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state file; nothing in it is ever unpickled beyond tensors and plain values.

    Raises:
        UserError: it is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"there is nothing to resume: {path} does not exist")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as a run's state: {error}") from error
    return state


def state_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
