"""Label maps in files, scored against the truth in files: two folders of index PNGs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from effdense.cores import available_cores
from effdense.datasets.listing import images_below
from effdense.datasets.mask_files import FOREGROUND_VALUE, MASK_SUFFIXES, read_values
from effdense.errors import UserError
from effdense.tasks.segmentation.metrics.boundary import BoundaryIou
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.tasks.segmentation.metrics.scores import SegmentationScores
from effdense.types import IGNORE_INDEX, UInt8

log = logging.getLogger(__name__)

_MOST_THREADS = 8
_PAIRS_AT_ONCE = 16
"""Pairs that a thread counts before it hands over its counts."""


@dataclass(frozen=True, eq=False)
class FolderScores:
    """What a folder of predictions scores.

    Attributes:
        scores: what the confusion matrix says.
        boundary: Boundary IoU, where it was asked for.
        num_images: pairs of files.
    """

    scores: SegmentationScores
    boundary: BoundaryIou | None
    num_images: int


def score_folders(
    predictions: Path | str,
    truth: Path | str,
    num_classes: int,
    *,
    class_names: Sequence[str] | None = None,
    boundary: bool = True,
    binary: bool = False,
) -> FolderScores:
    """Score the masks in a folder against those of the same names in another, folders within included.

    Suffixes may differ. A mask is read as indices, whatever kind of image it is (see `effdense.datasets.mask_files`).

    Args:
        predictions: the folder with a mask for each of the truth's; further ones are said and left out.
        truth: the folder that says what there is to score; 255 is ignored.
        num_classes: K; a mask's values are 0 to K - 1.
        class_names: (K,), by default the numbers.
        boundary: also Boundary IoU, which costs about as much as reading the files.
        binary: the masks of both folders hold 0 and 255, and 255 means class 1.

    Raises:
        UserError: a folder is missing or empty, a mask is missing, broken, or of another size than its truth, or a
            value is no class; the message names the file, and the value and where it is. Or of two classes the second
            is neither in the truth nor predicted, and 255 most likely means it.
    """
    predictions, truth = Path(predictions), Path(truth)
    names = tuple(class_names) if class_names is not None else tuple(str(label) for label in range(num_classes))
    if len(names) != num_classes:
        raise UserError(f"{len(names)} class names for {num_classes} classes")
    if binary and num_classes != 2:
        raise UserError(f"binary masks have 2 classes, not {num_classes}")
    pairs = _match(predictions, truth)
    parts = [pairs[start : start + _PAIRS_AT_ONCE] for start in range(0, len(pairs), _PAIRS_AT_ONCE)]
    total = _Counts.empty(num_classes, boundary)
    with ThreadPoolExecutor(min(_MOST_THREADS, available_cores())) as pool:
        try:
            for counts in pool.map(partial(_count, num_classes=num_classes, boundary=boundary, binary=binary), parts):
                total.merge(counts)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    scores = SegmentationScores.of(total.confusion, names)
    if num_classes == 2 and total.ignored and not scores.true_pixels[1]:
        found = f"{truth}: its masks hold 0 and 255 alone, and 255 is ignored"
        if not scores.predicted_pixels[1]:
            raise UserError(
                f"{found}, so that only class 0 would be scored; if 255 means class 1, say so with --binary-masks"
            )
        log.warning("%s, so class 1 is only ever wrong; if 255 means class 1, say so with --binary-masks", found)
    return FolderScores(scores, total.boundary, len(pairs))


@dataclass
class _Counts:
    confusion: ConfusionMatrix
    boundary: BoundaryIou | None
    ignored: bool = False

    @classmethod
    def empty(cls, num_classes: int, boundary: bool) -> _Counts:
        return cls(ConfusionMatrix(num_classes), BoundaryIou(num_classes) if boundary else None)

    def merge(self, other: _Counts) -> None:
        self.confusion.merge(other.confusion)
        if self.boundary is not None and other.boundary is not None:
            self.boundary.merge(other.boundary)
        self.ignored |= other.ignored


def _match(predictions: Path, truth: Path) -> list[tuple[Path, Path]]:
    """Return the files that belong together, truth first."""
    found, wanted = _masks_in(predictions, "--predictions"), _masks_in(truth, "--annotations")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{predictions}: {len(missing)} of {len(wanted)} masks are missing, the first for "
            f"{truth / wanted[missing[0]]}; a prediction has the name of its truth, in the same folder within"
        )
    extra = [name for name in found if name not in wanted]
    if extra:
        first = predictions / found[extra[0]]
        log.warning("%d masks have no truth in %s and are left out, the first is %s", len(extra), truth, first)
    return [(truth / wanted[name], predictions / found[name]) for name in wanted]


def _masks_in(folder: Path, setting: str) -> dict[str, str]:
    if not folder.is_dir():
        raise UserError(f"{setting} {folder} is no folder; expected one with a mask for each image, as index PNGs")
    masks = images_below(folder, MASK_SUFFIXES)
    if not masks:
        raise UserError(f"{setting} {folder} holds no masks; expected index PNGs")
    return masks


def _count(pairs: list[tuple[Path, Path]], *, num_classes: int, boundary: bool, binary: bool) -> _Counts:
    counts = _Counts.empty(num_classes, boundary)
    for true_path, predicted_path in pairs:
        truth, predicted = _read(true_path, binary), _read(predicted_path, binary)
        where = f"{predicted_path} against {true_path}"
        counts.confusion.update(truth, predicted, where=where)
        if counts.boundary is not None:
            counts.boundary.update(truth, predicted, where=where)
        counts.ignored |= bool((truth == IGNORE_INDEX).any())
    return counts


def _read(path: Path, binary: bool) -> UInt8:
    """Return a file's labels; of a binary one 0 and 1."""
    if not binary:
        return read_values(path)
    values = read_values(path, one_bit=FOREGROUND_VALUE)
    foreground = values == FOREGROUND_VALUE
    stray = np.flatnonzero(~foreground & (values != 0))
    if len(stray):
        y, x = np.unravel_index(int(stray[0]), values.shape)
        raise UserError(f"mask {path}: value {values[y, x]} at x {x}, y {y}, but a binary mask holds 0 and 255 alone")
    return np.asarray(foreground, np.uint8)
