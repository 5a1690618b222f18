"""What of an ONNX file's bytes is read without a package and without the weights: its metadata, and its values' shapes.

A protocol buffer is a row of fields, each of which states its length. So all that is not asked for is skipped.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Shape: TypeAlias = tuple[int | None, ...]
"""Sizes of a value; None where a size is open."""

_VARINT, _BYTES = 0, 2
"""Wire types of a protocol buffer: a number, and bytes of a stated length."""

_MODEL = {1: _VARINT, 5: _VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _BYTES)}
"""Field numbers of onnx.proto's ModelProto, and how each is written."""

_GRAPH, _METADATA = 7, 14
_VALUES = (11, 12, 13)
"""Field numbers of a GraphProto: its inputs, its outputs, and values between them whose shapes are known."""
_KEY, _VALUE = 1, 2
"""Field numbers of a StringStringEntryProto, of which the metadata consist."""
_NAME, _TYPE, _TENSOR, _SHAPE, _DIMENSION, _SIZE = 1, 2, 1, 2, 1, 1
"""Field numbers on the way from a ValueInfoProto to its name and to its sizes, one message within the other."""
_VALUE_INFO = dict.fromkeys((1, 2, 3, 4), _BYTES)
_SIZES = {_SIZE: _VARINT, 2: _BYTES, 3: _BYTES}
"""How the fields of a ValueInfoProto, and of a dimension, are written."""


class NotOnnxError(ValueError):
    """The bytes are no whole ONNX model."""


@dataclass(frozen=True)
class Outline:
    """What was read of a model.

    Attributes:
        metadata: texts that it carries beside its graph, by their keys.
        shapes: of inputs, outputs and whatever else has one, by their names.
    """

    metadata: dict[str, str]
    shapes: dict[str, Shape]


def read_outline(path: Path) -> Outline:
    """Return what is to be known of a model.

    Raises:
        NotOnnxError: it is no whole ONNX model.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:  # of which there is no map
            return _outline(b"", 0)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _outline(data, size)


def _outline(data: bytes | mmap.mmap, size: int) -> Outline:
    metadata: dict[str, str] = {}
    shapes: dict[str, Shape] | None = None
    for field, start, value in _fields(data, 0, size, _MODEL):
        if field == _METADATA:
            key, text = _entry(data, start, start + value)
            metadata[key] = text
        elif field == _GRAPH:
            shapes = {} if shapes is None else shapes
            shapes.update(_shapes(data, start, start + value))
    if shapes is None:
        raise NotOnnxError("it has no graph")
    return Outline(metadata, shapes)


def _fields(
    data: bytes | mmap.mmap, place: int, end: int, known: Mapping[int, int] | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield number, place and value of each field up to ``end``: a number itself, or how many bytes lie at the place.

    Args:
        data: the whole file.
        place: where the first field begins.
        end: where the last one ends.
        known: the fields that there may be, and how each is written; by default any.
    """
    while place < end:
        tag, place = _varint(data, place, end)
        field, wire = tag >> 3, tag & 7
        if wire not in (_VARINT, _BYTES) or (known is not None and known.get(field) != wire):
            raise NotOnnxError("its bytes are not those of a model")
        value, place = _varint(data, place, end)
        following = place if wire == _VARINT else place + value
        if following > end:
            raise NotOnnxError(f"it ends after {end} bytes, in the middle of its content")
        yield field, place, value
        place = following


def _entry(data: bytes | mmap.mmap, start: int, end: int) -> tuple[str, str]:
    """Return key and value of one text."""
    parts = {_KEY: "", _VALUE: ""}
    for field, place, length in _fields(data, start, end, dict.fromkeys(parts, _BYTES)):
        parts[field] = _text(data, place, length)
    return parts[_KEY], parts[_VALUE]


def _shapes(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of each value that a graph states one of."""
    for field, place, length in _fields(data, start, end):
        if field not in _VALUES:
            continue
        name, shape = "", None
        for part, inner, size in _fields(data, place, place + length, _VALUE_INFO):
            if part == _NAME:
                name = _text(data, inner, size)
            elif part == _TYPE:
                shape = _shape(data, inner, inner + size)
        if shape is not None:
            yield name, shape


def _shape(data: bytes | mmap.mmap, start: int, end: int) -> Shape | None:
    """Return the sizes that a type states, if it is a tensor's and states any."""
    for wanted in (_TENSOR, _SHAPE):
        found = next((field[1:] for field in _fields(data, start, end) if field[0] == wanted), None)
        if found is None:
            return None
        start, end = found[0], sum(found)
    sizes: list[int | None] = []
    for _, place, length in _fields(data, start, end, {_DIMENSION: _BYTES}):
        known = [value for part, _, value in _fields(data, place, place + length, _SIZES) if part == _SIZE]
        sizes.append(known[0] if known else None)
    return tuple(sizes)


def _text(data: bytes | mmap.mmap, place: int, length: int) -> str:
    return data[place : place + length].decode(errors="replace")


def _varint(data: bytes | mmap.mmap, place: int, end: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, seven in a byte, the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise NotOnnxError("it ends in the middle of its content")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise NotOnnxError("its bytes are not those of a model")
