"""COCO instances as masks: polygons and run lengths painted one over the other.

Class 0 is the background, the categories follow in the order of their ids. Larger objects are painted first, so that a
smaller one that lies on them stays visible; how large is for the file's own area to say, and for the pixels where it
says nothing. Crowds, and objects with "ignore": 1 (which boxes call difficult), are 255 wherever no other object lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_api

from effdense.datasets.class_names import BACKGROUND, is_background
from effdense.datasets.coco import annotation_file, images_folder
from effdense.datasets.coco_columns import read_columns, stable_order
from effdense.datasets.coco_json import number_labels, read_classes
from effdense.datasets.coco_shapes import Shapes, read_shapes
from effdense.datasets.index import Float64, pack_names
from effdense.datasets.segmentation_index import MAX_CLASSES, SegmentationIndex
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX, Bool, Int64, UInt8

_SHOWN = 10


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """Masks that are painted when they are asked for.

    Attributes:
        shapes: the T objects of the whole file.
        labels: (T,), classes.
        crowd: (T,), COCO's iscrowd or ignore: pixels that are not counted.
        areas: (T,), square pixels as the file states them; 0 where it states none.
        rows: (T,), the objects in the order of the images.
        spans: (n, 2), first and last + 1 of an image's objects in ``rows``.
        image_ids: (n,).
    """

    shapes: Shapes
    labels: UInt8
    crowd: Bool
    areas: Float64
    rows: Int64
    spans: Int64
    image_ids: Int64

    def read(self, position: int, size_hw: tuple[int, int]) -> UInt8:
        """Paint the mask of an image, (H, W), classes and 255.

        Args:
            position: which image.
            size_hw: its size, in whose pixels the polygons are.

        Raises:
            LabelError: an object that does not go with this size; names its annotation id.
        """
        first, last = self.spans[position].tolist()
        objects = [(row, self.shapes.encode(row, size_hw)) for row in self.rows[first:last].tolist()]
        ranks = [(not self.crowd[row], -(self.areas[row] or float(coco_api.area(runs)))) for row, runs in objects]
        canvas = np.zeros(size_hw[::-1], np.uint8)  # (W, H): run lengths go down the columns
        # The sort is stable: of two objects of one size the later in the file lies on top.
        for place in sorted(range(len(objects)), key=ranks.__getitem__):
            row, runs = objects[place]
            inside = coco_api.decode(runs).T.view(np.bool_)
            canvas[inside] = IGNORE_INDEX if self.crowd[row] else self.labels[row]
        return np.ascontiguousarray(canvas.T)

    def where(self, position: int) -> str:
        """Say whose mask it is: file and image id."""
        return f"{self.shapes.source}, image id {self.image_ids[position]}"

    def select(self, positions: Sequence[int] | npt.NDArray[Any]) -> InstanceMasks:
        """Return the masks at the given positions, in that order; the objects are shared, not copied."""
        chosen = np.asarray(positions, np.int64).reshape(-1)
        return replace(self, spans=self.spans[chosen], image_ids=self.image_ids[chosen])


def open_coco_instances(
    root: Path | None, split: str, *, annotations: Path | None = None, images: Path | None = None, name: str = "coco"
) -> SegmentationIndex:
    """Open the masks of one split of a data set in COCO JSON; an image without objects is background.

    Args:
        root: folder of the data set; not needed where ``annotations`` is given.
        split: as for ``open_coco``.
        annotations: the annotation file, where the layout is none of the known ones.
        images: the folder of the images, likewise.
        name: what the data set is called in messages.

    Raises:
        UserError: nothing found, a file that is no such JSON, or an object without a usable outline.
    """
    path = annotation_file(root, split, annotations)
    columns = read_columns(path, outlines=True)
    categories, notes = read_classes(columns.categories, columns.category_ids, path)
    labels, unknown = number_labels(columns.category_ids, categories)
    if unknown:
        strays = ", ".join(str(stray) for stray in columns.annotation_ids[labels < 0][:_SHOWN].tolist())
        raise UserError(f"{path} has objects of no listed category ({unknown[0]}): annotation id {strays}")
    class_names, class_of = _with_background(tuple(categories.values()), path)
    ends = np.cumsum(np.bincount(columns.image_rows, minlength=len(columns.file_names)))
    packed = pack_names(columns.file_names)
    return SegmentationIndex(
        name=name,
        split=split,
        source=path,
        images_dir=images_folder(images, path, root, split, packed),
        class_names=class_names,
        file_names=packed,
        image_ids=columns.image_ids,
        sizes_hw=columns.sizes_hw,
        masks=InstanceMasks(
            shapes=read_shapes(columns.segmentations, columns.annotation_ids, path),
            labels=class_of[labels],
            crowd=columns.crowd | columns.ignored,
            areas=columns.areas,
            rows=stable_order(columns.image_rows),
            spans=np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1).astype(np.int64),
            image_ids=columns.image_ids,
        ),
        notes=notes,
    )


def _with_background(categories: tuple[str, ...], path: Path) -> tuple[tuple[str, ...], UInt8]:
    """Return the class names, background first, and the class of each category.

    A category that is itself called background is class 0.
    """
    backgrounds = [is_background(category) for category in categories]
    class_names = (BACKGROUND, *(name for name, same in zip(categories, backgrounds, strict=True) if not same))
    if len(class_names) > MAX_CLASSES:
        raise UserError(
            f"{path} has {len(class_names) - 1} categories; a mask holds {MAX_CLASSES - 1} of them at most beside "
            f"the background, as {IGNORE_INDEX} is for pixels that are not counted: join some"
        )
    return class_names, np.where(backgrounds, 0, np.cumsum(~np.array(backgrounds, np.bool_))).astype(np.uint8)
