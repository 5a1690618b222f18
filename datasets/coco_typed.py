"""COCO JSON decoded straight into records of known types, for files written as COCO writes them.

What nobody asks for (long polygons where boxes are wanted, addresses, dates) is checked and passed over without ever
becoming a Python object, which makes reading several times cheaper than through ``json``. The decoder knows one way to
write a file and has no words for any other: ids as text, an object without a box, a damaged file and all else that is
unusual it leaves to the plain way in ``coco_columns``, which knows what to let through and what to say.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from effdense.datasets.coco_json import Json
from effdense.types import Bool, Int64

Float64 = npt.NDArray[np.float64]


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int | None = None
    width: int | None = None


class _Box(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    x: float
    y: float
    width: float
    height: float


class _BoxObject(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: _Box
    area: float | None = None
    iscrowd: bool | int | None = None
    ignore: bool | int | None = None


class _OutlineObject(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    segmentation: list[list[float]] | dict[str, Any]
    area: float | None = None
    iscrowd: bool | int | None = None
    ignore: bool | int | None = None


class _BoxFile(msgspec.Struct):
    images: list[_Image]
    annotations: list[_BoxObject]
    categories: list[dict[str, Any]]


class _OutlineFile(msgspec.Struct):
    images: list[_Image]
    annotations: list[_OutlineObject]
    categories: list[dict[str, Any]]


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
        data = path.read_bytes()
        # Text that is passed over is not decoded, so that this is what sees whether it is UTF-8.
        _ = data.isascii() or data.decode()
        with _without_collector():
            decoded = msgspec.json.decode(data, type=_OutlineFile if outlines else _BoxFile)
        return _columns(decoded)
    except (OSError, ValueError, OverflowError, RecursionError):  # msgspec's errors are ValueErrors
        return None


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from looking through millions of lists, again and again, while they are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _columns(decoded: _BoxFile | _OutlineFile) -> TypedColumns:
    images, objects = decoded.images, decoded.annotations
    sizes = [_integers(images, name, missing=0) for name in ("height", "width")]
    boxes = np.zeros((0, 4))
    if isinstance(decoded, _BoxFile):
        bboxes = [one.bbox for one in decoded.annotations]
        boxes = np.empty((len(bboxes), 4))
        for column, name in enumerate(("x", "y", "width", "height")):
            boxes[:, column] = np.fromiter(map(attrgetter(name), bboxes), np.float64, len(bboxes))
    areas = list(map(attrgetter("area"), objects))
    return TypedColumns(
        file_names=[image.file_name for image in images],
        image_ids=_integers(images, "id"),
        sizes_hw=np.stack(sizes, axis=1),
        annotation_ids=_integers(objects, "id"),
        wanted_ids=_integers(objects, "image_id"),
        category_ids=_integers(objects, "category_id"),
        areas=np.array(areas, np.float64),  # of None it makes NaN
        crowd=np.fromiter(map(attrgetter("iscrowd"), objects), np.bool_, len(objects)),
        ignored=np.fromiter(map(attrgetter("ignore"), objects), np.bool_, len(objects)),
        boxes_xywh=boxes,
        segmentations=[one.segmentation for one in decoded.annotations] if isinstance(decoded, _OutlineFile) else [],
        categories=decoded.categories,
    )


def _integers(records: Sequence[Any], name: str, missing: int | None = None) -> Int64:
    values: Any = map(attrgetter(name), records)
    if missing is not None:
        values = (value or missing for value in values)
    return np.fromiter(values, np.int64, len(records))
