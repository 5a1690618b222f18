"""The doctor of masks: looks at labelled pixels before the first training step, and counts them.

Every mask is decoded once, in threads, for a value that is no class stands anywhere in it. Of the images the headers
are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import cv2
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
    table_lines,
)
from effdense.datasets.images import Header, read_header, read_rgb, size_mismatch
from effdense.datasets.index import stated_size
from effdense.datasets.mask_classes import binary_sentence
from effdense.datasets.mask_files import MaskFiles
from effdense.datasets.segmentation_index import LabelError, MaskSource, RelabelledMasks, SegmentationIndex
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX, Int64, UInt8

COLUMNS = ("split", "images", "labelled", "ignored", "blank", "broken")
"""Headings of ``MaskReport.rows``. labelled: share of the pixels that have a class; ignored: share of 255; blank:
images without a labelled pixel; broken: images left out."""

CLASS_COLUMNS = ("class", "pixels", "images")
"""Headings of ``MaskReport.class_rows``. pixels: share of the labelled pixels; images: how many show the class."""

_EXACT = 2**24
"""OpenCV counts in float32, which is exact up to here."""


@dataclass
class MaskReport:
    """What the doctor found.

    Attributes:
        errors: sentences that stop a run; each names a file.
        warnings: sentences worth reading.
        rows: one per split, in the order of ``COLUMNS``.
        class_rows: one per class of the split "train", in the order of ``CLASS_COLUMNS``.
        notes: what was decided on reading.
        sound: the indices without what is broken, sizes filled in as the masks have them.
        pixel_counts: (K,), labelled pixels of each class, by split.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    class_rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sound: dict[str, SegmentationIndex] = field(default_factory=dict)
    pixel_counts: dict[str, Int64] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return tables, notes, warnings and errors as lines of text."""
        classes = table_lines(CLASS_COLUMNS, self.class_rows) if self.class_rows else []
        sentences = {"note": self.notes, "warning": self.warnings, "error": self.errors}
        return classes + report_lines(COLUMNS, self.rows, sentences)

    def raise_errors(self) -> None:
        """Raise UserError with the first ten errors, if there are any."""
        raise_first(self.errors)


@dataclass(frozen=True)
class _Seen:
    """One image and its mask: the image's header, the mask's size, and which values it has how often."""

    header: Header
    size_hw: tuple[int, int]
    labels: UInt8
    pixels: Int64


@dataclass(frozen=True)
class _Tally:
    """Values 0 to 255 over a split: pixels (256,), images that show them (256,), and images without a class."""

    pixels: Int64
    images: Int64
    blank: int


def examine_masks(splits: Mapping[str, SegmentationIndex], *, skip_broken: bool = False) -> MaskReport:
    """Examine the splits of a data set; decodes every mask and reads the header of every image.

    Args:
        splits: indices by role; the one called "train" must have something to learn from.
        skip_broken: leave out images and masks that are missing or unreadable and count them, instead of calling them
            errors. Every image is then decoded once, as one that is corrupt in the middle would stop the run when its
            turn comes. A value that is no class and a mask of another size stay errors.

    Returns:
        The report; call ``raise_errors`` before using ``sound`` or ``pixel_counts``.
    """
    report = MaskReport()
    headers: dict[str, list[Header]] = {}
    binary: dict[str, str] = {}
    for split, index in splits.items():
        report.notes += [note for note in index.notes if note not in report.notes]
        report.errors += duplicate_ids(index.source, {"image": index.image_ids})
        report.warnings += duplicate_files(index.file_names, split)
        sound, seen, broken = _check_files(index, report, split, skip_broken)
        tally = _tally(seen)
        headers[split] = [one.header for one in seen]
        report.sound[split] = sound
        report.pixel_counts[split] = tally.pixels[: len(index.class_names)]
        report.rows.append(_row(split, len(sound), tally, broken))
        if split == "train":
            report.class_rows = _class_rows(index.class_names, tally)
        if files := _check_labels(index, tally, split, report):
            binary[split] = binary_sentence(files)
    # A small split may show nothing but background and void; where one is trained on, or all are so, it is a mistake.
    for split, sentence in binary.items():
        if split == "train" or len(binary) == len(splits):
            report.errors.append(sentence)
        else:
            report.warnings.append(f"{split}: {sentence}")
    for first, second in combinations(splits, 2):
        report.warnings += shared_images(
            first, report.sound[first], headers[first], second, report.sound[second], headers[second]
        )
    return report


def _check_files(
    index: SegmentationIndex, report: MaskReport, split: str, skip_broken: bool
) -> tuple[SegmentationIndex, list[_Seen], int]:
    """Return the index without broken files, its sizes filled in, what was seen of it, and how many were broken."""
    outcomes = look_at_each(lambda position: _look(index, position, skip_broken), len(index), decode=True)
    report.errors += [str(outcome) for outcome in outcomes if isinstance(outcome, LabelError)]
    faults = [
        str(outcome) for outcome in outcomes if isinstance(outcome, UserError) and not isinstance(outcome, LabelError)
    ]
    if not skip_broken:
        report.errors += faults
    elif faults:
        report.warnings.append(left_out(split, faults))
    seen = [outcome for outcome in outcomes if isinstance(outcome, _Seen)]
    kept = index.select([position for position, outcome in enumerate(outcomes) if isinstance(outcome, _Seen)])
    sizes = np.array([one.size_hw for one in seen], np.int64).reshape(-1, 2)
    return replace(kept, sizes_hw=sizes), seen, len(faults)


def _look(index: SegmentationIndex, position: int, decode_image: bool) -> _Seen:
    """Read a mask and the header of its image; with ``decode_image`` the image's pixels too, as in training.

    Raises:
        UserError: either is missing or broken; `LabelError` for what is sound and cannot be used.
    """
    path, stated = index.path(position), stated_size(index.sizes_hw, position)
    header = read_header(path)
    if stated is not None and not header.fits(stated):
        raise LabelError(size_mismatch(path, header, stated))
    mask = index.masks.read(position, stated or header.size_hw)
    size_hw = (mask.shape[0], mask.shape[1])
    if size_hw != (stated or header.size_hw):
        index.check_size(position, size_hw)
    if decode_image:
        read_rgb(path, size_hw)
    counts = count_labels(mask)
    labels = np.flatnonzero(counts)
    return _Seen(header, size_hw, labels.astype(np.uint8), counts[labels])


def count_labels(mask: UInt8) -> Int64:
    """Return how many pixels of a mask, (H, W), have each value, (256,)."""
    counts = np.zeros(256, np.int64)
    rows = max(1, _EXACT // mask.shape[1])
    for top in range(0, mask.shape[0], rows):
        histogram = cv2.calcHist([mask[top : top + rows]], [0], None, [256], [0, 256])
        counts += histogram.reshape(-1).astype(np.int64)
    return counts


def _tally(seen: Sequence[_Seen]) -> _Tally:
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for one in seen:
        pixels[one.labels] += one.pixels
        images[one.labels] += 1
    return _Tally(pixels, images, sum((one.labels == IGNORE_INDEX).all() for one in seen))


def _row(split: str, num_images: int, tally: _Tally, broken: int) -> tuple[str, ...]:
    total, ignored = int(tally.pixels.sum()), int(tally.pixels[IGNORE_INDEX])
    shares = _share(total - ignored, total), _share(ignored, total)
    return (split, str(num_images), *shares, str(tally.blank), str(broken))


def _class_rows(class_names: Sequence[str], tally: _Tally) -> list[tuple[str, ...]]:
    labelled = int(tally.pixels[:IGNORE_INDEX].sum())
    return [
        (name, _share(int(tally.pixels[label]), labelled), str(tally.images[label]))
        for label, name in enumerate(class_names)
    ]


def _share(part: int, whole: int) -> str:
    """Return a share in per cent; a small one never reads as none, nor a large one as all."""
    if part in (0, whole):
        return "0 %" if part == 0 else "100 %"
    percent = 100 * part / whole
    if percent < 0.01:
        return "<0.01 %"
    return f"{min(percent, 99.99):.2f} %"


def _check_labels(index: SegmentationIndex, tally: _Tally, split: str, report: MaskReport) -> MaskFiles | None:
    """Note what masks do not show; to have no image, or to train without any labelled pixel, is an error.

    Returns:
        The files of masks that look binary, if they do.
    """
    where = f"{split} ({index.source})"
    counts = tally.pixels[: len(index.class_names)]
    files = _looking_binary(index.masks, tally)
    if not tally.pixels.any():
        if not report.errors:  # else they say why
            report.errors.append(f"{where} has no image" + (" that is not broken" if len(index) else ""))
    elif files is not None:
        return files
    elif not counts.any():
        sentence = f"{where} has no labelled pixel: its masks are {IGNORE_INDEX}, which is void, from end to end"
        (report.errors if split == "train" else report.warnings).append(sentence)
    elif lacking := [name for name, count in zip(index.class_names, counts.tolist(), strict=True) if not count]:
        report.warnings.append(f"{split} shows no pixel of {len(lacking)} classes: {listed(lacking)}")
    return None


def _looking_binary(masks: MaskSource, tally: _Tally) -> MaskFiles | None:
    """Return the files behind masks that are read as label maps, if they hold 0 and 255 and nothing else."""
    table: UInt8 = np.arange(256, dtype=np.uint8)
    while isinstance(masks, RelabelledMasks):
        table = table[masks.table]
        masks = masks.source
    if not isinstance(masks, MaskFiles) or masks.binary or 0 not in masks.class_values:
        return None
    label_of_0 = int(table[masks.class_values.index(0)])
    return masks if set(np.flatnonzero(tally.pixels).tolist()) == {label_of_0, IGNORE_INDEX} else None
