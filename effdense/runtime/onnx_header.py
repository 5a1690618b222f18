"""What an exported ONNX file says of itself: the header of a model file, kept in the metadata of the ONNX model.

It is read from the protocol buffer's outermost fields, so that it takes neither a package nor the weights: the fields
before it are skipped by their lengths.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from effdense.errors import UserError
from effdense.model_header import FORMAT, HEADER_KEY, parse_header
from effdense.model_parts import DETECTION, SEGMENTATION

SUFFIX = ".onnx"
"""How an exported file's name ends."""

EXPORT = "export"
"""In the header: how the file was made, and how it compares with its checkpoint."""

_VARINT, _BYTES = 0, 2
"""Wire types of a protocol buffer: a number, and bytes of a stated length."""

_MODEL_FIELDS = {1: _VARINT, 5: _VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _BYTES)}
"""Field numbers of onnx.proto's ModelProto, and how each is written."""

_GRAPH, _METADATA = 7, 14
_KEY, _VALUE = 1, 2
"""Field numbers of a StringStringEntryProto, of which the metadata consist."""


class _NotOnnxError(ValueError):
    """The bytes are no whole ONNX model."""


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
            damaged.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if HEADER_KEY not in metadata:
        raise UserError(
            f"{path} is an ONNX file that effdense did not export, so what goes in and comes out is unknown; make one "
            "of a checkpoint by effdense export CHECKPOINT"
        )
    header = parse_header(metadata[HEADER_KEY], path)
    if not isinstance(header.get(EXPORT), dict):
        raise UserError(f"the header of {path} is damaged (it says nothing of its export); export it again")
    return header


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the texts that an ONNX file carries beside its graph, by their keys.

    Raises:
        UserError: there is no such file, or it is no whole ONNX file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    try:
        with path.open("rb") as file:
            return _metadata_of(file, path.stat().st_size)
    except (_NotOnnxError, OSError) as error:
        raise UserError(
            f"{path} is not a whole ONNX file ({error}); expected one that effdense export wrote: fetch it or export "
            "it again"
        ) from error


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


def _metadata_of(file: BinaryIO, size: int) -> dict[str, str]:
    found: dict[str, str] = {}
    seen: set[int] = set()
    while file.tell() < size:
        tag = _varint(file)
        field, wire = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(field) != wire:
            raise _NotOnnxError("its bytes are not those of a model")
        seen.add(field)
        value = _varint(file)  # the number itself, or how many bytes follow
        if wire == _VARINT:
            continue
        if file.tell() + value > size:
            raise _NotOnnxError(f"it ends after {size} bytes, in the middle of its content")
        if field == _METADATA:
            key, text = _entry(file.read(value))
            found[key] = text
        else:
            file.seek(value, 1)
    if _GRAPH not in seen:
        raise _NotOnnxError("it has no graph")
    return found


def _entry(content: bytes) -> tuple[str, str]:
    """Return key and value of one text."""
    file, parts = io.BytesIO(content), {_KEY: b"", _VALUE: b""}
    while file.tell() < len(content):
        tag = _varint(file)
        length = _varint(file)
        if tag & 7 != _BYTES or tag >> 3 not in parts or file.tell() + length > len(content):
            raise _NotOnnxError("its metadata are damaged")
        parts[tag >> 3] = file.read(length)
    return parts[_KEY].decode(errors="replace"), parts[_VALUE].decode(errors="replace")


def _varint(file: BinaryIO) -> int:
    """Read a number of up to 64 bits, seven in a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise _NotOnnxError("it ends in the middle of its content")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _NotOnnxError("its bytes are not those of a model")
