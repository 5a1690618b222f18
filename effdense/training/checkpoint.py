"""Files of a run: whole models as safetensors with a JSON header, and the state that resuming needs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from effdense.errors import UserError
from effdense.files import replacing

FORMAT = 1
_HEADER_KEY = "effdense"


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


def save_model(path: Path, model: torch.nn.Module, header: dict[str, Any]) -> None:
    """Write a whole model: weights and a JSON header that `effdense.load` rebuilds it from.

    Args:
        path: ends in .safetensors.
        model: whose state_dict is written, each tensor once.
        header: task, architecture, class names, preprocessing, scores.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_HEADER_KEY: text})


def read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a model file without reading its weights.

    Raises:
        UserError: there is no such file, or it is not a model that effdense saved, or its header is damaged.
    """
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole effdense model ({error}); expected a .safetensors file that a training run wrote"
        ) from error
    if _HEADER_KEY not in metadata:
        raise UserError(f"{path} holds weights but no effdense header; load it through --weights when training instead")
    try:
        header = json.loads(metadata[_HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"no JSON, {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, f"a {type(header).__name__} instead of names and values")
    if "format" not in header:
        raise _damaged(path, "it names no format")
    if header["format"] != FORMAT:
        raise UserError(f"{path} has format {header.get('format')!r}, this version of effdense reads format {FORMAT}")
    return header


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"the header of {path} is damaged ({reason}); fetch the file again or take another")


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
