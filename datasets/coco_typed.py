"""COCO JSON decoded straight into records of known types, for files written as COCO writes them.

What nobody asks for (long polygons where boxes are wanted, addresses, dates) is checked and passed over without ever
becoming a Python object, which makes reading several times cheaper than through ``json``. The decoder knows one way to
write a file and has no words for any other: ids as text, an object without a box, a damaged file and all else that is
unusual it leaves to the plain way in ``coco_columns``, which knows what to let through and what to say.
"""

from __future__ import annotations

import gc
import json
import math
import mmap
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from effdense.datasets.coco_json import Json
from effdense.types import Bool, Int64

Float64 = npt.NDArray[np.float64]


_Corners = tuple[float, float, float, float]
_NOT_STATED = math.nan
"""Of an area. JSON has no way to write it, so that it stands for nothing else."""


# The fields stand in the order of COCO's own files, in which the decoder then finds each at once.
class _Image(msgspec.Struct, gc=False, kw_only=True):
    file_name: str
    height: int | None = None
    width: int | None = None
    id: int


class _BoxObject(msgspec.Struct, gc=False, kw_only=True):
    area: float = _NOT_STATED
    iscrowd: bool | int = False
    image_id: int
    bbox: _Corners
    category_id: int
    id: int
    ignore: bool | int = False


class _OutlineObject(msgspec.Struct, gc=False, kw_only=True):
    segmentation: list[list[float]] | dict[str, Any]
    area: float = _NOT_STATED
    iscrowd: bool | int = False
    image_id: int
    category_id: int
    id: int
    ignore: bool | int = False


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[Any]
    categories: list[dict[str, Any]]


_FILE = msgspec.json.Decoder(_File)
_BOX_OBJECTS = msgspec.json.Decoder(list[_BoxObject])
_OUTLINE_OBJECTS = msgspec.json.Decoder(list[_OutlineObject])
_PIECE_BYTES = 1 << 19
"""So much text at a time becomes objects: few enough to stay in a core's cache until they are columns and gone."""
_BETWEEN_OBJECTS = re.compile(rb"\}\s*(,)\s*\{")
_KEY = b'"annotations"'
_PLACEHOLDER = "the annotations are read by themselves"
_COLUMNS = {
    "id": np.int64, "image_id": np.int64, "category_id": np.int64, "area": np.float64, "iscrowd": np.bool_,
    "ignore": np.bool_,
}  # fmt: skip


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
                return _columns(rest, data, [*_pieces(data, start, end)], outlines)
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
        bytes(data).decode()


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
    after = (data.rfind(other, start) for other in (b'"images"', b'"categories"') if data.find(other, 0, start) < 0)
    return start, max(start, data.rfind(b"]", start, min((place for place in after if place > 0), default=len(data))))


def _pieces(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield spans that together are the list of annotations, cut where one object seems to end and the next to begin.

    A wrong cut, within a text or a list, leaves a bracket open, and the decoder refuses the piece.
    """
    while comma := _BETWEEN_OBJECTS.search(data, min(end, start + _PIECE_BYTES), end):
        yield start, comma.start(1)
        start = comma.end(1)
    yield start, end


def _columns(rest: _File, data: mmap.mmap, pieces: Sequence[tuple[int, int]], outlines: bool) -> TypedColumns:
    decoder: Any = _OUTLINE_OBJECTS if outlines else _BOX_OBJECTS
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [np.zeros(0, kind)] for name, kind in _COLUMNS.items()}
    boxes = [np.zeros(0)]
    segmentations: list[Any] = []
    for start, end in pieces:
        objects = decoder.decode(b"".join((b"[", data[start:end], b"]")))
        for name, kind in _COLUMNS.items():
            parts[name].append(np.fromiter(map(attrgetter(name), objects), kind, len(objects)))
        if outlines:
            segmentations.extend(map(attrgetter("segmentation"), objects))
        else:
            numbers = chain.from_iterable(map(attrgetter("bbox"), objects))
            boxes.append(np.fromiter(numbers, np.float64, 4 * len(objects)))
    columns = {name: np.concatenate(part) for name, part in parts.items()}
    images = rest.images
    return TypedColumns(
        file_names=[image.file_name for image in images],
        image_ids=np.fromiter(map(attrgetter("id"), images), np.int64, len(images)),
        sizes_hw=np.array([(image.height or 0, image.width or 0) for image in images], np.int64).reshape(-1, 2),
        annotation_ids=columns["id"],
        wanted_ids=columns["image_id"],
        category_ids=columns["category_id"],
        areas=columns["area"],
        crowd=columns["iscrowd"],
        ignored=columns["ignore"],
        boxes_xywh=np.concatenate(boxes).reshape(-1, 4),
        segmentations=segmentations,
        categories=rest.categories,
    )
