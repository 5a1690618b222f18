"""Outlines of COCO objects, polygons and run lengths, as flat columns; and their pixels.

A polygon object is a list of rings [x1, y1, x2, y2, ...] whose union is the object; no ring cuts a hole into another.
Run lengths (RLE) count background and object pixels in turn, down the columns, as numbers or compressed into text.
Which pixels a polygon covers is for pycocotools to say, so that masks agree with those of any other COCO tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_api

from effdense.datasets.coco_json import Json
from effdense.datasets.index import Float64
from effdense.datasets.segmentation_index import LabelError
from effdense.errors import UserError
from effdense.types import Float32, Int64, UInt8

_SHOWN = 10
_DECIMALS = 3
"""Of a coordinate in float32; enough for images of 16,000 pixels a side."""
_RUN_DIGITS = 7
"""Most characters of one compressed run length, of five bits each."""
_FARTHEST = 16
"""Image sides that a polygon may reach beyond the image: tiles cut from a large image keep such polygons."""
_Runs = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Shapes:
    """T objects, each with rings or with run lengths.

    Attributes:
        source: the annotation file.
        annotation_ids: (T,).
        coordinates: x and y in turn, pixels, (P,); float32 where its first three decimals are the numbers of the file,
            else float64, so that not a pixel differs.
        rings: (R + 1,), offsets into ``coordinates``.
        rings_of: (T + 1,), offsets into ``rings``: which rings are the object's; none where it has run lengths.
        runs: compressed run lengths, (Q,).
        runs_of: (T + 1,), offsets into ``runs``.
        run_sizes_hw: (T, 2), the image size that run lengths are for, in pixels; 0, 0 where the object has rings.
    """

    source: Path
    annotation_ids: Int64
    coordinates: Float32 | Float64
    rings: Int64
    rings_of: Int64
    runs: UInt8
    runs_of: Int64
    run_sizes_hw: Int64

    def where(self, row: int) -> str:
        """Say where an object stands: file and annotation id."""
        return f"{self.source}, annotation id {self.annotation_ids[row]}"

    def encode(self, row: int, size_hw: tuple[int, int]) -> _Runs:
        """Return the pixels of one object as pycocotools' compressed run lengths.

        Args:
            row: which object.
            size_hw: of its image, in pixels.

        Raises:
            LabelError: run lengths that are for another size or broken, or a polygon far outside of the image.
        """
        first, last = self.rings_of[row : row + 2].tolist()
        if first == last:
            return self._checked_runs(row, size_hw)
        offsets = self.rings[first : last + 1]
        points = self.coordinates[offsets[0] : offsets[-1]]
        exact = _restored(points) if points.dtype == np.float32 else np.asarray(points, np.float64)
        self._check_extent(row, exact.reshape(-1, 2), size_hw)
        pieces = coco_api.frPyObjects(np.split(exact, offsets[1:-1] - offsets[0]), *size_hw)
        merged: _Runs = pieces[0] if len(pieces) == 1 else coco_api.merge(pieces)
        return merged

    def _checked_runs(self, row: int, size_hw: tuple[int, int]) -> _Runs:
        # pycocotools would leave what broken run lengths do not cover as it finds the memory.
        stated = self.run_sizes_hw[row].tolist()
        if stated != [*size_hw]:
            (stated_height, stated_width), (height, width) = stated, size_hw
            raise LabelError(
                f"{self.where(row)}: its run lengths are for {stated_width}x{stated_height} pixels, but the image is "
                f"{width}x{height}; segment the image as it is, or put the image back that was segmented"
            )
        data = self.runs[self.runs_of[row] : self.runs_of[row + 1]]
        covered = _pixels_covered(data)
        if covered != stated[0] * stated[1]:
            came = "are broken" if covered is None else f"cover {covered} pixels"
            raise LabelError(f"{self.where(row)}: its run lengths {came}, the image has {stated[0] * stated[1]}")
        return {"size": stated, "counts": data.tobytes()}

    def _check_extent(self, row: int, points: Float64, size_hw: tuple[int, int]) -> None:
        """Refuse what cannot have been drawn on this image; pycocotools' memory grows with the length of an outline."""
        sides = np.array(size_hw[::-1])
        low, high = points.min(axis=0), points.max(axis=0)
        if (low < -_FARTHEST * sides).any() or (high > (1 + _FARTHEST) * sides).any():
            raise LabelError(
                f"{self.where(row)}: its polygon reaches from {low[0]:g}, {low[1]:g} to {high[0]:g}, {high[1]:g}, far "
                f"outside of the image of {sides[0]}x{sides[1]} pixels; polygons are expected in pixels of the image"
            )


def read_shapes(segmentations: Sequence[Any], annotation_ids: Int64, path: Path) -> Shapes:
    """Return the segmentations of annotations as columns, in their order.

    Args:
        segmentations: (T,), as the file has them; None where an annotation has none.
        annotation_ids: (T,).
        path: the file, for messages.

    Raises:
        UserError: an annotation without a segmentation, or with one that cannot be used; names its id.
    """
    if bare := [i for i, found in zip(annotation_ids.tolist(), segmentations, strict=True) if not found]:
        raise UserError(
            f"{path}: {len(bare)} annotations have no segmentation, only a box at most: annotation id {_listed(bare)}. "
            "Masks need the outline of every object: polygons or run lengths (RLE)"
        )
    rings_per_object, runs, sizes = [], [], np.zeros((len(segmentations), 2), np.int64)
    rings: list[Sequence[float]] = []
    for row, found in enumerate(segmentations):
        where = f"{path}, annotation id {annotation_ids[row]}"
        if isinstance(found, dict):
            sizes[row], data = _read_runs(found, where)
            runs.append(data)
            rings_per_object.append(0)
        elif isinstance(found, list) and all(isinstance(ring, list) for ring in found):
            rings.extend(found)
            runs.append(b"")
            rings_per_object.append(len(found))
        else:
            raise UserError(
                f"{where}: segmentation must be a list of polygons [[x1, y1, x2, y2, ...], ...] or run lengths "
                f'{{"size": ..., "counts": ...}}, got {str(found)[:60]}'
            )
    owners = np.repeat(annotation_ids, rings_per_object)
    lengths = np.array([len(ring) for ring in rings], np.int64)
    _check_rings(lengths, owners, path)
    return Shapes(
        source=path,
        annotation_ids=annotation_ids,
        coordinates=_coordinates(rings, owners, path),
        rings=_offsets(lengths),
        rings_of=_offsets(rings_per_object),
        runs=np.frombuffer(b"".join(runs), np.uint8),
        runs_of=_offsets([len(data) for data in runs]),
        run_sizes_hw=sizes,
    )


def _offsets(lengths: Sequence[int] | Int64) -> Int64:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(str(i) for i in ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")


def _check_rings(lengths: Int64, owners: Int64, path: Path) -> None:
    if (short := lengths < 6).any():
        raise UserError(
            f"{path}: {short.sum()} polygons have fewer than three points: annotation id "
            f"{_listed(np.unique(owners[short]).tolist())}. Take them out: a polygon is x and y of three points or more"
        )
    if (odd := lengths % 2 == 1).any():
        raise UserError(
            f"{path}: {odd.sum()} polygons have an odd number of coordinates, not pairs of x and y: annotation id "
            f"{_listed(np.unique(owners[odd]).tolist())}"
        )


def _coordinates(rings: Sequence[Sequence[float]], owners: Int64, path: Path) -> Float32 | Float64:
    """Return the coordinates of all rings in one row, (P,)."""
    try:
        numbers = np.fromiter(chain.from_iterable(rings), np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        culprit = next(owner for owner, ring in zip(owners.tolist(), rings, strict=True) if not _is_finite(ring))
        raise UserError(f"{path}, annotation id {culprit}: the coordinates of a polygon must be finite numbers")
    short = numbers.astype(np.float32)
    return short if np.array_equal(_restored(short), numbers) else numbers


def _is_finite(ring: Sequence[Any]) -> bool:
    try:
        return bool(np.isfinite(np.fromiter(ring, np.float64)).all())
    except (TypeError, ValueError, OverflowError):
        return False


def _restored(coordinates: npt.NDArray[Any]) -> Float64:
    """Return the numbers of few decimals that were written, from the nearest float32."""
    return np.asarray(np.round(coordinates.astype(np.float64), _DECIMALS), np.float64)


def _read_runs(shape: Json, where: str) -> tuple[Sequence[int], bytes]:
    """Return the size (height, width) and the compressed counts of run lengths."""
    try:
        height, width = (int(side) for side in shape["size"])
        counts = shape["counts"]
        if isinstance(counts, str | bytes):
            return (height, width), counts.encode("ascii") if isinstance(counts, str) else counts
        total = sum(int(count) for count in counts)
        if height < 1 or width < 1 or total != height * width or min(counts) < 0:
            raise ValueError(f"counts sum to {total} for size {height}, {width}")
        data: bytes = coco_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        return (height, width), data
    except Exception as error:  # pycocotools raises plain Exception, and whatever its Cython comes upon
        raise UserError(
            f"{where}: run lengths (RLE) need size [height, width] and counts that sum to its pixels; at fault: {error}"
        ) from error


def _pixels_covered(data: UInt8) -> int | None:
    """Return the sum of compressed run lengths, or None where the text is none such.

    The format is that of ``rleToString`` in pycocotools' maskApi.c: each count, less the one before the last from the
    fourth on, in groups of five bits, the lowest first; bit 5 of a character says that more follow, bit 4 of the last
    one is the sign.
    """
    values = data.astype(np.int64) - 48
    ends = np.flatnonzero((values & 32) == 0)
    if not len(values) or ((values < 0) | (values > 63)).any() or not len(ends) or ends[-1] != len(values) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > _RUN_DIGITS:
        return None
    places = np.arange(len(values)) - np.repeat(starts, digits)
    differences = np.add.reduceat((values & 31) << (5 * places), starts)
    differences -= np.where(values[ends] & 16, np.int64(1) << (5 * digits), 0)
    counts = differences.copy()
    counts[1::2] = np.cumsum(differences[1::2])
    counts[2::2] = np.cumsum(differences[2::2])
    return None if (counts < 0).any() else int(counts.sum())
