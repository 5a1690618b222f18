"""MultitaskIndex: images with boxes, with a mask or with both, made of an index of each.

An image that both indices list is one image with both labels; any other has one, and says nothing of the other task.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.datasets.images import ReadImage, read_whole
from effdense.datasets.index import DetectionIndex
from effdense.datasets.segmentation_index import LabelError, SegmentationIndex
from effdense.errors import UserError
from effdense.types import Bool, Int64, Sample

NONE = -1
"""Position of an image in an index that does not list it."""


@dataclass(frozen=True)
class LabelCounts:
    """How many images carry what.

    Attributes:
        both: images with boxes and a mask.
        boxes_only: images with boxes and no mask.
        masks_only: images with a mask and no boxes.
    """

    both: int
    boxes_only: int
    masks_only: int

    def __str__(self) -> str:
        total = self.both + self.boxes_only + self.masks_only
        return (
            f"{total} images: {self.both} with boxes and masks, {self.boxes_only} with boxes alone, "
            f"{self.masks_only} with masks alone"
        )


@dataclass(frozen=True, eq=False)
class MultitaskIndex:
    """n images, each with boxes, a mask or both. Make it with `of`.

    Attributes:
        detection: the images with boxes, or None where there are none.
        segmentation: the images with masks, or None where there are none.
        rows: (n, 2), the position of each image in ``detection`` and in ``segmentation``, -1 where it is not in there;
            each index's own ids are to be had through it.
        image_ids: (n,), unique. The data sets' own where these are, those of ``detection`` first; where the ids of two
            data sets collide, the images are numbered from 1.
    """

    detection: DetectionIndex | None
    segmentation: SegmentationIndex | None
    rows: Int64
    image_ids: Int64

    def __post_init__(self) -> None:
        assert self.rows.shape == (len(self.image_ids), 2)
        assert (self.rows.max(axis=1) > NONE).all()

    @classmethod
    def of(cls, detection: DetectionIndex | None, segmentation: SegmentationIndex | None) -> MultitaskIndex:
        """Join two indices: first the images with boxes in their order, then those with a mask alone in theirs.

        Images are the same where they are the same file, links followed. A file that is listed more than once is
        matched as often as the other index lists it.

        Raises:
            UserError: neither is given; or boxes and mask of an image belong to another size of it (`LabelError`).
        """
        if detection is None and segmentation is None:
            raise UserError("there is neither an index of images with boxes nor one of images with masks")
        rows = _matched(detection, segmentation)
        _check_sizes(detection, segmentation, rows)
        return cls(detection, segmentation, rows, _unique_ids(detection, segmentation, rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def has_boxes(self) -> Bool:
        """Which images have boxes, be they none, (n,)."""
        return np.asarray(self.rows[:, 0] != NONE, np.bool_)

    @property
    def has_masks(self) -> Bool:
        """Which images have a mask, (n,)."""
        return np.asarray(self.rows[:, 1] != NONE, np.bool_)

    @property
    def counts(self) -> LabelCounts:
        """How many images carry what."""
        boxes, masks = self.has_boxes, self.has_masks
        return LabelCounts(int((boxes & masks).sum()), int((boxes & ~masks).sum()), int((masks & ~boxes).sum()))

    def summary(self) -> str:
        """Say how many images carry what."""
        return str(self.counts)

    def path(self, position: int) -> Path:
        """Return the image file at a position."""
        box_row, mask_row = self.rows[position].tolist()
        if box_row != NONE:
            assert self.detection is not None
            return self.detection.path(box_row)
        assert self.segmentation is not None
        return self.segmentation.path(mask_row)

    def path_of(self, image_id: int) -> Path:
        """Return the image file of one of ``image_ids``, which no data set need know."""
        return self.path(int(np.flatnonzero(self.image_ids == image_id)[0]))

    def sample(self, position: int, read: ReadImage = read_whole) -> Sample:
        """Read an image, once, with every label that it has.

        Args:
            position: which image.
            read: reads its file.

        Raises:
            IndexError: there is no such position.
            UserError: image or mask is missing or broken, or a value of the mask is no class; `LabelError` where boxes
                and mask belong to another size of the image.
        """
        box_row, mask_row = self.rows[position].tolist()
        image_id = int(self.image_ids[position])
        if mask_row == NONE:
            assert self.detection is not None
            return self.detection.sample(box_row, read).replace(image_id=image_id)
        assert self.segmentation is not None
        sample = self.segmentation.sample(mask_row, read).replace(image_id=image_id)
        if box_row == NONE:
            return sample
        assert self.detection is not None
        size_of_boxes = self.detection.size_hw(box_row)
        if size_of_boxes != sample.original_size_hw:
            raise _size_conflict(
                self.detection, box_row, size_of_boxes, self.segmentation, mask_row, sample.original_size_hw
            )
        return self.detection.annotated(sample, box_row)

    def select(self, positions: Sequence[int] | npt.NDArray[Any]) -> MultitaskIndex:
        """Return the images at the given positions, in that order, with their labels; both indices are shared."""
        chosen = np.asarray(positions, np.int64).reshape(-1)
        return replace(self, rows=self.rows[chosen], image_ids=self.image_ids[chosen])


def _matched(detection: DetectionIndex | None, segmentation: SegmentationIndex | None) -> Int64:
    """Return the rows of a MultitaskIndex, (n, 2)."""
    num_boxes, num_masks = (0 if index is None else len(index) for index in (detection, segmentation))
    masks_of = np.full(num_boxes, NONE, np.int64)
    if detection is not None and segmentation is not None:
        masks_of[:] = _same_files(detection, segmentation)
    alone = np.setdiff1d(np.arange(num_masks), masks_of)
    with_boxes = np.stack([np.arange(num_boxes), masks_of], axis=1)
    return np.concatenate([with_boxes, np.stack([np.full(len(alone), NONE), alone], axis=1)]).astype(np.int64)


def _same_files(detection: DetectionIndex, segmentation: SegmentationIndex) -> list[int]:
    """Return the position in ``segmentation`` of each file of ``detection``, or -1."""
    resolved: dict[str, str] = {}
    places = defaultdict(list)
    for position, file in reversed(list(enumerate(_resolved_files(segmentation, resolved)))):
        places[file].append(position)
    return [places[file].pop() if places.get(file) else NONE for file in _resolved_files(detection, resolved)]


def _resolved_files(index: DetectionIndex | SegmentationIndex, resolved: dict[str, str]) -> list[str]:
    """Return the path of each image with links followed.

    Args:
        index: the images.
        resolved: what is known so far, by path as written, of folders and files; is added to. To resolve every path
            from the root on would take ten times as long.
    """
    root = str(index.images_dir)
    files = []
    for name in index.file_names.tolist():
        path = os.path.join(root, name.decode())
        file = resolved.get(path)
        if file is None:
            folder, base = os.path.split(path)
            if folder not in resolved:
                resolved[folder] = os.path.realpath(folder)
            file = os.path.join(resolved[folder], base)
            resolved[path] = file = os.path.realpath(file) if os.path.islink(file) else file
        files.append(file)
    return files


def _unique_ids(detection: DetectionIndex | None, segmentation: SegmentationIndex | None, rows: Int64) -> Int64:
    ids = np.zeros(len(rows), np.int64)
    for index, column in ((segmentation, rows[:, 1]), (detection, rows[:, 0])):
        if index is not None:
            there = column != NONE
            ids[there] = index.image_ids[column[there]]
    return ids if len(np.unique(ids)) == len(ids) else np.arange(1, len(ids) + 1, dtype=np.int64)


def _check_sizes(detection: DetectionIndex | None, segmentation: SegmentationIndex | None, rows: Int64) -> None:
    """Compare the sizes that both indices state; what either does not state yet is seen on reading.

    Raises:
        LabelError: they differ; names the first image.
    """
    if detection is None or segmentation is None:
        return
    both = rows[(rows != NONE).all(axis=1)]
    box_sizes, mask_sizes = detection.sizes_hw[both[:, 0]], segmentation.sizes_hw[both[:, 1]]
    stated = (box_sizes > 0).all(axis=1) & (mask_sizes > 0).all(axis=1)
    differ = np.flatnonzero(stated & (box_sizes != mask_sizes).any(axis=1))
    if len(differ):
        box_row, mask_row = both[differ[0]].tolist()
        (height, width), (mask_height, mask_width) = box_sizes[differ[0]].tolist(), mask_sizes[differ[0]].tolist()
        error = _size_conflict(detection, box_row, (height, width), segmentation, mask_row, (mask_height, mask_width))
        more = f" ({len(differ) - 1} more images are so)" if len(differ) > 1 else ""
        raise LabelError(f"{error}{more}")


def _size_conflict(
    detection: DetectionIndex,
    box_row: int,
    size_of_boxes: tuple[int, int],
    segmentation: SegmentationIndex,
    mask_row: int,
    size_of_mask: tuple[int, int],
) -> LabelError:
    (height, width), (mask_height, mask_width) = size_of_boxes, size_of_mask
    annotations = detection.source
    if len(detection.annotation_names):
        annotations = annotations / str(detection.annotation_names[box_row], "utf-8")
    return LabelError(
        f"boxes and mask of {detection.path(box_row)} belong to pictures of another size: {annotations} means "
        f"{width}x{height} pixels, {segmentation.masks.where(mask_row)} is {mask_width}x{mask_height}; annotate both "
        "on the image as it is stored, or both as it looks once turned by its EXIF orientation"
    )
