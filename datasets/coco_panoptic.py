"""COCO panoptic PNGs as masks: https://cocodataset.org/#format-data.

Each pixel holds the id of a segment, R + 256 G + 65536 B, and the JSON says which category a segment is. The classes
are the categories in the order of their ids, with no background; 0 (no segment) and crowds are 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.datasets.coco import images_folder, load_annotations
from effdense.datasets.coco_json import Json, image_columns, integer, is_set, match_images, number_labels, read_classes
from effdense.datasets.images import read_rgb
from effdense.datasets.index import Names, file_at, pack_names
from effdense.datasets.layout import what_is_there
from effdense.datasets.segmentation_index import MAX_CLASSES, LabelError, SegmentationIndex
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX, Int64, UInt8

_SHOWN = 10
_ID_LIMIT = 1 << 24
"""Above the largest id that three bytes hold."""


@dataclass(frozen=True, eq=False)
class PanopticMasks:
    """Masks that are read from PNGs of segment ids.

    Attributes:
        source: the JSON.
        folder: of the PNGs.
        file_names: (n,), UTF-8, relative to ``folder``.
        image_ids: (n,).
        spans: (n, 2), first and last + 1 of an image's segments in the columns below.
        segment_ids: (S,), ascending within an image; the first is 0, no segment.
        values: (S,), the class of each segment, or 255.
    """

    source: Path
    folder: Path
    file_names: Names
    image_ids: Int64
    spans: Int64
    segment_ids: Int64
    values: UInt8

    def read(self, position: int, size_hw: tuple[int, int]) -> UInt8:
        """Read the mask of an image, (H, W), classes and 255.

        Args:
            position: which image.
            size_hw: its size, in pixels.

        Raises:
            UserError: the PNG is missing or broken; ``LabelError`` where it has another size than the image, or a
                segment that the JSON does not list.
        """
        path = file_at(self.folder, self.file_names, position)
        pixels = read_rgb(path).astype(np.int32)
        if pixels.shape[:2] != size_hw:
            (height, width, _), (image_height, image_width) = pixels.shape, size_hw
            raise LabelError(
                f"{path} is {width}x{height} pixels, but its image is {image_width}x{image_height}; "
                "a panoptic PNG has the size of its image"
            )
        ids = pixels[..., 0] | pixels[..., 1] << 8 | pixels[..., 2] << 16
        known = self.segment_ids[slice(*self.spans[position])]
        places = np.searchsorted(known, ids, side="right") - 1  # known[0] is 0
        if (strange := known[places] != ids).any():
            found, counts = np.unique(ids[strange], return_counts=True)
            pairs = [*zip(found.tolist(), counts.tolist(), strict=True)][:_SHOWN]
            raise LabelError(
                f"{path} has segments that {self.source} does not list under segments_info of image id "
                f"{self.image_ids[position]}: id "
                + ", ".join(f"{segment} ({count} pixels)" for segment, count in pairs)
            )
        return self.values[slice(*self.spans[position])][places]

    def where(self, position: int) -> str:
        """Say where a mask lies and whose it is: PNG and image id."""
        return f"{file_at(self.folder, self.file_names, position)}, image id {self.image_ids[position]}"

    def select(self, positions: Sequence[int] | npt.NDArray[Any]) -> PanopticMasks:
        """Return the masks at the given positions, in that order; the segments are shared, not copied."""
        chosen = np.asarray(positions, np.int64).reshape(-1)
        columns = ("file_names", "image_ids", "spans")
        return replace(self, **{column: getattr(self, column)[chosen] for column in columns})


def open_coco_panoptic(
    root: Path | None, split: str, *, annotations: Path | None = None, images: Path | None = None, name: str = "coco"
) -> SegmentationIndex:
    """Open one split of a data set with panoptic PNGs, which lie in a folder beside the JSON that has its name.

    Args:
        root: folder of the data set; not needed where ``annotations`` is given.
        split: as for ``open_coco``.
        annotations: the annotation file, where the layout is none of the known ones.
        images: the folder of the images, likewise.
        name: what the data set is called in messages.

    Raises:
        UserError: nothing found, a file that is no such JSON, or segments that cannot be used.
    """
    content, path = load_annotations(root, split, annotations, "panoptic")
    file_names, image_ids, sizes_hw = image_columns(content["images"], path)
    png_names, wanted_ids, segments = _segment_columns(content["annotations"], path)
    categories, notes = read_classes(content["categories"], segments[:, 2], path)
    if len(categories) > MAX_CLASSES:
        raise UserError(f"{path} has {len(categories)} categories, a mask holds {MAX_CLASSES} at most: join some")
    rows = match_images(np.arange(1, len(wanted_ids) + 1), wanted_ids, image_ids, path, what="number")
    if (twice := np.bincount(rows, minlength=len(image_ids)) > 1).any():
        raise UserError(f"{path}: image id {image_ids[twice][0]} has more than one entry under annotations")
    if left_out := len(image_ids) - len(rows):
        notes = (*notes, f"{path}: {left_out} of {len(image_ids)} images have no panoptic annotation and are left out")
    order = np.argsort(rows)  # as the images are listed
    rows = rows[order]
    packed = pack_names([file_names[row] for row in rows])
    return SegmentationIndex(
        name=name,
        split=split,
        source=path,
        images_dir=images_folder(images, path, root, split, packed),
        class_names=tuple(categories.values()),
        file_names=packed,
        image_ids=image_ids[rows],
        sizes_hw=sizes_hw[rows],
        masks=_masks(segments, categories, wanted_ids, pack_names(png_names), path).select(order),
        notes=notes,
    )


def _segment_columns(annotations: Sequence[Json], path: Path) -> tuple[list[str], Int64, Int64]:
    """Return PNG names and image ids, (m,) each, and the segments: number of the annotation, id, category, crowd."""
    png_names, image_ids, segments = [], [], []
    for number, annotation in enumerate(annotations):
        try:
            png_names.append(str(annotation["file_name"]).replace("\\", "/"))
            image_ids.append(integer(annotation["image_id"]))
            for item in annotation["segments_info"]:
                crowd = is_set(item.get("iscrowd"))
                segments.append((number, integer(item["id"]), integer(item["category_id"]), crowd))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            came = annotation.get("image_id", "missing") if isinstance(annotation, dict) else "missing"
            hint = "; this may be a file of instances" if isinstance(annotation, dict) and "bbox" in annotation else ""
            raise UserError(
                f"{path}, image id {came} (number {number + 1} of annotations): expected file_name of a PNG, image_id, "
                f"and segments_info with id and category_id each; at fault: {error}{hint}"
            ) from error
    return png_names, np.array(image_ids, np.int64), np.array(segments, np.int64).reshape(-1, 4)


def _masks(
    segments: Int64, categories: dict[int, str], image_ids: Int64, png_names: Names, path: Path
) -> PanopticMasks:
    """Return the masks of annotations in their order, with their segments checked."""
    numbers, ids, category_ids, crowd = segments.T
    labels, _ = number_labels(category_ids, categories)
    keys = numbers * _ID_LIMIT + ids
    again = np.ones(len(keys), np.bool_)
    again[np.unique(keys, return_index=True)[1]] = False
    faults = {
        "is of no listed category": labels < 0,
        f"is not in 1..{_ID_LIMIT - 1} (0 means no segment)": (ids < 1) | (ids >= _ID_LIMIT),
        "comes twice": again,
    }
    for fault, at_fault in faults.items():
        if at_fault.any():
            first = np.flatnonzero(at_fault)[0]
            raise UserError(f"{path}, image id {image_ids[numbers[first]]}: segment id {ids[first]} {fault}")
    every = np.arange(len(image_ids))
    order = np.argsort(np.concatenate([every * _ID_LIMIT, keys]))  # segment 0 of each annotation comes first
    values = np.concatenate([np.full(len(every), IGNORE_INDEX), np.where(crowd, IGNORE_INDEX, labels)])
    ends = np.cumsum(np.bincount(numbers, minlength=len(image_ids)) + 1)
    return PanopticMasks(
        source=path,
        folder=_png_folder(path),
        file_names=png_names,
        image_ids=image_ids,
        spans=np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1).astype(np.int64),
        segment_ids=np.concatenate([0 * every, ids])[order],
        values=values[order].astype(np.uint8),
    )


def _png_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    if folder.is_dir():
        return folder
    packed = folder.with_suffix(".zip")
    remedy = f"unpack {packed.name} there" if packed.is_file() else f"put the PNGs into {folder.name}/ beside the JSON"
    raise UserError(
        f"the panoptic PNGs of {path} were not found: {folder} is no folder; {remedy}. {what_is_there(path.parent)}"
    )
