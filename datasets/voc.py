"""Pascal VOC: one XML file per image, splits listed in ImageSets.

Corners: VOC counts pixels from 1 and includes the last one, so a box (1, 1, W, H) covers the image; it becomes
(xmin - 1, ymin - 1, xmax, ymax). Some tools write the same tags counted from 0; objects cut by the left or top edge
tell which: where, over all files under the root, more corners start at 0 than at 1, nothing is shifted and a note says
so. A box whose corners coincide in x or y as written stays without extent (in the wild that is a stray click, not an
object of one pixel).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from effdense.datasets.class_names import read_class_file
from effdense.datasets.index import DetectionIndex, Float64, pack_names
from effdense.datasets.layout import SPLIT_NAMES, existing_folder, what_is_there
from effdense.datasets.listing import is_litter, list_images
from effdense.datasets.splits import (
    UNLISTED_SPLITS,
    find_lists,
    hashed_rows,
    in_order,
    listed_rows,
    lists_of_split,
    no_split,
    split_names,
)
from effdense.datasets.voc_xml import VocFile, parse_voc
from effdense.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes of the VOC challenges 2007-2012, in their own order."""

_SHOWN = 10
_REMEDY = "Take the lines out, or add files (one without any <object> for an image without objects)"


@dataclass(frozen=True)
class _Folders:
    """Where a data set's parts lie; the XML of name "x" is ``annotations / "x.xml"``."""

    root: Path
    annotations: Path
    images: Path


def open_voc(root: Path, split: str) -> DetectionIndex:
    """Open one split of a Pascal VOC data set.

    Args:
        root: the folder with Annotations, or one with VOC2012 or VOCdevkit/VOC2012 in it; a folder of XML files beside
            their images, or of such folders named train, valid and test, will do as well.
        split: "train", "val", "trainval", "test", or any list in ImageSets/Main. Without ImageSets, "train" takes the
            four fifths of the images whose names have the smaller hash, and "val" the rest.

    Raises:
        UserError: no such layout, split or file, or an annotation that cannot be used (names file and line).
    """
    folders = _find_folders(existing_folder(root))
    whole, names = _open_whole(folders)
    rows, note = _split_rows(folders, names, split)
    index = whole.select(rows)
    return replace(
        index,
        split=split,
        image_ids=np.arange(1, len(index) + 1, dtype=np.int64),
        annotation_ids=np.arange(1, index.num_boxes + 1, dtype=np.int64),
        notes=whole.notes + note,
    )


def voc_splits(root: Path) -> list[str]:
    """Return the splits that a folder has lists for, or those that are made where it has none."""
    folders = _find_folders(existing_folder(root))
    if lists := _split_lists(folders):
        return in_order(lists)
    return _split_folders(folders) or list(UNLISTED_SPLITS)


def voc_bases(root: Path) -> list[Path]:
    """Return the folders in which a VOC data set may lie: the one named, or that of a year in it, the newest first."""
    return [root, *sorted(root.glob("VOCdevkit/VOC20*"), reverse=True), *sorted(root.glob("VOC20*"), reverse=True)]


def _find_folders(root: Path) -> _Folders:
    for base in voc_bases(root):
        for name in ("Annotations", "annotations"):
            if (base / name).is_dir() and _annotation_paths(base / name):
                images = [base / folder for folder in ("JPEGImages", "images", "Images") if (base / folder).is_dir()]
                return _Folders(base, base / name, images[0] if images else base / name)
    if any(_annotation_paths(root, f"{folder}*.xml") for folder in ("", *(f"{s}/" for s in _all_split_names()))):
        return _Folders(root, root, root)
    raise UserError(
        f"{root} does not look like Pascal VOC: looked for Annotations/*.xml in it, in VOC2012 and in "
        f"VOCdevkit/VOC2012, and for *.xml beside images in it and in train, valid, test. {what_is_there(root)}"
    )


def _annotation_paths(folder: Path, pattern: str = "**/*.xml") -> list[str]:
    """Return the XML files of a folder, relative to it and sorted, but for what tools leave behind."""
    paths = (path.relative_to(folder) for path in folder.glob(pattern))
    return sorted(path.as_posix() for path in paths if not is_litter(path))


def _all_split_names() -> list[str]:
    return [name for names in SPLIT_NAMES.values() for name in names]


def _open_whole(folders: _Folders) -> tuple[DetectionIndex, tuple[str, ...]]:
    """Read every annotation under the root, so that classes and the counting of pixels do not depend on the split."""
    paths = _annotation_paths(folders.annotations)
    stats = [(folders.annotations / path).stat() for path in paths]
    classes_file = folders.root / "classes.txt"
    stamp = classes_file.stat().st_mtime_ns if classes_file.is_file() else 0
    signature = hash((tuple(paths), tuple((stat.st_mtime_ns, stat.st_size) for stat in stats), stamp))
    return _read_whole(folders, tuple(paths), signature)


@functools.lru_cache(maxsize=1)
def _read_whole(folders: _Folders, paths: tuple[str, ...], signature: int) -> tuple[DetectionIndex, tuple[str, ...]]:
    """Read the given annotation files; remembered, as training opens two splits of one root.

    Args:
        folders: where they lie.
        paths: relative to the folder of annotations.
        signature: changes when any of the files does.
    """
    del signature
    files = _parse_all(folders, paths)
    names = tuple(path.removesuffix(".xml") for path in paths)
    found = sorted({item.name for file in files for item in file.objects})
    class_names = _class_names(folders.root, found)
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in found if name not in label_of]
    label_of |= {name: -1 - k for k, name in enumerate(unknown)}
    objects = [item for file in files for item in file.objects]
    written = np.array([item.corners for item in objects], np.float64).reshape(-1, 4)
    corners, notes = _zero_based(written)
    sides = corners[:, 2:] - corners[:, :2]
    counts = np.array([len(file.objects) for file in files], np.int64)
    index = DetectionIndex(
        name="voc",
        split="",
        source=folders.annotations,
        images_dir=folders.images,
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        file_names=pack_names(_image_files(folders.images, names, files)),
        image_ids=np.arange(1, len(files) + 1, dtype=np.int64),
        sizes_hw=np.array([file.size_hw for file in files], np.int64).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=corners.astype(np.float32),
        boxes_written_xywh=np.concatenate([corners[:, :2], sides], axis=1),
        areas=np.maximum(sides, 0).prod(axis=1),
        labels=np.array([label_of[item.name] for item in objects], np.int64),
        crowd=np.zeros(len(objects), np.bool_),
        difficult=np.array([item.difficult for item in objects], np.bool_),
        annotation_ids=np.arange(1, len(objects) + 1, dtype=np.int64),
        lines=np.array([item.line for item in objects], np.int32),
        annotation_names=pack_names(paths),
        unknown_names=tuple(unknown),
        notes=notes,
    )
    return index, names


def _parse_all(folders: _Folders, paths: Sequence[str]) -> list[VocFile]:
    files, faults = [], []
    for path in paths:
        try:
            files.append(parse_voc(folders.annotations / path))
        except UserError as error:
            faults.append(str(error))
    if faults:
        more = f"\nand {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError("\n".join(faults[:_SHOWN]) + more)
    return files


def _zero_based(written: Float64) -> tuple[Float64, tuple[str, ...]]:
    """Return corners with exclusive right and bottom edges, counted from 0, (T, 4), and notes; see the module."""
    starts = np.floor(written[:, :2])
    zeros, ones = int((starts == 0).sum()), int((starts == 1).sum())
    if zeros > ones:
        return written, (f"{zeros} boxes start at 0 and {ones} at 1: corners are taken as counted from 0",)
    no_extent = written[:, 2:] == written[:, :2]  # (T, 2)
    low = written[:, :2] - 1
    return np.concatenate([low, np.where(no_extent, low, written[:, 2:])], axis=1), ()


def _class_names(root: Path, found: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in a stable order: of classes.txt, or VOC's own, or else sorted."""
    if classes := read_class_file(root):
        return classes.object_names
    return VOC_CLASSES if found and set(found) <= set(VOC_CLASSES) else tuple(found)


def _image_files(folder: Path, names: Sequence[str], files: Sequence[VocFile]) -> list[str]:
    """Return the image of each annotation, relative to ``folder``.

    That is the file of the same name as the XML; where several differ by extension, the one that <filename> says; where
    there is none, the one that <filename> says. <filename> comes last because copies and renames leave it stale.
    """
    listed = {parent: list_images(folder / parent) for parent in {PurePosixPath(name).parent for name in names}}
    result = []
    for name, file in zip(names, files, strict=True):
        parent, stem = PurePosixPath(name).parent, PurePosixPath(name).name
        stated = PurePosixPath(file.filename.replace("\\", "/")).name
        same_stem = listed[parent].get(stem, [])
        if stated in same_stem or (not same_stem and stated in listed[parent].get(PurePosixPath(stated).stem, [])):
            chosen = stated
        else:
            chosen = same_stem[0] if same_stem else stated or f"{stem}.jpg"
        result.append((parent / chosen).as_posix())
    return result


def _split_lists(folders: _Folders) -> dict[str, Path]:
    """Return the list of each split: from Main, else Segmentation, else ImageSets itself."""
    return find_lists(folders.root, ("ImageSets/Main", "ImageSets/Segmentation", "ImageSets"))


def _split_folders(folders: _Folders) -> list[str]:
    return [split for split, written in SPLIT_NAMES.items() if any((folders.annotations / s).is_dir() for s in written)]


def _split_rows(folders: _Folders, names: Sequence[str], split: str) -> tuple[list[int], tuple[str, ...]]:
    """Return the positions of a split's images among ``names``, and notes."""
    if lists := _split_lists(folders):
        if not (paths := lists_of_split(lists, split)):
            raise no_split(folders.root, split, list(lists))
        return [row for path in paths for row in listed_rows(path, names, _lacks, _REMEDY)], ()
    if found := _split_folders(folders):
        rows = [row for row, name in enumerate(names) if PurePosixPath(name).parts[0] in split_names(split)]
        if not rows:
            raise no_split(folders.root, split, found)
        return rows, ()
    if split not in UNLISTED_SPLITS:
        raise no_split(folders.root, split, UNLISTED_SPLITS)
    rows, train = hashed_rows(names, split)
    note = f"{folders.root} has no ImageSets: {train} images are train and {len(names) - train} val, by name"
    return rows, (note,)


def _lacks(name: str) -> str:
    return f"has no annotation file {name}.xml"
