"""DetectionTable: detections of many images as flat NumPy columns, read from and written to COCO results files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.errors import UserError
from effdense.files import write_atomically
from effdense.json_files import parse_json, read_bytes
from effdense.types import Detections, Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """D detections, in any order.

    Attributes:
        image_ids: (D,), the data set's own ids.
        category_ids: (D,), the data set's own ids.
        boxes_xywh: (D, 4), left, top, width, height, in pixels of the original image.
        scores: (D,), finite.
        source: where they came from, for messages.
    """

    image_ids: Int64
    category_ids: Int64
    boxes_xywh: Float64
    scores: Float64
    source: str = "the detections"

    def __post_init__(self) -> None:
        count = len(self.scores)
        lengths = (len(self.image_ids), len(self.category_ids), len(self.boxes_xywh))
        if lengths != (count, count, count) or self.boxes_xywh.shape[1:] != (4,):
            raise ValueError(
                "a DetectionTable needs columns of one length and boxes of shape (D, 4); got "
                f"image_ids {self.image_ids.shape}, category_ids {self.category_ids.shape}, "
                f"boxes_xywh {self.boxes_xywh.shape}, scores {self.scores.shape}"
            )
        for name, values in (("score", self.scores), ("box", self.boxes_xywh.sum(1))):
            if not np.isfinite(values).all():
                first = int(np.flatnonzero(~np.isfinite(values))[0])
                raise UserError(f"{self.source}: the {name} of entry {first} is not a finite number")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_json(cls, path: Path | str) -> DetectionTable:
        """Read a COCO results file: a list of {image_id, category_id, bbox [x, y, w, h], score}.

        Raises:
            UserError: unreadable, not JSON (file and line), not a list, or an entry that lacks a key or has a value
                of the wrong kind (its index, from 0).
        """
        path = Path(path)
        return cls.from_entries(parse_json(read_bytes(path), path), source=str(path))

    @classmethod
    def from_entries(cls, entries: Any, *, source: str = "the detections") -> DetectionTable:
        """Take a parsed COCO results file; see ``from_json``."""
        if not isinstance(entries, list):
            raise UserError(
                f"{source}: expected a list of detections (a COCO results file), found {_kind(entries)}"
                + ("; is it an annotation file?" if isinstance(entries, dict) and "annotations" in entries else "")
            )
        try:
            image_ids = np.array([entry["image_id"] for entry in entries])
            category_ids = np.array([entry["category_id"] for entry in entries])
            boxes_xywh = np.array([entry["bbox"] for entry in entries])
            scores = np.array([entry["score"] for entry in entries])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise _first_fault(entries, source) from None
        if not entries:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), source)
        right = (
            _are_ids(image_ids)
            and _are_ids(category_ids)
            and boxes_xywh.dtype.kind in "if"
            and boxes_xywh.shape == (len(entries), 4)
            and scores.dtype.kind in "if"
            and scores.ndim == 1
        )
        if not right:
            raise _first_fault(entries, source)
        return cls(
            image_ids.astype(np.int64),
            category_ids.astype(np.int64),
            boxes_xywh.astype(np.float64),
            scores.astype(np.float64),
            source,
        )

    @classmethod
    def from_detections(
        cls, detections: Sequence[Detections], image_ids: Sequence[int] | Int64, category_ids: Sequence[int]
    ) -> DetectionTable:
        """Translate what a model returned into the data set's ids.

        Args:
            detections: one per image.
            image_ids: one per image, the data set's own.
            category_ids: (K,), the data set's own id of each label.
        """
        if len(detections) != len(image_ids):
            raise ValueError(f"{len(detections)} Detections for {len(image_ids)} image ids; there must be one each")
        if not detections:
            return cls.from_entries([])
        labels = np.concatenate([found.labels for found in detections]).astype(np.int64)
        if len(labels) and (labels.min() < 0 or labels.max() >= len(category_ids)):
            raise UserError(
                f"the detections have labels {labels.min()}..{labels.max()}, but the data set has "
                f"{len(category_ids)} classes; was the model trained on other classes?"
            )
        boxes = np.concatenate([found.boxes_xyxy for found in detections]).astype(np.float64).reshape(-1, 4)
        return cls(
            np.repeat(np.asarray(image_ids, np.int64), [len(found) for found in detections]),
            np.asarray(category_ids, np.int64)[labels],
            np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
            np.concatenate([found.scores for found in detections]).astype(np.float64),
        )

    def to_json(self, path: Path | str, *, decimals: int | None = None) -> None:
        """Write a COCO results file, beside and renamed.

        Args:
            path: where to; its folder is made.
            decimals: round boxes to so many decimals; None keeps every bit, so that the file scores as the table.

        Raises:
            UserError: it cannot be written.
        """
        boxes = self.boxes_xywh if decimals is None else self.boxes_xywh.round(decimals)
        columns = (self.image_ids.tolist(), self.category_ids.tolist(), boxes.tolist(), self.scores.tolist())
        entries = [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*columns, strict=True)
        ]
        write_atomically(Path(path), json.dumps(entries, separators=(",", ":"), allow_nan=False))

    def check_against(self, image_ids: Int64, category_ids: Int64) -> None:
        """Raise UserError where detections name images or categories that the ground truth does not have."""
        for what, ours, known in (("image", self.image_ids, image_ids), ("category", self.category_ids, category_ids)):
            unknown = ours[~np.isin(ours, known)]
            if len(unknown):
                raise UserError(
                    f"{self.source}: {len(unknown)} of {len(self)} detections name {len(np.unique(unknown))} "
                    f"{what} id(s) that the ground truth does not have, the first being {unknown[0]}; "
                    + ("do the files belong to the same split?" if what == "image" else "were labels written as ids?")
                )


def _are_ids(column: npt.NDArray[Any]) -> bool:
    whole = column.dtype.kind == "i" or (column.dtype.kind == "f" and bool((column == np.floor(column)).all()))
    return whole and column.ndim == 1 and bool((column >= 0).all() and (column < 2**63).all())


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null", bool: "a truth value"}
    return names.get(type(value), "a number")


def _first_fault(entries: list[Any], source: str) -> UserError:
    """Return the error for the first entry that is not a detection."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            return UserError(f"{source}: entry {index} is {_kind(entry)}, expected an object with image_id, bbox ...")
        for key in ("image_id", "category_id", "bbox", "score"):
            if key not in entry:
                return UserError(
                    f"{source}: entry {index} has no {key!r}; it has {', '.join(sorted(entry)) or 'nothing'}"
                )
        for key in ("image_id", "category_id"):
            value = entry[key]
            if not _is_number(value) or value != int(value) or not 0 <= value < 2**63:
                return UserError(f"{source}: the {key} of entry {index} is {value!r}, expected a whole number from 0")
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            return UserError(
                f"{source}: the bbox of entry {index} is {box!r}, expected four numbers x, y, width, height"
            )
        if not _is_number(entry["score"]):
            return UserError(f"{source}: the score of entry {index} is {entry['score']!r}, expected a finite number")
    return UserError(f"{source}: cannot be read as detections with image_id, category_id, bbox and score")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
