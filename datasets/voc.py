"""Pascal VOC: one XML file per image, splits listed in ImageSets.

Corners: VOC counts pixels from 1 and includes the last one, so a box (1, 1, W, H) covers the image; it becomes
(xmin - 1, ymin - 1, xmax, ymax). Some tools write the same tags counted from 0; objects cut by the left or top edge
tell which: where, over all files under the root, more corners start at 0 than at 1, nothing is shifted and a note says
so. A box whose corners coincide in x or y as written stays without extent (in the wild that is a stray click, not an
object of one pixel).
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from effdense.datasets.images import IMAGE_SUFFIXES
from effdense.datasets.index import DetectionIndex, Float64, pack_names
from effdense.datasets.layout import SPLIT_NAMES, existing_folder, what_is_there
from effdense.datasets.voc_xml import VocFile, parse_voc
from effdense.errors import UserError, nearest

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes of the VOC challenges 2007-2012, in their own order."""

_SHOWN = 10
_TRAIN_SHARE = 0.8


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
    usual = ("train", "val", "trainval", "test")
    if lists := _split_lists(folders):
        # Main also holds a list per class, such as aeroplane_train.
        others = [split for split in lists if split.rpartition("_")[2] not in usual]
        return [split for split in usual if split in lists] + others
    return _split_folders(folders) or ["train", "val", "trainval"]


def _find_folders(root: Path) -> _Folders:
    bases = [root, *sorted(root.glob("VOCdevkit/VOC20*"), reverse=True), *sorted(root.glob("VOC20*"), reverse=True)]
    for base in bases:
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
    """Return the XML files of a folder, relative to it and sorted, but for what tools leave behind.

    That is what a name with a leading dot hides (``._a.xml`` of macOS, ``.ipynb_checkpoints``), and ``__MACOSX``.
    """
    paths = (path.relative_to(folder) for path in folder.glob(pattern))
    return sorted(
        path.as_posix() for path in paths if not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    )


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
    path = root / "classes.txt"
    if not path.is_file():
        return VOC_CLASSES if found and set(found) <= set(VOC_CLASSES) else tuple(found)
    rows = [line.strip() for line in _read_lines(path) if line.strip()]
    if all(row.split()[0].isdigit() and len(row.split()) > 1 for row in rows):
        numbered = sorted((int(number), name.strip()) for number, name in (row.split(maxsplit=1) for row in rows))
        names = [name for number, name in numbered if (number, name.lower()) != (0, "background")]
    else:
        names = rows[1:] if rows and rows[0].lower() in ("background", "__background__") else rows
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} names a class twice: {', '.join(twice)}")
    return tuple(names)


def _image_files(folder: Path, names: Sequence[str], files: Sequence[VocFile]) -> list[str]:
    """Return the image of each annotation, relative to ``folder``.

    That is the file of the same name as the XML; where several differ by extension, the one that <filename> says; where
    there is none, the one that <filename> says. <filename> comes last because copies and renames leave it stale.
    """
    listed = {parent: _list_images(folder / parent) for parent in {PurePosixPath(name).parent for name in names}}
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


def _list_images(folder: Path) -> dict[str, list[str]]:
    """Return the images of a folder by their stem, the more common extensions first."""
    by_stem: dict[str, list[str]] = {}
    if not folder.is_dir():
        return by_stem
    entries = [(os.path.splitext(entry), entry) for entry in sorted(os.listdir(folder))]
    images = [(stem, suffix.lower(), entry) for (stem, suffix), entry in entries if suffix.lower() in IMAGE_SUFFIXES]
    for stem, _, entry in sorted(images, key=lambda image: IMAGE_SUFFIXES.index(image[1])):
        by_stem.setdefault(stem, []).append(entry)
    return by_stem


def _split_lists(folders: _Folders) -> dict[str, Path]:
    """Return the list of each split: from Main, else Segmentation, else ImageSets itself."""
    for relative in ("ImageSets/Main", "ImageSets/Segmentation", "ImageSets"):
        if lists := {path.stem: path for path in sorted((folders.root / relative).glob("*.txt"))}:
            return lists
    return {}


def _split_folders(folders: _Folders) -> list[str]:
    return [split for split, written in SPLIT_NAMES.items() if any((folders.annotations / s).is_dir() for s in written)]


def _split_rows(folders: _Folders, names: Sequence[str], split: str) -> tuple[list[int], tuple[str, ...]]:
    """Return the positions of a split's images among ``names``, and notes."""
    aliases = SPLIT_NAMES.get(split, (split,))
    if lists := _split_lists(folders):
        paths = [lists[alias] for alias in aliases if alias in lists][:1]
        if not paths and split == "trainval":
            paths = [lists[part] for part in ("train", "val") if part in lists]
        if not paths:
            raise _no_split(folders, split, list(lists))
        return [row for path in paths for row in _listed_rows(path, names)], ()
    if found := _split_folders(folders):
        rows = [row for row, name in enumerate(names) if PurePosixPath(name).parts[0] in aliases]
        if not rows:
            raise _no_split(folders, split, found)
        return rows, ()
    if split not in ("train", "val", "trainval"):
        raise _no_split(folders, split, ["train", "val", "trainval"])
    train = [_hash_share(name) < _TRAIN_SHARE for name in names]
    rows = [row for row, is_train in enumerate(train) if split == "trainval" or is_train == (split == "train")]
    note = f"{folders.root} has no ImageSets: {sum(train)} images are train and {len(train) - sum(train)} val, by name"
    return rows, (note,)


def _listed_rows(path: Path, names: Sequence[str]) -> list[int]:
    row_of = {name: row for row, name in enumerate(names)}
    rows, faults = [], []
    for number, line in enumerate(_read_lines(path), start=1):
        if not (text := line.strip()):
            continue
        spellings = (text, text.split()[0], os.path.splitext(text)[0])
        row = next((row_of[spelling] for spelling in spellings if spelling in row_of), None)
        if row is None:
            faults.append(f"{path}:{number}: {text!r} has no annotation file {text}.xml")
        else:
            rows.append(row)
    if faults:
        more = f"\nand {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        remedy = "\nTake the lines out, or add files (one without any <object> for an image without objects)"
        raise UserError("\n".join(faults[:_SHOWN]) + more + remedy)
    return rows


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: the text is not UTF-8; save the file as UTF-8") from error


def _hash_share(name: str) -> float:
    """Return a number in [0, 1) that depends on the file's name alone."""
    digest = hashlib.blake2b(PurePosixPath(name).name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _no_split(folders: _Folders, split: str, known: Sequence[str]) -> UserError:
    shown = ", ".join(known[:_SHOWN]) + (" ..." if len(known) > _SHOWN else "")
    return UserError(f"{folders.root} has no split {split!r}, only {shown}{nearest(split, list(known))}")
