"""The doctor: looks at labelled data before the first training step.

What would spoil a run is an error; what can be put right is put right and counted; the rest is a short table.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from effdense.datasets.images import Header, read_header, read_rgb, size_mismatch
from effdense.datasets.index import DetectionIndex
from effdense.errors import UserError
from effdense.types import Int64

COLUMNS = ("split", "images", "boxes", "crowd", "difficult", "empty", "broken", "clipped", "dropped")
"""Headings of ``Report.rows``. empty: images without a box; broken: images left out; clipped: boxes cut at the image's
edge; dropped: boxes without area."""

_SHOWN = 10
_HEAD_BYTES = 65_536
_TOLERANCE_PX = 0.01
"""COCO rounds boxes to hundredths: less than that outside is not counted, less than that wide is no area."""


@dataclass
class Report:
    """What the doctor found.

    Attributes:
        errors: sentences that stop a run; each names a file and line or an annotation id.
        warnings: sentences worth reading.
        rows: one per split, in the order of ``COLUMNS``.
        notes: what was decided on reading.
        sound: the indices without broken images, sizes filled in, every box as the file has it: for validation and
            scoring, so that the numbers agree with those of any other tool.
        cleaned: the same without boxes that have no area inside their image, the other boxes clipped: for training.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sound: dict[str, DetectionIndex] = field(default_factory=dict)
    cleaned: dict[str, DetectionIndex] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return table, notes, warnings and errors as lines of text."""
        table = [COLUMNS, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
        text = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        sentences = {"note": self.notes, "warning": self.warnings, "error": self.errors}
        return text + [f"{kind}: {line}" for kind, lines in sentences.items() for line in lines]

    def raise_errors(self) -> None:
        """Raise UserError with the first ten errors, if there are any."""
        errors = list(dict.fromkeys(self.errors))  # two splits of the same files have the same faults
        if errors:
            more = [f"and {len(errors) - _SHOWN} more errors"] if len(errors) > _SHOWN else []
            raise UserError("\n".join([*errors[:_SHOWN], *more]))


def examine(splits: Mapping[str, DetectionIndex], *, skip_broken: bool = False) -> Report:
    """Examine the splits of a data set; reads the header of every image.

    Args:
        splits: indices by role; the one called "train" must have something to learn from.
        skip_broken: leave out missing and unreadable images and count them, instead of calling them errors. Every
            image is then decoded once, as one that is corrupt in the middle would stop the run when its turn comes.

    Returns:
        The report; call ``raise_errors`` before using ``sound`` or ``cleaned``.
    """
    report = Report()
    readable: dict[str, tuple[DetectionIndex, list[Header]]] = {}
    for split, index in splits.items():
        report.notes += [note for note in index.notes if note not in report.notes]
        report.errors += _duplicate_ids(index) + _unknown_labels(index)
        report.warnings += _duplicate_files(index, split)
        kept, headers, broken = _check_files(index, report, split, skip_broken)
        readable[split] = kept, headers
        sound = _fill_sizes(kept, headers)
        cleaned, clipped, dropped = _clean_boxes(sound, report)
        report.sound[split] = sound
        report.cleaned[split] = cleaned
        report.rows.append(_row(split, cleaned, broken, clipped, dropped))
        _check_examples(cleaned, split, report)
    for first, second in combinations(splits, 2):
        report.warnings += _shared_images(first, *readable[first], second, *readable[second])
    return report


def _duplicate_ids(index: DetectionIndex) -> list[str]:
    return [
        f"{index.source}: {what} ids must be unique, but {_listed(map(str, twice))} come more than once"
        for what, ids in (("image", index.image_ids), ("annotation", index.annotation_ids))
        if len(twice := _repeated(ids))
    ]


def _repeated(ids: Int64) -> list[int]:
    values, counts = np.unique(ids, return_counts=True)
    return [int(value) for value in values[counts > 1]]


def _duplicate_files(index: DetectionIndex, split: str) -> list[str]:
    names, counts = np.unique(index.file_names, return_counts=True)
    twice = [name.decode() for name in names[counts > 1].tolist()]
    return [f"{split} lists {len(twice)} files more than once: {_listed(twice)}"] if twice else []


def _unknown_labels(index: DetectionIndex) -> list[str]:
    classes = _listed(index.class_names) if index.class_names else "none"
    strays = [(int(box), index.unknown_names[-1 - int(index.labels[box])]) for box in np.flatnonzero(index.labels < 0)]
    return [f"{index.where(box)}: {name!r} is not among the classes ({classes})" for box, name in strays]


def _check_files(
    index: DetectionIndex, report: Report, split: str, skip_broken: bool
) -> tuple[DetectionIndex, list[Header], int]:
    """Return the index without broken images, the headers of those kept, and how many were broken."""
    outcomes = _look_at_files(index, decode=skip_broken)
    faults = [str(outcome) for outcome in outcomes if isinstance(outcome, UserError)]
    if not skip_broken:
        report.errors += faults
    elif faults:
        report.warnings.append(f"{split}: {len(faults)} broken images are left out: {_listed(faults, 3, '; ')}")
    kept = index.select([i for i, outcome in enumerate(outcomes) if isinstance(outcome, Header)])
    headers = [outcome for outcome in outcomes if isinstance(outcome, Header)]
    for position, (header, (height, width)) in enumerate(zip(headers, kept.sizes_hw.tolist(), strict=True)):
        if height and width and not header.fits((height, width)):
            report.errors.append(size_mismatch(kept.path(position), header, (height, width)))
    return kept, headers, len(faults)


def _look_at_files(index: DetectionIndex, decode: bool) -> list[Header | UserError]:
    """Return the header of each image, or why it cannot be read; with ``decode`` its pixels are read as in training."""

    def outcome(position: int) -> Header | UserError:
        path = index.path(position)
        height, width = index.sizes_hw[position].tolist()
        stated = (height, width) if height and width else None
        try:
            header = read_header(path)
            if decode and (stated is None or header.fits(stated)):  # another size is an error of its own
                read_rgb(path, stated)
        except UserError as error:
            return error
        return header

    cores = os.cpu_count() or 1
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, cores if decode else 4 * cores)) as pool:
        warnings.simplefilter("ignore")  # Pillow's advice on palettes and odd tags
        return list(pool.map(outcome, range(len(index))))


def _fill_sizes(index: DetectionIndex, headers: Sequence[Header]) -> DetectionIndex:
    stored = np.array([header.size_hw for header in headers], np.int64).reshape(-1, 2)
    stated = (index.sizes_hw > 0).all(axis=1, keepdims=True)
    return replace(index, sizes_hw=np.where(stated, index.sizes_hw, stored))


def _clean_boxes(index: DetectionIndex, report: Report) -> tuple[DetectionIndex, int, int]:
    """Return the index with boxes clipped and those without area dropped, and how many were."""
    boxes = index.boxes_xyxy
    finite = np.isfinite(boxes).all(axis=1)
    report.errors += [f"{index.where(int(box))}: the box is not finite" for box in np.flatnonzero(~finite)]
    limits = np.tile(index.sizes_hw[:, ::-1], 2)[index.image_rows].astype(np.float32)  # (T, 4): W, H, W, H
    clipped_boxes = np.clip(boxes, 0, limits).astype(np.float32)
    sides = clipped_boxes[:, 2:] - clipped_boxes[:, :2]
    keep = np.asarray(finite & (sides > _TOLERANCE_PX).all(axis=1), np.bool_)
    clipped = keep & (np.abs(clipped_boxes - boxes) > _TOLERANCE_PX).any(axis=1)
    cleaned = replace(index, boxes_xyxy=clipped_boxes).keep_boxes(keep)
    return cleaned, int(clipped.sum()), int((~keep).sum())


def _row(split: str, index: DetectionIndex, broken: int, clipped: int, dropped: int) -> tuple[str, ...]:
    empty = int((np.diff(index.offsets) == 0).sum())
    flags = int(index.crowd.sum()), int(index.difficult.sum())
    return (split, *map(str, (len(index), index.num_boxes, *flags, empty, broken, clipped, dropped)))


def _check_examples(index: DetectionIndex, split: str, report: Report) -> None:
    """Note classes without examples; to train without any example at all is an error."""
    usable = (index.labels >= 0) & ~index.crowd & ~index.difficult
    counts = np.bincount(index.labels[usable], minlength=len(index.class_names))
    if not usable.any():
        sentence = f"{split} ({index.source}) has no example of any class: {len(index)} images without a usable box"
        (report.errors if split == "train" else report.warnings).append(sentence)
    elif lacking := [name for name, count in zip(index.class_names, counts.tolist(), strict=True) if not count]:
        report.warnings.append(f"{split} has no example of {len(lacking)} classes: {_listed(lacking)}")


def _shared_images(
    first: str, index: DetectionIndex, headers: list[Header], second: str, other: DetectionIndex, others: list[Header]
) -> list[str]:
    """Note images of the same bytes in both splits; a file is read in full only where length and beginning agree."""
    mine: list[tuple[Path, object]] = [(index.path(i), header.num_bytes) for i, header in enumerate(headers)]
    theirs: list[tuple[Path, object]] = [(other.path(i), header.num_bytes) for i, header in enumerate(others)]
    paths, other_paths = _agreeing(mine, theirs)
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        for num_bytes in (_HEAD_BYTES, -1):
            digest = functools.partial(_digest, num_bytes=num_bytes)
            mine = list(zip(paths, pool.map(digest, paths), strict=True))
            theirs = list(zip(other_paths, pool.map(digest, other_paths), strict=True))
            paths, other_paths = _agreeing(mine, theirs)
    if not other_paths:
        return []
    return [
        f"{len(other_paths)} images of {second} are in {first} too, so its scores will flatter: "
        f"{_listed([path.name for path in other_paths], 3)}"
    ]


def _agreeing(
    mine: Sequence[tuple[Path, object]], theirs: Sequence[tuple[Path, object]]
) -> tuple[list[Path], list[Path]]:
    """Return the paths on either side whose key is found on the other side too."""
    common = {key for _, key in mine} & {key for _, key in theirs}
    return [path for path, key in mine if key in common], [path for path, key in theirs if key in common]


def _digest(path: Path, num_bytes: int) -> bytes:
    """Return a hash of a file's first bytes, of the whole file with -1."""
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(num_bytes), digest_size=16).digest()


def _listed(names: Iterable[str], most: int = _SHOWN, comma: str = ", ") -> str:
    texts = list(names)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return comma.join(texts[:most]) + more
