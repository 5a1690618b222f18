"""The doctor: looks at labelled data before the first training step.

What would spoil a run is an error; what can be put right is put right and counted; the rest is a short table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from effdense.datasets.doctor_files import (
    duplicate_files,
    duplicate_ids,
    left_out,
    listed,
    look_at_each,
    raise_first,
    report_lines,
    shared_images,
)
from effdense.datasets.images import Header, read_header, read_rgb, size_mismatch
from effdense.datasets.index import DetectionIndex, stated_size
from effdense.errors import UserError

COLUMNS = ("split", "images", "boxes", "crowd", "difficult", "empty", "broken", "clipped", "dropped")
"""Headings of ``Report.rows``. empty: images without a box; broken: images left out; clipped: boxes cut at the image's
edge; dropped: boxes without area."""

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
        sentences = {"note": self.notes, "warning": self.warnings, "error": self.errors}
        return report_lines(COLUMNS, self.rows, sentences)

    def raise_errors(self) -> None:
        """Raise UserError with the first ten errors, if there are any."""
        raise_first(self.errors)


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
        report.errors += duplicate_ids(index.source, {"image": index.image_ids, "annotation": index.annotation_ids})
        report.errors += _unknown_labels(index)
        report.warnings += duplicate_files(index.file_names, split)
        kept, headers, broken = _check_files(index, report, split, skip_broken)
        readable[split] = kept, headers
        sound = _fill_sizes(kept, headers)
        cleaned, clipped, dropped = _clean_boxes(sound, report)
        report.sound[split] = sound
        report.cleaned[split] = cleaned
        report.rows.append(_row(split, cleaned, broken, clipped, dropped))
        _check_examples(cleaned, split, report)
    for first, second in combinations(splits, 2):
        report.warnings += shared_images(first, *readable[first], second, *readable[second])
    return report


def _unknown_labels(index: DetectionIndex) -> list[str]:
    classes = listed(index.class_names) if index.class_names else "none"
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
        report.warnings.append(left_out(split, faults))
    kept = index.select([i for i, outcome in enumerate(outcomes) if isinstance(outcome, Header)])
    headers = [outcome for outcome in outcomes if isinstance(outcome, Header)]
    for position, (header, (height, width)) in enumerate(zip(headers, kept.sizes_hw.tolist(), strict=True)):
        if height and width and not header.fits((height, width)):
            report.errors.append(size_mismatch(kept.path(position), header, (height, width)))
    return kept, headers, len(faults)


def _look_at_files(index: DetectionIndex, decode: bool) -> list[Header | UserError]:
    """Return the header of each image, or why it cannot be read; with ``decode`` its pixels are read as in training."""

    def look(position: int) -> Header:
        path, stated = index.path(position), stated_size(index.sizes_hw, position)
        header = read_header(path)
        if decode and (stated is None or header.fits(stated)):  # another size is an error of its own
            read_rgb(path, stated)
        return header

    return look_at_each(look, len(index), decode=decode)


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
        report.warnings.append(f"{split} has no example of {len(lacking)} classes: {listed(lacking)}")
