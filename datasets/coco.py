"""COCO JSON: boxes of object instances, in the layouts that people have.

The format: https://cocodataset.org/#format-data. Polygons and run lengths are not decoded, unless an object has no box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from effdense.datasets.coco_columns import CocoColumns, read_columns, stable_order
from effdense.datasets.coco_json import Json, load_coco, number_labels, read_classes
from effdense.datasets.index import DetectionIndex, Names, pack_names
from effdense.datasets.layout import SPLIT_NAMES, existing_folder, what_is_there
from effdense.errors import UserError

_LAYOUTS = {
    "instances": (
        "annotations/instances_{s}*.json beside {s}*/ or images/",
        "{s}/_annotations.coco.json beside its images",
        "annotations/{s}.json",
        "{s}.json",
    ),
    "panoptic": ("annotations/panoptic_{s}*.json and panoptic_{s}*/ beside {s}*/ or images/",),
}


def open_coco(
    root: Path | None, split: str, *, annotations: Path | None = None, images: Path | None = None, name: str = "coco"
) -> DetectionIndex:
    """Open one split of a data set in COCO JSON.

    Args:
        root: folder of the data set; not needed where ``annotations`` is given.
        split: "train", "val", "test", or the very name that the files use ("train2014").
        annotations: the annotation file, where the layout is none of the known ones.
        images: the folder of the images, likewise; looked for near the annotation file where not given.
        name: what the data set is called in messages.

    Raises:
        UserError: nothing found (says what was looked for and what is there), or a file that is no such JSON.
    """
    path = annotation_file(root, split, annotations)
    index = _build(read_columns(path), path, split, name)
    return replace(index, images_dir=images_folder(images, path, root, split, index.file_names))


def load_annotations(
    root: Path | None, split: str, annotations: Path | None, kind: str = "instances"
) -> tuple[Json, Path]:
    """Return the content of a split's annotation file, and the file.

    Args:
        root: folder of the data set; not needed where ``annotations`` is given.
        split: as for ``open_coco``.
        annotations: the file, where it was named.
        kind: "instances" or "panoptic".

    Raises:
        UserError: no such file, or it is no COCO JSON.
    """
    path = annotation_file(root, split, annotations, kind)
    return load_coco(path), path


def annotation_file(root: Path | None, split: str, annotations: Path | None, kind: str = "instances") -> Path:
    """Return the annotation file of a split: as named, or else as found; arguments as for ``load_annotations``.

    Raises:
        UserError: nothing was named, or nothing is found.
    """
    if annotations is not None:
        return annotations
    if root is None:
        raise UserError("a COCO data set needs --data-root DIR, or an annotation file")
    return find_annotations(root, split, kind)


def images_folder(named: Path | None, annotations: Path, root: Path | None, split: str, file_names: Names) -> Path:
    """Return the folder of the images: as named, or else the one in which the listed files lie.

    Args:
        named: the folder, where it was named.
        annotations: the annotation file, near which they are looked for.
        root: folder of the data set, where it was named.
        split: as for ``open_coco``.
        file_names: (n,), as the annotation file lists them.

    Raises:
        UserError: no such folder; says where it was looked.
    """
    if named is not None:
        return existing_folder(named, "image folder")
    return _find_images(annotations, root, split, file_names)


def find_annotations(root: Path, split: str, kind: str = "instances") -> Path:
    """Return the annotation file of a split, of the newest year where there are several.

    Args:
        root: folder of the data set.
        split: as for ``open_coco``.
        kind: "instances", or "panoptic" for the JSON that belongs to a folder of panoptic PNGs.

    Raises:
        UserError: no such file; lists what was looked for and what is there.
    """
    if found := list(_candidates(existing_folder(root), split, kind)):
        return found[0]
    looked_for = "; ".join(layout.format(s=split) for layout in _LAYOUTS[kind])
    known = f" It has annotations for {', '.join(splits)}." if (splits := coco_splits(root, kind)) else ""
    what = "COCO annotations" if kind == "instances" else f"COCO {kind} annotations"
    raise UserError(
        f"{root} holds no {what} for split {split!r}: looked for {looked_for}. {what_is_there(root)}{known} "
        "Name any other file and its images: --train-annotations and --train-images (or --val-...) in training, "
        "--annotations and --images in evaluation"
    )


def coco_splits(root: Path, kind: str = "instances") -> list[str]:
    """Return which of train, val and test a folder has annotations for."""
    return [split for split in SPLIT_NAMES if any(_candidates(root, split, kind))]


def _candidates(root: Path, split: str, kind: str) -> Iterator[Path]:
    for written in SPLIT_NAMES.get(split, (split,)):
        pattern = re.compile(rf"{kind}_{re.escape(written)}(\d{{4}})?\.json")
        for folder in (root / "annotations", root):
            yield from sorted(
                (path for path in folder.glob(f"{kind}_{written}*.json") if pattern.fullmatch(path.name)),
                reverse=True,
            )
        if kind == "instances":
            for relative in (f"{written}/_annotations.coco.json", f"annotations/{written}.json", f"{written}.json"):
                if (root / relative).is_file():
                    yield root / relative


def _find_images(annotations: Path, root: Path | None, split: str, file_names: Names) -> Path:
    """Return the folder in which the listed files lie: the first candidate that holds one of the first few."""
    # instances_train2017.json -> train2017
    written = annotations.stem.removeprefix("instances_").removeprefix("panoptic_")
    bases = [base for base in (root, annotations.parent.parent, annotations.parent) if base is not None]
    aliases = SPLIT_NAMES.get(split, (split,))
    names = [written, *aliases, "images", *(f"images/{s}" for s in (written, *aliases)), "."]
    if annotations.name == "_annotations.coco.json":
        bases, names = [annotations.parent], [".", "images"]
    folders = list(dict.fromkeys(base / name for base in bases for name in names))
    probes = [name.decode() for name in file_names[:20].tolist()]
    for folder in folders:
        if folder.is_dir() and any((folder / probe).is_file() for probe in probes):
            return folder
    if not probes:
        return annotations.parent
    looked_in = ", ".join(str(folder) for folder in folders if folder.is_dir())
    raise UserError(
        f"the images of {annotations} were not found: looked for {probes[0]} in {looked_in}; "
        "name their folder with --train-images (or --val-images) in training, --images in evaluation"
    )


def _build(columns: CocoColumns, path: Path, split: str, name: str) -> DetectionIndex:
    order = stable_order(columns.image_rows)
    classes, notes = read_classes(columns.categories, columns.category_ids, path)
    labels, unknown_names = number_labels(columns.category_ids, classes)
    written = columns.boxes_xywh[order]
    corners = np.empty(written.shape, np.float32)
    corners[:, :2], corners[:, 2:] = written[:, :2], written[:, :2] + written[:, 2:]
    counts = np.bincount(columns.image_rows, minlength=len(columns.file_names))
    return DetectionIndex(
        name=name,
        split=split,
        source=path,
        images_dir=path.parent,
        class_names=tuple(classes.values()),
        category_ids=tuple(classes),
        file_names=pack_names(columns.file_names),
        image_ids=columns.image_ids,
        sizes_hw=columns.sizes_hw,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=corners,
        boxes_written_xywh=written,
        areas=columns.areas[order],
        labels=labels[order],
        crowd=columns.crowd[order],
        difficult=columns.ignored[order],
        annotation_ids=columns.annotation_ids[order],
        lines=np.zeros(len(order), np.int32),
        annotation_names=pack_names([]),
        unknown_names=unknown_names,
        notes=notes,
    )
