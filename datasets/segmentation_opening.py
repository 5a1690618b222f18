"""One door to every data set with masks: by name, folder and split."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from effdense.datasets.class_names import BACKGROUND, refuse_strangers, renumbering_note
from effdense.datasets.coco import coco_splits, find_annotations
from effdense.datasets.coco_instances import open_coco_instances
from effdense.datasets.coco_panoptic import open_coco_panoptic
from effdense.datasets.demo import DEMO_CLASSES, DEMO_SPLITS, demo_folder
from effdense.datasets.index import pack_names
from effdense.datasets.layout import existing_folder
from effdense.datasets.mask_classes import MaskClasses, found_classes, given_classes, no_classes, refuse_binary
from effdense.datasets.mask_files import MaskFiles
from effdense.datasets.mask_folders import find_mask_folders, find_voc_masks, open_masks, splits_of
from effdense.datasets.segmentation_index import RelabelledMasks, SegmentationIndex
from effdense.datasets.voc import VOC_CLASSES
from effdense.errors import UserError, nearest
from effdense.types import IGNORE_INDEX

SEGMENTATION_DATASETS = ("demo", "voc", "coco", "folder")
"""What ``--dataset`` may name."""

LABELS = ("auto", "masks", "instances", "panoptic")
"""What masks may be made of: "auto" is whatever the data set has."""

Labels = Literal["auto", "masks", "instances", "panoptic"]

VOC_MASK_CLASSES = (BACKGROUND, *VOC_CLASSES)
"""The 21 classes of VOC's segmentation challenges; 255 is void."""

_IN_PANOPTIC = b'"segments_info"'


def open_segmentation(
    name: str,
    root: Path | None,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    binary: bool = False,
    labels: Labels = "auto",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SegmentationIndex:
    """Open one split of a data set with masks.

    Args:
        name: "demo"; "voc" (JPEGImages and SegmentationClass); "folder" (images/ and masks/); "coco".
        root: the folder of the data set; for the demo set the folder to keep it in, or None for the cache.
        split: "train", "val", "trainval", "test", or what the data set itself calls it.
        classes: mask files only: class names, from the value 0 on; else those of the folder's classes.txt, else VOC's.
        binary: mask files only: they hold 0 and 255, and 255 is class 1 and not void.
        labels: COCO only: "instances" paints objects over a background, "panoptic" reads panoptic PNGs; "auto" takes
            instances where there are any.
        annotations: COCO only: the annotation file, where the folder has no known layout.
        images: COCO only: the folder of the images that ``annotations`` lists.

    Raises:
        UserError: unknown name, arguments that do not go together, nothing such in the folder, masks that look binary
            and are not said to be, or unusable files.
    """
    check_segmentation_arguments(
        name, root, classes=classes, binary=binary, labels=labels, annotations=annotations, images=images
    )
    if name == "coco":
        return _open_coco(root, split, labels, annotations, images)
    if name == "demo":
        return _open_demo(root, split)
    assert root is not None
    return _open_mask_files(name, root, split, classes, binary)


def check_segmentation_arguments(
    name: str,
    root: Path | None,
    *,
    classes: Sequence[str] | None = None,
    binary: bool = False,
    labels: Labels = "auto",
    annotations: Path | None = None,
    images: Path | None = None,
) -> None:
    """See that the arguments of `open_segmentation` go together; looks at no file.

    Raises:
        UserError: they do not, or the name is unknown.
    """
    _check_arguments(name, root, labels, annotations, images)
    _check_mask_arguments(name, classes, binary)


def available_segmentation_splits(name: str, root: Path | None, *, labels: Labels = "auto") -> list[str]:
    """Return the splits that can be opened, our own names first.

    Raises:
        UserError: unknown name, or no such data set in the folder.
    """
    _check_arguments(name, root, labels, None, None)
    if name == "demo":
        return list(DEMO_SPLITS)
    assert root is not None
    if name == "coco":
        existing_folder(root)
        kinds = ("instances", "panoptic") if labels == "auto" else (labels,)
        return next((found for kind in kinds if (found := coco_splits(root, kind))), [])
    return splits_of(find_voc_masks(root) if name == "voc" else find_mask_folders(root))


def match_segmentation_classes(
    index: SegmentationIndex, class_names: Sequence[str], source: object
) -> SegmentationIndex:
    """Return ``index`` with its labels renumbered to these classes, which are matched by name.

    Args:
        index: typically the validation split.
        class_names: typically those of the training split, or of a model; it may have more than ``index``.
        source: where they come from, for the texts.

    Raises:
        UserError: ``index`` has classes that are not among ``class_names``; names them.
    """
    class_names = tuple(class_names)
    if index.class_names == class_names:
        return index
    refuse_strangers(index.class_names, index.source, class_names, source)
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: len(index.class_names)] = [class_names.index(name) for name in index.class_names]
    added = [name for name in class_names if name not in index.class_names]
    return replace(
        index,
        class_names=class_names,
        masks=RelabelledMasks(index.masks, table),
        notes=(*index.notes, renumbering_note(index.source, source, added)),
    )


def _open_mask_files(
    name: str, root: Path, split: str, classes: Sequence[str] | None, binary: bool
) -> SegmentationIndex:
    folders = find_voc_masks(root) if name == "voc" else find_mask_folders(root)
    if classes is not None:
        known: MaskClasses | None = given_classes(classes, binary=binary)
    else:
        usual = VOC_MASK_CLASSES if name == "voc" else None
        known = found_classes(folders.root, binary=binary, usual=usual, background_is_implied=name == "voc")
    chosen = known or MaskClasses((), ())
    index = open_masks(
        folders,
        split,
        name=name,
        class_names=chosen.names,
        class_values=chosen.values,
        binary=binary,
        notes=chosen.notes,
        void_values=chosen.void_values,
    )
    assert isinstance(index.masks, MaskFiles)
    refuse_binary(index.masks, pack_names(sorted(folders.masks.values())))
    if known is None:
        raise no_classes(index.masks, folders.root)
    return index


def _open_demo(root: Path | None, split: str) -> SegmentationIndex:
    names = (BACKGROUND, *DEMO_CLASSES)
    folders = find_mask_folders(demo_folder(root, split))
    return open_masks(
        folders, split, name="demo", class_names=names, class_values=tuple(range(len(names))), binary=False, notes=()
    )


def _open_coco(
    root: Path | None, split: str, labels: Labels, annotations: Path | None, images: Path | None
) -> SegmentationIndex:
    panoptic = labels == "panoptic" or (labels == "auto" and _is_panoptic(root, split, annotations))
    open_kind = open_coco_panoptic if panoptic else open_coco_instances
    return open_kind(root, split, annotations=annotations, images=images)


def _is_panoptic(root: Path | None, split: str, annotations: Path | None) -> bool:
    """Whether there are panoptic annotations and no instances; of a file that is named, whether it is panoptic."""
    if annotations is not None:
        return _names_segments(annotations)
    assert root is not None
    return not _has_annotations(root, split, "instances") and _has_annotations(root, split, "panoptic")


def _has_annotations(root: Path, split: str, kind: str) -> bool:
    try:
        find_annotations(root, split, kind)
    except UserError:
        return False
    return True


def _names_segments(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_IN_PANOPTIC) >= 0
    except (OSError, ValueError):  # missing or empty: told by who opens it
        return False


def _check_arguments(name: str, root: Path | None, labels: str, annotations: Path | None, images: Path | None) -> None:
    if name not in SEGMENTATION_DATASETS:
        known = ", ".join(SEGMENTATION_DATASETS)
        raise UserError(f"unknown dataset {name!r}, known are {known}{nearest(name, SEGMENTATION_DATASETS)}")
    if labels not in LABELS:
        raise UserError(f"unknown labels {labels!r}, known are {', '.join(LABELS)}{nearest(labels, LABELS)}")
    if name != "coco" and (annotations is not None or images is not None):
        raise UserError(
            f"an annotation file and an image folder can be named for dataset 'coco' only, not for {name!r}"
        )
    if images is not None and annotations is None:
        raise UserError(
            f"image folder {images} is named without its annotation file; name that too (--train-annotations; in "
            "evaluation --annotations)"
        )
    if name == "coco" and labels == "masks":
        raise UserError("dataset 'coco' has instances or panoptic labels; mask files beside images are 'folder'")
    if name != "coco" and labels not in ("auto", "masks"):
        raise UserError(f"labels {labels!r} are of dataset 'coco' alone; {name!r} has mask files")
    if root is None and name != "demo" and annotations is None:
        file = ", or --train-annotations FILE (in evaluation --annotations FILE)" if name == "coco" else ""
        raise UserError(f"dataset {name!r} needs the folder that it lies in: --data-root DIR{file}")


def _check_mask_arguments(name: str, classes: Sequence[str] | None, binary: bool) -> None:
    if name in ("demo", "coco") and classes is not None:
        own = "its own classes" if name == "demo" else "the classes of its annotation file"
        raise UserError(f"dataset {name!r} has {own}; leave out --classes")
    if name in ("demo", "coco") and binary:
        raise UserError(f"dataset {name!r} has no binary masks; leave out --binary-masks")
