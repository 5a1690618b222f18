"""What a model file says of itself: a JSON header, read without torch and without the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from effdense.errors import UserError

FORMAT = 1
"""Of the header; a file of another format is refused."""

_BEST = "best.safetensors"
"""What a training run leaves in its folder."""

HEADER_KEY = "effdense"
"""Under which safetensors keeps the header."""


def refuse_exported(path: Path) -> None:
    """Refuse an exported model where a checkpoint is wanted.

    Raises:
        UserError: the file's name is that of one.
    """
    if path.suffix.lower() == ".onnx":
        raise UserError(
            f"{path} is an exported model, which predicts and is scored but has no weights to go on from; give the "
            ".safetensors file that it was made of"
        )


def read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a model file without reading its weights.

    Raises:
        UserError: there is no such file, or it is not a model that effdense saved, or its header is damaged.
    """
    if path.is_dir() and (path / _BEST).is_file():
        raise UserError(f"{path} is a folder; the model in it is {path / _BEST}")
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    refuse_exported(path)
    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole effdense model ({error}); expected a .safetensors file that a training run wrote"
        ) from error
    if HEADER_KEY not in metadata:
        raise UserError(f"{path} holds weights but no effdense header; load it through --weights when training instead")
    return parse_header(metadata[HEADER_KEY], path)


def parse_header(text: str, path: Path) -> dict[str, Any]:
    """Return the header that a text holds.

    Args:
        text: JSON.
        path: the file it is in, for the errors.

    Raises:
        UserError: it is damaged, or of another format.
    """
    try:
        header = json.loads(text)
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
