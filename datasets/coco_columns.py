"""Images and objects of a COCO file as columns: boxes for detection, outlines for masks.

Most files are decoded by ``coco_typed``. Whatever it does not understand is read here, the plain way, which lets
through what people's files have (ids as text, flags as words, objects without a box) and names what is wrong with the
rest. Both give the same columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effdense.datasets.coco_json import Json, annotation_keys, flags, image_columns, load_coco, match_images
from effdense.datasets.coco_typed import TypedColumns, read_typed
from effdense.datasets.index import Float64
from effdense.errors import UserError
from effdense.types import Bool, Int64


@dataclass(frozen=True, eq=False)
class CocoColumns:
    """n images and T objects, in the order of the file.

    Attributes:
        file_names: (n,), with forward slashes.
        image_ids: (n,).
        sizes_hw: (n, 2), pixels; a side that is not stated is 0.
        annotation_ids: (T,).
        image_rows: (T,), the position of each object's image.
        category_ids: (T,).
        areas: (T,), square pixels: as stated; where the file states none, the area of the box, or 0 of an outline.
        crowd: (T,), iscrowd.
        ignored: (T,), ignore.
        boxes_xywh: (T, 4), pixels, as written, or (0, 4) where outlines were asked for.
        segmentations: (T,), as written, or none where boxes were asked for.
        categories: as written.
    """

    file_names: list[str]
    image_ids: Int64
    sizes_hw: Int64
    annotation_ids: Int64
    image_rows: Int64
    category_ids: Int64
    areas: Float64
    crowd: Bool
    ignored: Bool
    boxes_xywh: Float64
    segmentations: list[Any]
    categories: list[Json]


def read_columns(path: Path, *, outlines: bool = False) -> CocoColumns:
    """Return what a COCO annotation file says.

    Args:
        path: the file.
        outlines: read segmentations instead of boxes; a box need not be there, then.

    Raises:
        UserError: it does not exist, is no COCO JSON, or has an image or object that cannot be used; names it.
    """
    typed = read_typed(path, outlines=outlines)
    return plain_columns(path, outlines=outlines) if typed is None else _from_typed(typed, path, outlines)


def _from_typed(typed: TypedColumns, path: Path, outlines: bool) -> CocoColumns:
    written = typed.areas
    if outlines:
        areas = np.where(np.isfinite(written) & (written > 0), written, 0.0)
    else:
        areas = np.where(np.isnan(written), typed.boxes_xywh[:, 2] * typed.boxes_xywh[:, 3], written)
    return CocoColumns(
        file_names=[name.replace("\\", "/") for name in typed.file_names],
        image_ids=typed.image_ids,
        sizes_hw=typed.sizes_hw,
        annotation_ids=typed.annotation_ids,
        image_rows=match_images(typed.annotation_ids, typed.wanted_ids, typed.image_ids, path),
        category_ids=typed.category_ids,
        areas=areas,
        crowd=typed.crowd,
        ignored=typed.ignored,
        boxes_xywh=typed.boxes_xywh,
        segmentations=typed.segmentations,
        categories=typed.categories,
    )


def plain_columns(path: Path, *, outlines: bool = False) -> CocoColumns:
    """Return what ``read_columns`` does, of any file and without haste: what decides wherever the two could differ.

    Raises:
        UserError: as ``read_columns``.
    """
    content = load_coco(path)
    annotations = content["annotations"]
    file_names, image_ids, sizes_hw = image_columns(content["images"], path)
    annotation_ids, image_rows, category_ids = annotation_keys(annotations, image_ids, path)
    boxes = np.zeros((0, 4)) if outlines else _boxes(annotations, annotation_ids, path)
    areas = [_outline_area(one) for one in annotations] if outlines else _box_areas(annotations, boxes)
    crowd, ignored = (flags(annotations, key, annotation_ids, path) for key in ("iscrowd", "ignore"))
    return CocoColumns(
        file_names=file_names,
        image_ids=image_ids,
        sizes_hw=sizes_hw,
        annotation_ids=annotation_ids,
        image_rows=image_rows,
        category_ids=category_ids,
        areas=np.array(areas, np.float64),
        crowd=crowd,
        ignored=ignored,
        boxes_xywh=boxes,
        segmentations=[annotation.get("segmentation") for annotation in annotations] if outlines else [],
        categories=content["categories"],
    )


def _boxes(annotations: list[Json], ids: Int64, path: Path) -> Float64:
    """Return boxes as x, y, width, height, (T, 4)."""
    boxes = []
    for annotation, annotation_id in zip(annotations, ids.tolist(), strict=True):
        bbox = annotation.get("bbox") or _extent(annotation, f"{path}, annotation id {annotation_id}")
        try:
            x, y, width, height = bbox
            boxes.append((float(x), float(y), float(width), float(height)))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path}, annotation id {annotation_id}: bbox must be four numbers x, y, width, height, got {bbox!r}"
            ) from error
    return np.array(boxes, np.float64).reshape(-1, 4)


def _extent(annotation: Json, where: str) -> list[float]:
    """Return the box around an object that has only polygons or run lengths."""
    shape = annotation.get("segmentation")
    try:
        if isinstance(shape, dict):
            return _extent_of_runs(shape)
        if isinstance(shape, list) and any(shape):
            points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in shape])
            low, high = points.min(axis=0), points.max(axis=0)
            return [*low.tolist(), *(high - low).tolist()]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: no bbox, and its segmentation cannot be read ({error})") from error
    raise UserError(f"{where}: neither bbox nor segmentation")


def _extent_of_runs(shape: Json) -> list[float]:
    from pycocotools import mask

    height, width = shape["size"]
    try:
        packed = mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        return [float(value) for value in mask.toBbox(packed)]
    except Exception as error:  # pycocotools raises plain Exception, and whatever its Cython comes upon
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _box_areas(annotations: list[Json], boxes_xywh: Float64) -> list[float]:
    stated = [annotation.get("area") for annotation in annotations]
    extents = (width * height for width, height in boxes_xywh[:, 2:].tolist())
    return [
        float(area) if isinstance(area, int | float) else extent for area, extent in zip(stated, extents, strict=True)
    ]


def _outline_area(annotation: Json) -> float:
    area = annotation.get("area")
    return float(area) if isinstance(area, int | float) and 0 < area < math.inf else 0.0


def stable_order(image_rows: Int64) -> Int64:
    """Return the objects in the order of their images, (T,), those of one image in the order of the file.

    Args:
        image_rows: (T,), the position of each object's image.
    """
    count = len(image_rows)
    # Keys that are all different can be sorted by value: several times as fast as a stable argsort.
    return np.sort(image_rows * count + np.arange(count)) % max(count, 1)
