"""One door to every data set: by name, folder and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from effdense.datasets.class_names import refuse_strangers, renumbering_note
from effdense.datasets.coco import coco_splits, open_coco
from effdense.datasets.demo import DEMO_SPLITS, open_demo
from effdense.datasets.index import DetectionIndex
from effdense.datasets.layout import existing_folder
from effdense.datasets.voc import open_voc, voc_splits
from effdense.errors import UserError, nearest

DATASETS = ("demo", "coco", "voc")
"""What ``--dataset`` may name."""


def open_dataset(
    name: str,
    root: Path | None,
    split: str,
    *,
    annotations: Path | None = None,
    images: Path | None = None,
) -> DetectionIndex:
    """Open one split of a data set.

    Args:
        name: "demo", "coco" or "voc".
        root: the folder of the data set; for the demo set the folder to keep it in, or None for the cache.
        split: "train", "val", "test", or what the data set itself calls it.
        annotations: COCO only: the annotation file, where the folder has no known layout.
        images: COCO only: the folder of the images that ``annotations`` lists.

    Raises:
        UserError: unknown name, arguments that do not go together, nothing such in the folder, or unusable files.
    """
    _check_arguments(name, root, annotations, images)
    if name == "demo":
        return open_demo(root, split)
    if name == "coco":
        return open_coco(root, split, annotations=annotations, images=images)
    assert root is not None
    return open_voc(root, split)


def available_splits(name: str, root: Path | None) -> list[str]:
    """Return the splits that can be opened, our own names first.

    Raises:
        UserError: unknown name, or no such data set in the folder.
    """
    _check_arguments(name, root, None, None)
    if name == "demo":
        return list(DEMO_SPLITS)
    assert root is not None
    return coco_splits(existing_folder(root)) if name == "coco" else voc_splits(root)


def match_classes(index: DetectionIndex, class_names: Sequence[str], source: object) -> DetectionIndex:
    """Return ``index`` with its labels renumbered to these classes, which are matched by name.

    Classes that only ``class_names`` has are added, since a part of a data set need not list what it does not show.
    Each class keeps the id that ``index`` has for it, so that what is written agrees with its own annotations.

    Args:
        index: typically the validation split.
        class_names: typically those of the training split, or of a model.
        source: where they come from, for the texts.

    Raises:
        UserError: ``index`` has classes that are not among ``class_names``; names them.
    """
    class_names = tuple(class_names)
    if index.class_names == class_names:
        return index
    refuse_strangers(index.class_names, index.source, class_names, source)
    own_ids = dict(zip(index.class_names, index.category_ids, strict=True))
    free = max(index.category_ids, default=0) + 1
    added = [name for name in class_names if name not in own_ids]
    own_ids |= {name: free + position for position, name in enumerate(added)}
    table = np.array([class_names.index(name) for name in index.class_names], np.int64)
    known = index.labels >= 0
    labels = index.labels.copy()
    labels[known] = table[index.labels[known]]
    note = renumbering_note(index.source, source, added)
    return replace(
        index,
        class_names=class_names,
        category_ids=tuple(own_ids[name] for name in class_names),
        labels=labels,
        notes=(*index.notes, note),
    )


def _check_arguments(name: str, root: Path | None, annotations: Path | None, images: Path | None) -> None:
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}, known are {', '.join(DATASETS)}{nearest(name, DATASETS)}")
    if name != "coco" and (annotations is not None or images is not None):
        raise UserError(
            f"an annotation file and an image folder can be named for dataset 'coco' only, not for {name!r}"
        )
    if images is not None and annotations is None:
        raise UserError(
            f"image folder {images} is named without its annotation file; name that too (--train-annotations; in "
            "evaluation --annotations)"
        )
    if name == "voc" and root is None:
        raise UserError("dataset 'voc' needs the folder that it lies in: --data-root DIR")
    if name == "coco" and root is None and annotations is None:
        raise UserError(
            "dataset 'coco' needs the folder that it lies in, --data-root DIR, or --train-annotations FILE "
            "(in evaluation --annotations FILE)"
        )
