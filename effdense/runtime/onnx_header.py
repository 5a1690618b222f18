"""What an exported ONNX file says of itself: the header of a model file, kept in the metadata of the ONNX model.

It is read from the protocol buffer itself, so that it takes neither a package nor the weights.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from effdense.errors import UserError
from effdense.model_header import FORMAT, HEADER_KEY, parse_header
from effdense.model_parts import DETECTION, SEGMENTATION
from effdense.runtime.header_checks import check_header
from effdense.runtime.onnx_bytes import NotOnnxError, Outline, read_outline

SUFFIX = ".onnx"
"""How an exported file's name ends."""

EXPORT = "export"
"""In the header: how the file was made, and how it compares with its checkpoint."""


def is_exported(path: str | Path) -> bool:
    """Return whether a file is an exported model, by its name."""
    return Path(path).suffix.lower() == SUFFIX


def write_header(model: Any, header: Mapping[str, Any]) -> None:
    """Put a header into an ONNX model, in place of one that it has.

    For readers other than effdense, the metadata ``task``, ``class_names`` and ``preprocessing`` say the same in plain
    text and JSON; a model of both tasks has ``seg_class_names`` too, for the pixels.

    Args:
        model: an ``onnx.ModelProto``; changed in place.
        header: of the checkpoint, with ``"export"``.
    """
    texts = {HEADER_KEY: json.dumps({"format": FORMAT, **header}, allow_nan=False), "task": str(header["task"])}
    objects, pixels = header.get(DETECTION, header), header.get(SEGMENTATION, {})
    shown = {
        "class_names": objects.get("class_names"),
        "seg_class_names": pixels.get("class_names"),
        "preprocessing": header.get("preprocessing"),
    }
    texts |= {name: json.dumps(value, ensure_ascii=False) for name, value in shown.items() if value is not None}
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in texts]
    del model.metadata_props[:]
    for key, value in (*kept, *texts.items()):
        model.metadata_props.add(key=key, value=value)


def read_onnx_header(path: str | Path) -> dict[str, Any]:
    """Read the JSON header of an exported file without reading its weights.

    Raises:
        UserError: there is no such file, it is no whole ONNX file, or effdense did not export it, or its header is
            damaged or does not fit its network.
    """
    path = Path(path)
    outline = _outline(path)
    metadata = outline.metadata
    if HEADER_KEY not in metadata:
        raise UserError(
            f"{path} is an ONNX file that effdense did not export, so what goes in and comes out is unknown; make one "
            "of a checkpoint by effdense export CHECKPOINT"
        )
    header = parse_header(metadata[HEADER_KEY], path)
    if not isinstance(header.get(EXPORT), dict):
        raise UserError(f"the header of {path} is damaged (it says nothing of its export); export it again")
    with header_errors_explained(path):
        check_header(header, header[EXPORT], outline.shapes)
    return header


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the texts that an ONNX file carries beside its graph, by their keys.

    Raises:
        UserError: there is no such file, or it is no whole ONNX file.
    """
    return _outline(Path(path)).metadata


@contextlib.contextmanager
def header_errors_explained(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a header's values are used into one error that names the file.

    Raises:
        UserError: in place of a KeyError, TypeError or ValueError.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"the header of {path} is damaged or of another version of effdense ({reason}); export it again"
        ) from error


def _outline(path: Path) -> Outline:
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    try:
        return read_outline(path)
    except (NotOnnxError, OSError) as error:
        raise UserError(
            f"{path} is not a whole ONNX file ({error}); expected one that effdense export wrote: fetch it or export "
            "it again"
        ) from error
