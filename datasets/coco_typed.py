"""COCO JSON decoded straight into records of known types, for files written as COCO writes them.

What nobody asks for (long polygons where boxes are wanted, addresses, dates) is checked and passed over without ever
becoming a Python object, which makes reading several times cheaper than through ``json``. The decoder knows one way to
write a file and has no words for any other: ids as text, an object without a box, a damaged file and all else that is
unusual it leaves to the plain way in ``coco_columns``, which knows what to let through and what to say.
"""

from __future__ import annotations

import codecs
import gc
import json
import math
import mmap
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from effdense.datasets.coco_json import Json
from effdense.types import Bool, Int64

Float64 = npt.NDArray[np.float64]


# The fields stand in the order of COCO's own files, in which the decoder then finds each at once.
class _Image(msgspec.Struct, gc=False, kw_only=True):
    file_name: str
    height: int | None = None
    width: int | None = None
    id: int


class _Keys(msgspec.Struct, gc=False, kw_only=True):
    area: float = math.nan
    iscrowd: float = 0.0
    image_id: float
    category_id: float
    id: float
    ignore: float = 0.0


class _Box(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    x: float
    y: float
    width: float
    height: float


class _BoxObject(msgspec.Struct, gc=False, kw_only=True):
    area: float = math.nan
    iscrowd: float = 0.0
    image_id: float
    bbox: _Box
    category_id: float
    id: float
    ignore: float = 0.0


class _Outline(msgspec.Struct):
    segmentation: list[list[float]] | dict[str, Any]


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[Any]
    categories: list[dict[str, Any]]


_FILE = msgspec.json.Decoder(_File)
_OUTLINES = msgspec.json.Decoder(list[_Outline])
_PIECE_BYTES = 1 << 17
"""So much text at a time is decoded: its objects are few enough to stay in a core's cache until they are columns and
gone."""
_TAIL_BYTES = 1 << 22
"""Where the categories are looked for behind the annotations; a longer list of them is read the plain way."""
_BETWEEN_OBJECTS = re.compile(rb"\}\s*(,)\s*\{")
_KEY = b'"annotations"'
_PLACEHOLDER = "the annotations are read by themselves"
_EXACT_BELOW = 2.0**53
"""Whole numbers that a float64 tells apart."""


@dataclass(frozen=True, eq=False)
class TypedColumns:
    """n images and T objects as a file has them; nothing is checked but the types.

    Attributes:
        file_names: (n,).
        image_ids: (n,).
        sizes_hw: (n, 2), pixels; a side that is not stated is 0.
        annotation_ids: (T,).
        wanted_ids: (T,), the image that each object names.
        category_ids: (T,).
        areas: (T,), square pixels; NaN, which JSON cannot say, where none is stated.
        crowd: (T,).
        ignored: (T,).
        boxes_xywh: (T, 4), or (0, 4) where outlines were asked for.
        segmentations: (T,), or none where boxes were asked for.
        categories: as written.
    """

    file_names: list[str]
    image_ids: Int64
    sizes_hw: Int64
    annotation_ids: Int64
    wanted_ids: Int64
    category_ids: Int64
    areas: Float64
    crowd: Bool
    ignored: Bool
    boxes_xywh: Float64
    segmentations: list[Any]
    categories: list[Json]


def read_typed(path: Path, *, outlines: bool = False) -> TypedColumns | None:
    """Return the columns of a file that is written as COCO writes it, None for any other.

    Args:
        path: the file.
        outlines: read segmentations instead of boxes.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, _no_collection():
            _check_utf8(data)
            start, end = _annotations_span(data)
            rest = _FILE.decode(b"".join((data[:start], json.dumps(_PLACEHOLDER).encode(), data[end:])))
            if rest.annotations != [_PLACEHOLDER]:
                return None
            try:
                return _columns(rest, data, _pieces(data, start, end), outlines)
            except msgspec.DecodeError:  # cut within an object that holds a list of others
                return _columns(rest, data, [(start, end)], outlines)
    except (OSError, ValueError, OverflowError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def _check_utf8(data: mmap.mmap) -> None:
    """Look at all of the text, as the decoder does not look into texts that it passes over.

    Raises:
        ValueError: it is not UTF-8.
    """
    if len(data) and np.frombuffer(data, np.uint8).max() > 127:
        decoder = codecs.getincrementaldecoder("utf-8")()  # the whole as one text would be up to four times the file
        for start in range(0, len(data), _PIECE_BYTES):
            decoder.decode(data[start : start + _PIECE_BYTES])
        decoder.decode(b"", final=True)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from looking through millions of objects, again and again, while they are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _annotations_span(data: mmap.mmap) -> tuple[int, int]:
    """Return where the objects of the list of annotations begin and end, as it seems.

    That it is so, is seen when the text without them is decoded: it is whole, and has its list of annotations there.

    Raises:
        ValueError: there is no such list.
    """
    key = data.find(_KEY)
    start = data.find(b"[", key) + 1
    if key < 0 or start <= 0 or data[key + len(_KEY) : start - 1].strip() != b":":
        raise ValueError("no list of annotations")
    tail = data.rfind(b'"categories"', max(start, len(data) - _TAIL_BYTES))
    images = -1 if data.find(b'"images"', 0, start) >= 0 else data.rfind(b'"images"', start)
    following = min((place for place in (tail, images) if place >= 0), default=len(data))
    return start, max(start, data.rfind(b"]", start, following))


def _pieces(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield spans that together are the list of annotations, cut where one object seems to end and the next to begin.

    A wrong cut, within a text or a list, leaves a bracket open, and the decoder refuses the piece.
    """
    while comma := _BETWEEN_OBJECTS.search(data, min(end, start + _PIECE_BYTES), end):
        yield start, comma.start(1)
        start = comma.end(1)
    yield start, end


def _columns(rest: _File, data: mmap.mmap, pieces: Iterable[tuple[int, int]], outlines: bool) -> TypedColumns:
    """Raises ValueError where the objects are not what they mostly are."""
    rows = _Rows(_Keys if outlines else _BoxObject)
    segmentations: list[Any] = []
    for start, end in pieces:
        text = b"".join((b"[", data[start:end], b"]"))
        rows.add(text)
        if outlines:
            segmentations.extend(one.segmentation for one in _OUTLINES.decode(text))
    table, images = rows.table(), rest.images
    boxes = [table[name] for name in _Box.__struct_fields__ if not outlines]
    return TypedColumns(
        file_names=[image.file_name for image in images],
        image_ids=np.fromiter((image.id for image in images), np.int64, len(images)),
        sizes_hw=np.array([(image.height or 0, image.width or 0) for image in images], np.int64).reshape(-1, 2),
        annotation_ids=_whole(table["id"]),
        wanted_ids=_whole(table["image_id"]),
        category_ids=_whole(table["category_id"]),
        areas=table["area"],
        crowd=table["iscrowd"] != 0,
        ignored=table["ignore"] != 0,
        boxes_xywh=np.stack(boxes, axis=1) if boxes else np.zeros((0, 4)),
        segmentations=segmentations,
        categories=rest.categories,
    )


class _Rows:
    """Objects whose fields are all floats, from JSON to one table.

    MessagePack writes each of them in the same number of bytes, every number as nine: what it is and float64, the
    highest byte first. So what it makes of a list is an array of NumPy's, and no number is touched by Python.
    """

    def __init__(self, kind: type[_Keys | _BoxObject]) -> None:
        self._decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        self._encoder = msgspec.msgpack.Encoder()
        self._layout = _layout(kind)
        self._parts = [np.zeros((len(self._layout.fields or ()), 0))]

    def add(self, text: bytes) -> None:
        """Take the objects of a list in JSON.

        Raises:
            ValueError: it is no such list.
        """
        objects = self._decoder.decode(text)
        packed = self._encoder.encode(objects)
        head = 1 if len(objects) < 1 << 4 else 3 if len(objects) < 1 << 16 else 5
        if len(packed) != head + len(objects) * self._layout.itemsize:
            raise ValueError("objects of another length than floats have")
        rows = np.frombuffer(packed, self._layout, offset=head)
        self._parts.append(np.array([rows[name] for name in self._layout.names or ()], np.float64))

    def table(self) -> dict[str, Float64]:
        """Return the numbers of all objects so far by name, (T,) each."""
        return dict(zip(self._layout.names or (), np.concatenate(self._parts, axis=1), strict=True))


def _layout(kind: type[msgspec.Struct]) -> np.dtype[Any]:
    """Return where the numbers of an object lie: behind its length, each name with its own length, and each kind."""
    offsets: dict[str, int] = {}
    place = 1
    for field in msgspec.structs.fields(kind):
        place += 1 + len(field.name)
        nested = field.type is _Box
        place += nested
        for name in _Box.__struct_fields__ if nested else (field.name,):
            offsets[name] = place + 1
            place += 9
    columns: Any = {"names": [*offsets], "formats": [">f8"] * len(offsets), "offsets": [*offsets.values()]}
    layout: np.dtype[Any] = np.dtype(columns | {"itemsize": place})
    return layout


def _whole(numbers: Float64) -> Int64:
    """Return ids as integers.

    Raises:
        ValueError: one is none, or too large to be sure.
    """
    if len(numbers) and not (numbers.min() > -_EXACT_BELOW and numbers.max() < _EXACT_BELOW):
        raise ValueError("ids beyond what a float holds exactly")
    ids = numbers.astype(np.int64)
    if not np.array_equal(ids, numbers):
        raise ValueError("ids that are not whole")
    return ids
