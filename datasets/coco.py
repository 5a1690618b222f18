"""COCO JSON: boxes of object instances, in the layouts that people have.

The format: https://cocodataset.org/#format-data. Polygons and run lengths are not decoded, unless an object has no box.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from effdense.datasets.index import DetectionIndex, Float64, pack_names
from effdense.datasets.layout import SPLIT_NAMES, existing_folder, what_is_there
from effdense.errors import UserError
from effdense.types import Int64

_Json = dict[str, Any]
_SHOWN = 10
_LAYOUTS = (
    "annotations/instances_{s}*.json beside {s}*/ or images/",
    "{s}/_annotations.coco.json beside its images",
    "annotations/{s}.json",
    "{s}.json",
)


def open_coco(
    root: Path | None, split: str, *, annotations: Path | None = None, images: Path | None = None, name: str = "coco"
) -> DetectionIndex:
    """Open one split of a data set in COCO JSON.

    Args:
        root: folder of the data set; not needed where ``annotations`` is given.
        split: "train", "val", "test", or the very name that the files use ("train2014").
        annotations: the annotation file, where the layout is none of the known ones.
        images: the folder of the images, likewise; looked for near the annotation file where not given.
        name: what the data set is called in messages.

    Raises:
        UserError: nothing found (says what was looked for and what is there), or a file that is no such JSON.
    """
    if annotations is None:
        if root is None:
            raise UserError("a COCO data set needs --data-root DIR, or an annotation file")
        annotations = find_annotations(root, split)
    content = _load(annotations)
    index = _build(content, annotations, split, name)
    if images is not None:
        return replace(index, images_dir=existing_folder(images, "image folder"))
    return replace(index, images_dir=_find_images(annotations, root, split, index))


def find_annotations(root: Path, split: str) -> Path:
    """Return the annotation file of a split, of the newest year where there are several.

    Raises:
        UserError: no such file; lists what was looked for and what is there.
    """
    if found := list(_candidates(existing_folder(root), split)):
        return found[0]
    looked_for = "; ".join(layout.format(s=split) for layout in _LAYOUTS)
    known = f" It has annotations for {', '.join(splits)}." if (splits := coco_splits(root)) else ""
    raise UserError(
        f"{root} holds no COCO annotations for split {split!r}: looked for {looked_for}. {what_is_there(root)}{known} "
        "Name any other file with --train-annotations and --train-images (or --val-...)"
    )


def coco_splits(root: Path) -> list[str]:
    """Return which of train, val and test a folder has annotations for."""
    return [split for split in SPLIT_NAMES if any(_candidates(root, split))]


def _candidates(root: Path, split: str) -> Iterator[Path]:
    for written in SPLIT_NAMES.get(split, (split,)):
        pattern = re.compile(rf"instances_{re.escape(written)}(\d{{4}})?\.json")
        for folder in (root / "annotations", root):
            yield from sorted(
                (path for path in folder.glob(f"instances_{written}*.json") if pattern.fullmatch(path.name)),
                reverse=True,
            )
        for relative in (f"{written}/_annotations.coco.json", f"annotations/{written}.json", f"{written}.json"):
            if (root / relative).is_file():
                yield root / relative


def _find_images(annotations: Path, root: Path | None, split: str, index: DetectionIndex) -> Path:
    """Return the folder in which the listed files lie: the first candidate that holds one of the first few."""
    # instances_train2017.json -> train2017
    written = annotations.stem.removeprefix("instances_")
    bases = [base for base in (root, annotations.parent.parent, annotations.parent) if base is not None]
    aliases = SPLIT_NAMES.get(split, (split,))
    names = [written, *aliases, "images", *(f"images/{s}" for s in (written, *aliases)), "."]
    if annotations.name == "_annotations.coco.json":
        bases, names = [annotations.parent], [".", "images"]
    folders = list(dict.fromkeys(base / name for base in bases for name in names))
    probes = [name.decode() for name in index.file_names[:20].tolist()]
    for folder in folders:
        if folder.is_dir() and any((folder / probe).is_file() for probe in probes):
            return folder
    if not probes:
        return annotations.parent
    looked_in = ", ".join(str(folder) for folder in folders if folder.is_dir())
    raise UserError(
        f"the images of {annotations} were not found: looked for {probes[0]} in {looked_in}; "
        "name their folder with --train-images (or --val-images)"
    )


def _load(path: Path) -> _Json:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"annotation file {path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})") from error
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"annotation file {path} cannot be read ({error})") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        came = f"keys {', '.join(list(content)[:_SHOWN])}" if isinstance(content, dict) else type(content).__name__
        hint = "; this may be a results file, not ground truth" if isinstance(content, list) else ""
        raise UserError(f"{path} is no COCO annotation file: expected lists {', '.join(parts)}, got {came}{hint}")
    return content


def _build(content: _Json, path: Path, split: str, name: str) -> DetectionIndex:
    images, annotations = content["images"], content["annotations"]
    file_names, image_ids, sizes_hw = _image_columns(images, path)
    annotation_ids, image_rows, category_ids = _annotation_keys(annotations, image_ids, path)
    order = np.argsort(image_rows, kind="stable")
    boxes_xywh = _boxes(annotations, annotation_ids, path)
    classes, notes = _classes(content["categories"], category_ids, path)
    labels, unknown_names = _labels(category_ids, classes)
    areas = np.array(
        [_number(a.get("area"), w * h) for a, (w, h) in zip(annotations, boxes_xywh[:, 2:].tolist(), strict=True)]
    )
    crowd = np.array([bool(a.get("iscrowd")) for a in annotations], np.bool_)
    difficult = np.array([bool(a.get("ignore")) for a in annotations], np.bool_)
    corners = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    counts = np.bincount(image_rows, minlength=len(images))
    return DetectionIndex(
        name=name,
        split=split,
        source=path,
        images_dir=path.parent,
        class_names=tuple(classes.values()),
        category_ids=tuple(classes),
        file_names=pack_names(file_names),
        image_ids=image_ids,
        sizes_hw=sizes_hw,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=corners[order].astype(np.float32),
        boxes_written_xywh=boxes_xywh[order],
        areas=areas.astype(np.float64)[order],
        labels=labels[order],
        crowd=crowd[order],
        difficult=difficult[order],
        annotation_ids=annotation_ids[order],
        lines=np.zeros(len(annotations), np.int32),
        annotation_names=pack_names([]),
        unknown_names=unknown_names,
        notes=notes,
    )


def _image_columns(images: list[_Json], path: Path) -> tuple[list[str], Int64, Int64]:
    """Return file names, ids (n,) and sizes (n, 2); a size that is not stated is 0, 0."""
    file_names, ids, sizes = [], [], []
    for position, image in enumerate(images):
        try:
            file_names.append(str(image["file_name"]).replace("\\", "/"))
            ids.append(_integer(image["id"]))
            sizes.append((_integer(image.get("height") or 0), _integer(image.get("width") or 0)))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            came = image.get("id", f"number {position}") if isinstance(image, dict) else f"number {position}"
            raise UserError(
                f"{path}, image id {came}: expected id (an integer), file_name, height and width; at fault: {error}"
            ) from error
    return file_names, np.array(ids, np.int64), np.array(sizes, np.int64).reshape(-1, 2)


def _annotation_keys(annotations: list[_Json], image_ids: Int64, path: Path) -> tuple[Int64, Int64, Int64]:
    """Return annotation ids, positions of their images, and category ids, (T,) each."""
    keys = np.zeros((len(annotations), 3), np.int64)
    for position, annotation in enumerate(annotations):
        try:
            image_id, category_id = _integer(annotation["image_id"]), _integer(annotation["category_id"])
            keys[position] = _integer(annotation.get("id", position + 1)), image_id, category_id
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            came = annotation.get("id", "missing") if isinstance(annotation, dict) else "missing"
            raise UserError(
                f"{path}, annotation id {came} (number {position} of the list): expected integers id, image_id and "
                f"category_id; at fault: {error}"
            ) from error
    order = np.argsort(image_ids, kind="stable")
    places = np.searchsorted(image_ids, keys[:, 1], sorter=order)
    rows = order[np.minimum(places, len(order) - 1)] if len(order) else np.zeros(len(keys), np.int64)
    strays = np.ones(len(keys), np.bool_) if not len(order) else image_ids[rows] != keys[:, 1]
    if strays.any():
        shown = ", ".join(f"{a} (image id {i})" for a, i, _ in keys[strays][:_SHOWN].tolist())
        raise UserError(f"{path}: {strays.sum()} annotations belong to no listed image: annotation id {shown}")
    return keys[:, 0], rows.astype(np.int64), keys[:, 2]


def _boxes(annotations: list[_Json], ids: Int64, path: Path) -> Float64:
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


def _extent(annotation: _Json, where: str) -> list[float]:
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


def _extent_of_runs(shape: _Json) -> list[float]:
    from pycocotools import mask

    height, width = shape["size"]
    try:
        packed = mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        return [float(value) for value in mask.toBbox(packed)]
    except Exception as error:  # pycocotools raises plain Exception, and whatever its Cython comes upon
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _classes(categories: list[_Json], used: Int64, path: Path) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return class names by category id, in order of the ids, and notes."""
    try:
        rows = sorted((_integer(c["id"]), str(c["name"]), c.get("supercategory")) for c in categories)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: each category needs an integer id and a name; at fault: {error}") from error
    notes = []
    # Roboflow writes the project's name as an unused category 0, the parent of all the others.
    first, others = rows[:1], rows[1:]
    if first and others and first[0][2] in (None, "none") and first[0][0] not in used:
        name = first[0][1]
        if all(parent == name for _, _, parent in others):
            notes.append(
                f"category {first[0][0]} {name!r} is only the parent of the others and has no objects: left out"
            )
            rows = others
    classes = {category_id: name for category_id, name, _ in rows}
    names = list(classes.values())
    if len(classes) < len(rows) or len(set(names)) < len(names):
        listed = ", ".join(f"{category_id} {name}" for category_id, name, _ in rows[: 2 * _SHOWN])
        raise UserError(f"{path}: category ids and names must be unique: {listed}")
    return classes, tuple(notes)


def _labels(category_ids: Int64, classes: dict[int, str]) -> tuple[Int64, tuple[str, ...]]:
    """Return labels (T,), -1 - k for the k-th id that is no category, and those ids as texts."""
    present, inverse = np.unique(category_ids, return_inverse=True)
    label_of = {category_id: label for label, category_id in enumerate(classes)}
    unknown = [value for value in present.tolist() if value not in label_of]
    label_of |= {value: -1 - k for k, value in enumerate(unknown)}
    table = np.array([label_of[value] for value in present.tolist()], np.int64)
    return table[inverse].reshape(-1), tuple(f"category id {value}" for value in unknown)


def _integer(value: Any) -> int:
    """Return an id as an int; ids written as "12" or 12.0 are let through, 12.5 is not."""
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError(f"{value} is not an integer")
    return number


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise
