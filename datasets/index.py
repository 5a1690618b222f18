"""DetectionIndex: a labelled data set as flat NumPy columns.

One row per image, one row per box, and ``offsets`` that says which boxes belong to which image. Worker processes that
are forked share these columns, as there are no Python objects in them whose reference counts would be written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.datasets.images import ReadImage, read_header, read_whole
from effdense.errors import UserError
from effdense.types import Bool, Float32, Int64, Sample

Float64 = npt.NDArray[np.float64]
Names = npt.NDArray[np.bytes_]

_BOX_COLUMNS = (
    "boxes_xyxy", "boxes_written_xywh", "areas", "labels", "crowd", "difficult", "annotation_ids", "lines",
)  # fmt: skip


def pack_names(names: Sequence[str]) -> Names:
    """Return names as one array of UTF-8 bytes, (n,).

    Raises:
        UserError: a name is not UTF-8, which no JSON file or report could hold.
    """
    try:
        return np.array([name.encode() for name in names], np.bytes_) if names else np.zeros(0, "S1")
    except UnicodeEncodeError as error:
        raise UserError(f"the name of the file {error.object!a} is not UTF-8: rename the file") from error


def names_without_suffix(file_names: Names) -> list[str]:
    """Return file names without their extension (VOC's image names), (n,)."""
    return [str(PurePosixPath(name.decode()).with_suffix("")) for name in file_names.tolist()]


def file_at(folder: Path, file_names: Names, position: int) -> Path:
    """Return the file that a column of names has at a position."""
    return folder / str(file_names[position], "utf-8")


def stated_size(sizes_hw: Int64, position: int) -> tuple[int, int] | None:
    """Return the size in pixels that a column has at a position, or None where it has 0, 0: none is stated."""
    height, width = sizes_hw[position].tolist()
    return (height, width) if height and width else None


@dataclass(frozen=True, eq=False)
class DetectionIndex:
    """n images and their T boxes.

    Attributes:
        name: what was opened: "coco", "voc" or "demo".
        split: which part of it: "train", "val", ...
        source: the annotation file, or the folder that ``annotation_names`` are relative to.
        images_dir: the folder that ``file_names`` are relative to.
        class_names: (K,), in the order of the labels.
        category_ids: (K,), the data set's own id of each class, for writing.
        file_names: (n,), UTF-8.
        image_ids: (n,).
        sizes_hw: (n, 2), pixels as the annotation states them; 0, 0 where it states none.
        offsets: (n + 1,); the boxes of image i are rows offsets[i] to offsets[i + 1].
        boxes_xyxy: (T, 4), pixels, right and bottom edge exclusive.
        boxes_written_xywh: (T, 4), the box as the file has it (VOC: after its shift to 0-based), in full precision and
            never clipped: what evaluation compares with, so that scores agree with those of any other COCO tool.
        areas: (T,), square pixels of the object (COCO's area), by which COCO evaluation tells small from large.
        labels: (T,), 0-based; -1 - k where the file names something that is no class: ``unknown_names[k]``.
        crowd: (T,), COCO's iscrowd.
        difficult: (T,), VOC's difficult (COCO's ignore).
        annotation_ids: (T,).
        lines: (T,), line of the object in its annotation file, counted from 1; 0 where unknown.
        annotation_names: (n,), UTF-8, the annotation file of each image; (0,) where ``source`` is the one file.
        unknown_names: what the file calls objects that are no class.
        notes: sentences on what was decided while reading, to be told to the user.
    """

    name: str
    split: str
    source: Path
    images_dir: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    file_names: Names
    image_ids: Int64
    sizes_hw: Int64
    offsets: Int64
    boxes_xyxy: Float32
    boxes_written_xywh: Float64
    areas: Float64
    labels: Int64
    crowd: Bool
    difficult: Bool
    annotation_ids: Int64
    lines: npt.NDArray[np.int32]
    annotation_names: Names
    unknown_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        num_images, num_boxes = len(self.file_names), len(self.boxes_xyxy)
        assert len(self.class_names) == len(self.category_ids)
        assert self.image_ids.shape == (num_images,)
        assert self.sizes_hw.shape == (num_images, 2)
        assert self.offsets.shape == (num_images + 1,)
        assert self.offsets[-1] == num_boxes
        assert self.boxes_xyxy.shape == self.boxes_written_xywh.shape == (num_boxes, 4)
        assert all(len(getattr(self, column)) == num_boxes for column in _BOX_COLUMNS)
        assert len(self.annotation_names) in (0, num_images)

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def num_boxes(self) -> int:
        """T, the boxes of all images."""
        return len(self.boxes_xyxy)

    @property
    def image_rows(self) -> Int64:
        """Which image each box belongs to, as a position, (T,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def image_names(self) -> list[str]:
        """File names without their extension (VOC's image names), (n,)."""
        return names_without_suffix(self.file_names)

    def path(self, position: int) -> Path:
        """Return the image file at a position."""
        return file_at(self.images_dir, self.file_names, position)

    def where(self, box: int) -> str:
        """Say where in the annotations a box stands: ``file:line``, or file and annotation id."""
        if len(self.annotation_names):
            image = int(np.searchsorted(self.offsets, box, side="right")) - 1
            return f"{self.source / str(self.annotation_names[image], 'utf-8')}:{self.lines[box]}"
        return f"{self.source}, annotation id {self.annotation_ids[box]}"

    def size_hw(self, position: int) -> tuple[int, int]:
        """Return the size of an image, in pixels: as annotated, or else as the file itself has it.

        Raises:
            UserError: the annotation states no size and the file cannot be read.
        """
        return stated_size(self.sizes_hw, position) or read_header(self.path(position)).size_hw

    def sample(self, position: int, read: ReadImage = read_whole) -> Sample:
        """Read an image and return it with what is known of it.

        Args:
            position: which image.
            read: reads the file.

        Raises:
            IndexError: there is no such position.
            UserError: the image is missing or broken, or has another size than the annotation states.
        """
        position = range(len(self))[position]
        image, size_hw = read(self.path(position), stated_size(self.sizes_hw, position))
        sample = Sample(
            image=image,
            image_id=int(self.image_ids[position]),
            original_size_hw=size_hw,
            resized_size_hw=size_hw,
        )
        return self.annotated(sample, position)

    def annotated(self, sample: Sample, position: int) -> Sample:
        """Return a sample of the image at a position with its objects; the image must be in the boxes' pixels."""
        rows = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        return sample.replace(
            boxes_xyxy=self.boxes_xyxy[rows].copy(),
            labels=self.labels[rows].copy(),
            crowd=self.crowd[rows].copy(),
            difficult=self.difficult[rows].copy(),
            has_boxes=True,
        )

    def select(self, positions: Sequence[int] | npt.NDArray[Any]) -> DetectionIndex:
        """Return the images at the given positions, in that order, with their boxes."""
        chosen = np.asarray(positions, np.int64).reshape(-1)
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            file_names=self.file_names[chosen],
            image_ids=self.image_ids[chosen],
            sizes_hw=self.sizes_hw[chosen],
            annotation_names=self.annotation_names[chosen] if len(self.annotation_names) else self.annotation_names,
            offsets=offsets,
            **{column: getattr(self, column)[rows] for column in _BOX_COLUMNS},
        )

    def keep_boxes(self, keep: Bool) -> DetectionIndex:
        """Return all images with only those boxes for which ``keep``, (T,), is True."""
        kept_before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        columns = {column: getattr(self, column)[keep] for column in _BOX_COLUMNS}
        return replace(self, offsets=kept_before[self.offsets], **columns)

    def to_coco(self) -> dict[str, list[dict[str, Any]]]:
        """Return COCO ground truth with the data set's own ids.

        Boxes are ``boxes_written_xywh``. A difficult object carries ``"ignore": 1``; note that pycocotools reads only
        ``iscrowd``. Objects that are no class are left out.

        Raises:
            UserError: an image whose annotation states no size cannot be read.
        """
        sizes = [self.size_hw(i) for i in range(len(self))]
        images = [
            {"id": image_id, "file_name": name.decode(), "width": width, "height": height}
            for image_id, name, (height, width) in zip(
                self.image_ids.tolist(), self.file_names.tolist(), sizes, strict=True
            )
        ]
        image_ids = self.image_ids[self.image_rows].tolist()
        columns = (self.annotation_ids, self.labels, self.boxes_written_xywh, self.areas, self.crowd, self.difficult)
        annotations = []
        for image_id, row in zip(image_ids, zip(*(column.tolist() for column in columns), strict=True), strict=True):
            annotation_id, label, bbox, area, crowd, difficult = row
            if label < 0:
                continue
            annotation = {"id": annotation_id, "image_id": image_id, "category_id": self.category_ids[label]}
            annotation |= {"bbox": bbox, "area": area, "iscrowd": int(crowd)}
            annotations.append(annotation | {"ignore": 1} if difficult else annotation)
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}
