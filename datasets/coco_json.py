"""COCO JSON as it is written: the file, its images, annotation ids and categories, checked and as columns.

Boxes are read in ``coco``, masks in ``coco_instances`` and ``coco_panoptic``. The format:
https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effdense.errors import UserError
from effdense.json_files import parse_json, read_bytes
from effdense.types import Bool, Int64

Json = dict[str, Any]
_SHOWN = 10
_ID_LIMIT = 1 << 63
_SPARSE = 16
"""Ids between the least and the greatest for each that is used, beyond which they are searched, not looked up."""
_FLAG_TEXTS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def load_coco(path: Path) -> Json:
    """Return a file's content, once seen to have lists images, annotations and categories.

    Raises:
        UserError: it does not exist, is no JSON (names the line), or is no COCO annotation file.
    """
    if not path.exists():
        raise UserError(f"annotation file {path} does not exist")
    content = parse_json(read_bytes(path), path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        came = f"keys {', '.join(list(content)[:_SHOWN])}" if isinstance(content, dict) else type(content).__name__
        hint = "; this may be a results file, not ground truth" if isinstance(content, list) else ""
        raise UserError(f"{path} is no COCO annotation file: expected lists {', '.join(parts)}, got {came}{hint}")
    return content


def image_columns(images: list[Json], path: Path) -> tuple[list[str], Int64, Int64]:
    """Return file names, ids (n,) and sizes (n, 2) of images; a size that is not stated is 0, 0.

    Raises:
        UserError: an image without an integer id, a file name or a usable size; names it.
    """
    file_names, ids, sizes = [], [], []
    for position, image in enumerate(images):
        try:
            file_names.append(str(image["file_name"]).replace("\\", "/"))
            ids.append(integer(image["id"]))
            sizes.append((integer(image.get("height") or 0), integer(image.get("width") or 0)))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            came = image.get("id", f"number {position}") if isinstance(image, dict) else f"number {position}"
            raise UserError(
                f"{path}, image id {came}: expected id (an integer), file_name, height and width; at fault: {error}"
            ) from error
    return file_names, np.array(ids, np.int64), np.array(sizes, np.int64).reshape(-1, 2)


def annotation_keys(annotations: list[Json], image_ids: Int64, path: Path) -> tuple[Int64, Int64, Int64]:
    """Return annotation ids, positions of their images, and category ids, (T,) each.

    Raises:
        UserError: an annotation without these, or of an image that is not listed; names it.
    """
    keys = np.zeros((len(annotations), 3), np.int64)
    for position, annotation in enumerate(annotations):
        try:
            image_id, category_id = integer(annotation["image_id"]), integer(annotation["category_id"])
            keys[position] = integer(annotation.get("id", position + 1)), image_id, category_id
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            came = annotation.get("id", "missing") if isinstance(annotation, dict) else "missing"
            raise UserError(
                f"{path}, annotation id {came} (number {position} of the list): expected integers id, image_id and "
                f"category_id; at fault: {error}"
            ) from error
    return keys[:, 0], match_images(keys[:, 0], keys[:, 1], image_ids, path), keys[:, 2]


def match_images(
    annotation_ids: Int64, wanted_ids: Int64, image_ids: Int64, path: Path, what: str = "annotation id"
) -> Int64:
    """Return the position of each annotation's image, (T,).

    Args:
        annotation_ids: (T,), for the message.
        wanted_ids: (T,), the image ids that the annotations name.
        image_ids: (n,), of the listed images.
        path: the file, for the message.
        what: what ``annotation_ids`` are, for the message.

    Raises:
        UserError: an image that is not listed; names the annotations.
    """
    rows = _positions(wanted_ids, image_ids)
    strays = rows < 0
    if strays.any():
        pairs = zip(annotation_ids[strays].tolist(), wanted_ids[strays].tolist(), strict=True)
        shown = ", ".join(f"{annotation_id} (image id {image_id})" for annotation_id, image_id in [*pairs][:_SHOWN])
        raise UserError(f"{path}: {strays.sum()} annotations belong to no listed image: {what} {shown}")
    return rows


def _positions(wanted_ids: Int64, image_ids: Int64) -> Int64:
    """Return where each wanted id stands first among the image ids, (T,), -1 where it does not."""
    if not len(image_ids):
        return np.full(len(wanted_ids), -1, np.int64)
    low, high = int(image_ids.min()), int(image_ids.max())
    if high - low > _SPARSE * (len(image_ids) + len(wanted_ids)):
        order = np.argsort(image_ids, kind="stable")
        ids = image_ids[order]
        rows = order[np.minimum(np.searchsorted(ids, wanted_ids), len(order) - 1)].astype(np.int64)
        return np.where(image_ids[rows] == wanted_ids, rows, -1)
    # A table over all ids, for what lies between: a tenth of the time of a search.
    table = np.full(high - low + 1, -1, np.int64)
    table[image_ids[::-1] - low] = np.arange(len(image_ids))[::-1]
    inside = (wanted_ids >= low) & (wanted_ids <= high)
    return np.where(inside, table[np.where(inside, wanted_ids, low) - low], -1)


def read_classes(categories: list[Json], used: Int64, path: Path) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return class names by category id, in order of the ids, and notes.

    Args:
        categories: as the file lists them.
        used: category ids that annotations have.
        path: the file, for the message.

    Raises:
        UserError: a category without id or name, or two of one id or name.
    """
    try:
        rows = sorted((integer(c["id"]), str(c["name"]), c.get("supercategory")) for c in categories)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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


def number_labels(category_ids: Int64, classes: dict[int, str]) -> tuple[Int64, tuple[str, ...]]:
    """Return labels (T,), -1 - k for the k-th id that is no category, and those ids as texts."""
    present = _distinct(category_ids)
    label_of = {category_id: label for label, category_id in enumerate(classes)}
    unknown = [value for value in present.tolist() if value not in label_of]
    label_of |= {value: -1 - k for k, value in enumerate(unknown)}
    table = np.array([label_of[value] for value in present.tolist()], np.int64)
    return table[_positions(category_ids, present)], tuple(f"category id {value}" for value in unknown)


def _distinct(ids: Int64) -> Int64:
    """Return each id once, ascending; most files have few and small ones, which need no sorting."""
    if len(ids) and int(ids.min()) >= 0 and int(ids.max()) < len(ids):
        return np.flatnonzero(np.bincount(ids)).astype(np.int64)
    return np.unique(ids)


def integer(value: Any) -> int:
    """Return an id as an int; ids written as "12" or 12.0 are let through, 12.5 is not."""
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError(f"{value} is not an integer")
    if not -_ID_LIMIT <= number < _ID_LIMIT:
        raise ValueError(f"{value} is beyond the 64 bits of an integer")
    return number


def is_set(value: Any) -> bool:
    """Return what a flag such as iscrowd says: 0, 1, true and false, as they are or as text; a missing one is False.

    Raises:
        ValueError: it is something else.
    """
    if value is None or isinstance(value, bool | int | float):
        return bool(value)
    if isinstance(value, str) and (said := _FLAG_TEXTS.get(value.strip().lower())) is not None:
        return said
    raise ValueError(f"{value!r} is neither 0 nor 1")


def flags(annotations: Sequence[Json], key: str, annotation_ids: Int64, path: Path) -> Bool:
    """Return a flag of each annotation, (T,).

    Args:
        annotations: T of them.
        key: "iscrowd" or "ignore".
        annotation_ids: (T,), for the message.
        path: the file, for the message.

    Raises:
        UserError: it is neither 0 nor 1; names the annotation.
    """
    found = np.zeros(len(annotations), np.bool_)
    for position, annotation in enumerate(annotations):
        try:
            found[position] = is_set(annotation.get(key))
        except ValueError as error:
            raise UserError(f"{path}, annotation id {annotation_ids[position]}: {key} {error}") from error
    return found
