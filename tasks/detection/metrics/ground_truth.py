"""GroundTruthTable: what is truly in many images, as flat NumPy columns, from COCO JSON or from a DetectionIndex."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from effdense.errors import UserError
from effdense.json_files import parse_json, read_bytes
from effdense.types import Bool, Int64

if TYPE_CHECKING:
    from effdense.datasets.index import DetectionIndex

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroundTruthTable:
    """T objects in n images, of K classes in ascending order of their category id.

    Attributes:
        all_image_ids: (n,), also of images without an object.
        class_category_ids: (K,), ascending.
        class_names: (K,).
        image_ids: (T,).
        category_ids: (T,).
        boxes_xywh: (T, 4), pixels.
        areas: (T,), square pixels of the object, which COCO sorts into small, medium and large by.
        crowd: (T,), COCO's iscrowd.
        difficult: (T,), VOC's difficult.
        source: where it came from, for messages.
    """

    all_image_ids: Int64
    class_category_ids: Int64
    class_names: tuple[str, ...]
    image_ids: Int64
    category_ids: Int64
    boxes_xywh: Float64
    areas: Float64
    crowd: Bool
    difficult: Bool
    source: str = "the ground truth"

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def from_coco(cls, source: dict[str, Any] | Path | str) -> GroundTruthTable:
        """Take COCO instances, a file or its parsed content; objects of unlisted images or categories are left out.

        VOC's difficult is read from a key ``difficult`` where annotations have one.

        Raises:
            UserError: see ``complete_coco``.
        """
        dataset, name = complete_coco(source)
        categories = sorted(dataset["categories"], key=lambda category: int(category["id"]))
        image_ids = np.array([image["id"] for image in dataset["images"]], np.int64)
        category_ids = np.array([category["id"] for category in categories], np.int64)
        known_images, known_categories = set(image_ids.tolist()), set(category_ids.tolist())
        objects = [
            annotation
            for annotation in dataset["annotations"]
            if annotation["image_id"] in known_images and annotation["category_id"] in known_categories
        ]
        return cls(
            all_image_ids=image_ids,
            class_category_ids=category_ids,
            class_names=tuple(str(category["name"]) for category in categories),
            image_ids=np.array([one["image_id"] for one in objects], np.int64),
            category_ids=np.array([one["category_id"] for one in objects], np.int64),
            boxes_xywh=np.array([one["bbox"] for one in objects], np.float64).reshape(-1, 4),
            areas=np.array([one["area"] for one in objects], np.float64),
            crowd=np.array([bool(one["iscrowd"]) for one in objects], np.bool_),
            difficult=np.array([bool(one.get("difficult", 0)) for one in objects], np.bool_),
            source=name,
        )

    @classmethod
    def from_index(cls, index: DetectionIndex) -> GroundTruthTable:
        """Take the boxes as the data set's file has them, unclipped; those of no class are left out."""
        order = np.argsort(np.asarray(index.category_ids, np.int64), kind="stable")
        category_ids = np.asarray(index.category_ids, np.int64)
        keep = index.labels >= 0
        return cls(
            all_image_ids=index.image_ids,
            class_category_ids=category_ids[order],
            class_names=tuple(index.class_names[position] for position in order),
            image_ids=np.repeat(index.image_ids, np.diff(index.offsets))[keep],
            category_ids=category_ids[index.labels[keep]],
            boxes_xywh=index.boxes_written_xywh[keep].astype(np.float64),
            areas=index.areas[keep].astype(np.float64),
            crowd=index.crowd[keep],
            difficult=index.difficult[keep],
            source=str(index.source),
        )

    def to_coco(self) -> dict[str, Any]:
        """Return COCO instances, ids from 1.

        A difficult box becomes a crowd, since COCO's evaluation knows no other way to leave a box out: finding it or
        missing it then costs and gains nothing.
        """
        ignored = self.crowd | self.difficult
        columns = (self.image_ids, self.category_ids, self.boxes_xywh, self.areas, ignored)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {
            "images": [{"id": image_id} for image_id in self.all_image_ids.tolist()],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.class_category_ids.tolist(), self.class_names, strict=True)
            ],
            "annotations": [
                {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": int(crowd)}
                for n, (image, category, box, area, crowd) in enumerate(rows, start=1)
            ],
        }


def complete_coco(source: dict[str, Any] | Path | str, *, iou_type: str = "bbox") -> tuple[dict[str, Any], str]:
    """Return COCO instances that any evaluator can take, and their name for messages.

    What is handed in stays as it was. Annotations get ids from 1 (pycocotools takes a match with id 0 for none), a
    missing ``iscrowd`` becomes 0 and a missing ``area`` that of the box.

    Args:
        source: a COCO instances file or its parsed content.
        iou_type: "bbox" wants a box of every annotation, "segm" a segmentation.

    Raises:
        UserError: unreadable, not JSON (file and line), a missing list or key (annotation id), an id that occurs
            twice, or no category at all.
    """
    dataset, name = (source, "the ground truth") if isinstance(source, dict) else _read(Path(source))
    if not isinstance(dataset, dict):
        raise UserError(f"{name}: expected COCO instances (an object with images, annotations, categories), found a "
                        f"{type(dataset).__name__}; is it a results file?")  # fmt: skip
    for key in ("images", "annotations", "categories"):
        if not isinstance(dataset.get(key), list):
            raise UserError(f"{name}: has no list {key!r}; COCO instances have images, annotations and categories")
    if not dataset["categories"]:
        raise UserError(f"{name}: lists no category, so there is nothing to evaluate")
    for what, entries in (("image", dataset["images"]), ("category", dataset["categories"])):
        _check_entries(name, what, entries, ("id",) if what == "image" else ("id", "name"))
        _check_unique(name, what, (entry["id"] for entry in entries))
    shape_key = "bbox" if iou_type == "bbox" else "segmentation"
    _check_entries(name, "annotation", dataset["annotations"], ("image_id", "category_id", shape_key))
    _check_unique(name, "annotation", (entry["id"] for entry in dataset["annotations"] if "id" in entry))
    annotations = [
        {**entry, "id": n, "iscrowd": int(entry.get("iscrowd") or 0), "area": _area(name, entry, iou_type)}
        for n, entry in enumerate(dataset["annotations"], start=1)
    ]
    return {"images": dataset["images"], "categories": dataset["categories"], "annotations": annotations}, name


def _read(path: Path) -> tuple[Any, str]:
    return parse_json(read_bytes(path), path), str(path)


def _check_entries(name: str, what: str, entries: list[Any], keys: tuple[str, ...]) -> None:
    for index, entry in enumerate(entries):
        missing = keys if not isinstance(entry, dict) else [key for key in keys if key not in entry]
        if missing:
            which = f"id {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"number {index} (from 0)"
            raise UserError(f"{name}: {what} {which} has no {missing[0]!r}")


def _check_unique(name: str, what: str, ids: Iterable[Any]) -> None:
    seen = set()
    for one in ids:
        if not isinstance(one, int) or one < 0:
            raise UserError(f"{name}: the {what} id {one!r} is not a whole number from 0")
        if one in seen:
            raise UserError(f"{name}: the {what} id {one} occurs twice; every id must be given once")
        seen.add(one)


def _area(name: str, entry: dict[str, Any], iou_type: str) -> float:
    box = entry.get("bbox")
    if iou_type == "bbox" or "area" not in entry:
        right = isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
        if not right or box is None:
            which = f"annotation id {entry['id']}" if "id" in entry else f"an annotation of image {entry['image_id']}"
            raise UserError(f"{name}: the bbox of {which} is {box!r}, expected four numbers x, y, width, height")
    if entry.get("area") is not None:
        return float(entry["area"])
    assert box is not None
    return float(box[2]) * float(box[3])
