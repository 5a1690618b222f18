"""One door to data with boxes and masks: one data set that has both, or one for each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from effdense.datasets.data_sources import DataSource
from effdense.datasets.index import DetectionIndex
from effdense.datasets.opening import open_dataset
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.datasets.segmentation_opening import Labels, check_segmentation_arguments, open_segmentation
from effdense.errors import UserError, nearest

MULTITASK_DATASETS = ("demo", "coco", "voc")
"""What ``--dataset`` may name: data sets that can have both."""

_SHOWN = 10
_ONLY_MASKS = (
    "name data with boxes by --det-data KIND:FOLDER and these masks by --seg-data; train_seg and eval_seg work with "
    "masks alone"
)
_ONLY_BOXES = (
    "name data with masks by --seg-data KIND:FOLDER and these boxes by --det-data; train_det and eval_det work with "
    "boxes alone"
)
_SEPARATORS = re.compile(r"[\s_-]+")


def open_multitask(
    name: str,
    root: Path | None,
    split: str,
    *,
    det_data: DataSource | None = None,
    seg_data: DataSource | None = None,
    labels: Labels = "auto",
    classes: Sequence[str] | None = None,
    binary: bool = False,
    annotations: Path | None = None,
    images: Path | None = None,
) -> tuple[DetectionIndex | None, SegmentationIndex | None]:
    """Open one split, boxes and masks.

    Args:
        name: "demo", "coco" or "voc": a data set that has both. Not looked at where one of the next two is given.
        root: its folder; None is the demo set's cache.
        split: "train", "val", "test", or what the data set itself calls it; the same in both of two data sets.
        det_data: where the boxes come from instead.
        seg_data: where the masks come from instead.
        labels: COCO only: what masks are made of, as for ``open_segmentation``.
        classes: mask files only: class names.
        binary: mask files only: 255 is class 1 and not void.
        annotations: COCO only, of a data set that has both: the annotation file.
        images: COCO only: the folder of its images.

    Returns:
        Images with boxes and images with masks. None where the one was named and the other was not.

    Raises:
        UserError: a data set without boxes or without masks (says what was looked for), arguments that do not go
            together, or unusable files.
    """
    if det_data is None and seg_data is None:
        return _open_both(name, root, split, labels, classes, binary, annotations, images)
    if annotations is not None or images is not None:
        named = annotations or images
        raise UserError(
            f"{named} is named beside --det-data or --seg-data; an annotation file and its images go with "
            "--dataset coco alone, which has both labels"
        )
    detection = None if det_data is None else open_dataset(det_data.name, det_data.root, split)
    if seg_data is None:
        return detection, None
    return detection, open_segmentation(
        seg_data.name, seg_data.root, split, classes=classes, binary=binary, labels=labels
    )


def check_class_names(detection_names: Sequence[str], segmentation_names: Sequence[str]) -> None:
    """Refuse two class lists that name one class in two spellings: case, spaces, ``-`` and ``_`` are all that differs.

    A class that only one of them has is normal: the background of masks, stuff that nobody draws boxes around.

    Raises:
        UserError: names both spellings of each such class.
    """
    spelling = {_plain(name): name for name in segmentation_names}
    known = set(segmentation_names)
    pairs = [
        f"{name!r} of the boxes and {spelling[_plain(name)]!r} of the masks"
        for name in detection_names
        if name not in known and _plain(name) in spelling and spelling[_plain(name)] not in detection_names
    ]
    if pairs:
        more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        raise UserError(
            f"the class lists contradict each other: {', '.join(pairs[:_SHOWN])}{more} would be one class in two "
            "spellings; write its name alike in both data sets, or two names where two things are meant"
        )


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name).casefold()


def _open_both(
    name: str,
    root: Path | None,
    split: str,
    labels: Labels,
    classes: Sequence[str] | None,
    binary: bool,
    annotations: Path | None,
    images: Path | None,
) -> tuple[DetectionIndex, SegmentationIndex]:
    if name == "folder":
        raise UserError(f"dataset 'folder' has masks and no boxes: {_ONLY_MASKS}")
    if name not in MULTITASK_DATASETS:
        known = ", ".join(MULTITASK_DATASETS)
        raise UserError(f"unknown dataset {name!r}, known are {known}{nearest(name, MULTITASK_DATASETS)}")
    check_segmentation_arguments(
        name, root, classes=classes, binary=binary, labels=labels, annotations=annotations, images=images
    )
    detection: DetectionIndex | UserError
    segmentation: SegmentationIndex | UserError
    try:
        detection = open_dataset(name, root, split, annotations=annotations, images=images)
    except UserError as error:
        detection = error
    try:
        segmentation = open_segmentation(
            name, root, split, classes=classes, binary=binary, labels=labels, annotations=annotations, images=images
        )
    except UserError as error:
        segmentation = error
    if isinstance(detection, DetectionIndex) and isinstance(segmentation, SegmentationIndex):
        return detection, segmentation
    raise _missing_labels(annotations or root or f"dataset {name!r}", detection, segmentation)


def _missing_labels(place: object, boxes: object, masks: object) -> UserError:
    """Return the error for one data set of which not both labels could be opened.

    Args:
        place: where it lies.
        boxes: the index, or why there is none.
        masks: likewise.
    """
    if not isinstance(masks, UserError):
        return UserError(f"{place} has masks, but no boxes that can be used: {boxes}\nIf there are none: {_ONLY_MASKS}")
    if not isinstance(boxes, UserError):
        return UserError(f"{place} has boxes, but no masks that can be used: {masks}\nIf there are none: {_ONLY_BOXES}")
    if str(boxes) == str(masks):  # the folder is missing, say, or the one file of both is broken
        return boxes
    return UserError(f"{place} has neither boxes nor masks that can be used.\nOf boxes: {boxes}\nOf masks: {masks}")
