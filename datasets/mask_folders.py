"""Images and mask files in two folders, paired by name: Pascal VOC's layout, and any folder of images and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from effdense.datasets.images import IMAGE_SUFFIXES
from effdense.datasets.index import pack_names
from effdense.datasets.layout import SPLIT_NAMES, existing_folder, what_is_there
from effdense.datasets.listing import images_below
from effdense.datasets.mask_files import MASK_SUFFIXES, MaskFiles
from effdense.datasets.segmentation_index import SegmentationIndex
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
from effdense.datasets.voc import voc_bases
from effdense.errors import UserError

_VOC_IMAGES = ("JPEGImages", "images", "Images")
_VOC_MASKS = ("SegmentationClass", "SegmentationClassPNG")
_IMAGES, _MASKS = "images", "masks"
_LISTS = ("ImageSets/Segmentation", "ImageSets", "ImageSets/Main")
_REMEDY = "Take the lines out, or add the files"
_SHOWN = 3


@dataclass(frozen=True)
class MaskFolders:
    """Where the parts of a data set lie.

    Attributes:
        root: the folder of the lists and of classes.txt.
        images_dir: what the files of ``images`` are relative to.
        masks_dir: what the files of ``masks`` are relative to.
        images: the image of each name, by the name.
        masks: the mask of each name, by the name.
        by_split: the folders lie as train/images and train/masks, and both names are "train/x".
        some_unlabelled: images without a mask are no fault as long as no list names them.
    """

    root: Path
    images_dir: Path
    masks_dir: Path
    images: dict[str, str]
    masks: dict[str, str]
    by_split: bool = False
    some_unlabelled: bool = False

    def image_of(self, name: str) -> str:
        """Return the image of a name, relative to ``images_dir``; where there is none, what it might be called."""
        return self.images.get(name) or self._expected(name, _IMAGES, IMAGE_SUFFIXES[0])

    def mask_of(self, name: str) -> str:
        """Return the mask of a name, relative to ``masks_dir``; where there is none, what it should be called."""
        return self.masks.get(name) or self._expected(name, _MASKS, MASK_SUFFIXES[0])

    def _expected(self, name: str, folder: str, suffix: str) -> str:
        if not self.by_split:
            return name + suffix
        split, _, rest = name.partition("/")
        return f"{split}/{folder}/{rest}{suffix}"


def find_voc_masks(root: Path) -> MaskFolders:
    """Find JPEGImages and SegmentationClass in a folder, or in the folder of a year in it.

    Raises:
        UserError: there is none; says what was looked for.
    """
    for base in voc_bases(existing_folder(root)):
        for folder in _VOC_MASKS:
            if masks := images_below(base / folder, MASK_SUFFIXES):
                places = [base / name for name in _VOC_IMAGES if (base / name).is_dir()]
                if not places:
                    raise UserError(f"{base} has {folder}, but no JPEGImages beside it. {what_is_there(base)}")
                found = MaskFolders(
                    base, places[0], base / folder, images_below(places[0]), masks, some_unlabelled=True
                )
                return _checked(found)
    boxes = any((base / "Annotations").is_dir() for base in voc_bases(root))
    only_boxes = " Annotations holds boxes, which serve detection alone." if boxes else ""
    folder = " For images/ and masks/ give --dataset folder." if (root / _MASKS).is_dir() else ""
    raise UserError(
        f"{root} does not look like Pascal VOC with masks: looked for SegmentationClass/*.png beside JPEGImages in "
        f"it, in VOC2012 and in VOCdevkit/VOC2012. {what_is_there(root)}{only_boxes}{folder}"
    )


def find_mask_folders(root: Path) -> MaskFolders:
    """Find images/ and masks/ in a folder, or train/images and train/masks and so on.

    Raises:
        UserError: there is none; says what was looked for.
    """
    existing_folder(root)
    if (root / _IMAGES).is_dir() and (root / _MASKS).is_dir():
        images_dir, masks_dir = root / _IMAGES, root / _MASKS
        return _checked(
            MaskFolders(root, images_dir, masks_dir, images_below(images_dir), images_below(masks_dir, MASK_SUFFIXES))
        )
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for split in (name for names in SPLIT_NAMES.values() for name in names):
        if (root / split / _IMAGES).is_dir() and (root / split / _MASKS).is_dir():
            images |= _below(root, split, _IMAGES, IMAGE_SUFFIXES)
            masks |= _below(root, split, _MASKS, MASK_SUFFIXES)
    if images or masks:
        return _checked(MaskFolders(root, root, root, images, masks, by_split=True))
    voc = " For JPEGImages/ and SegmentationClass/ give --dataset voc." if (root / _VOC_MASKS[0]).is_dir() else ""
    raise UserError(
        f"{root} holds no images with masks: looked for images/ and masks/ in it (files in them, or in train, val, "
        f"test in each), and for train/images and train/masks. {what_is_there(root)}{voc}"
    )


def _below(root: Path, split: str, folder: str, suffixes: Sequence[str]) -> dict[str, str]:
    found = images_below(root / split / folder, suffixes)
    return {f"{split}/{name}": f"{split}/{folder}/{path}" for name, path in found.items()}


def _checked(folders: MaskFolders) -> MaskFolders:
    """See that some image and some mask go together, for else the names follow another rule.

    Raises:
        UserError: shows names of both.
    """
    if not folders.images.keys() & folders.masks.keys():
        images, masks = (", ".join([*found.values()][:_SHOWN]) or "none" for found in (folders.images, folders.masks))
        raise UserError(
            f"no mask in {folders.masks_dir} has the name of an image in {folders.images_dir}: images are {images}; "
            f"masks are {masks}. A mask is called as its image, with {MASK_SUFFIXES[0]} behind it"
        )
    return folders


def splits_of(folders: MaskFolders) -> list[str]:
    """Return the splits that there are lists or folders for, or those that are made where there is neither."""
    return in_order(_lists(folders)) or _split_folders(folders) or list(UNLISTED_SPLITS)


def open_masks(
    folders: MaskFolders,
    split: str,
    *,
    name: str,
    class_names: tuple[str, ...],
    class_values: tuple[int, ...],
    binary: bool,
    notes: tuple[str, ...],
    void_values: tuple[int, ...] = (),
) -> SegmentationIndex:
    """Build the index of one split.

    Args:
        folders: images and masks.
        split: "train", "val", "trainval", "test", or the name of a list.
        name: what the data set is called in messages.
        class_names: (K,).
        class_values: (K,), the number of each class in the files.
        binary: 255 is a class.
        notes: what has been decided so far.
        void_values: further numbers in the files that mean void.

    Raises:
        UserError: no such split, or a list that names what is not there.
    """
    names, note = _names_of_split(folders, split)
    masks = pack_names([folders.mask_of(name) for name in names])
    return SegmentationIndex(
        name=name,
        split=split,
        source=folders.masks_dir,
        images_dir=folders.images_dir,
        class_names=class_names,
        file_names=pack_names([folders.image_of(name) for name in names]),
        image_ids=np.arange(1, len(names) + 1, dtype=np.int64),
        sizes_hw=np.zeros((len(names), 2), np.int64),
        masks=MaskFiles(folders.masks_dir, masks, class_names, class_values, binary, void_values),
        notes=notes + note,
    )


def _lists(folders: MaskFolders) -> dict[str, Path]:
    """Return the list of each split: of ImageSets, or of the root where no folders tell the splits apart."""
    if (lists := find_lists(folders.root, _LISTS)) or _split_folders(folders):
        return lists
    usual = [name for names in SPLIT_NAMES.values() for name in names] + ["trainval"]
    places = [folders.root / f"{split}.txt" for split in usual]
    return {path.stem: path for path in places if path.is_file()}


def _split_folders(folders: MaskFolders) -> list[str]:
    tops = {PurePosixPath(name).parts[0] for name in folders.images.keys() | folders.masks.keys() if "/" in name}
    return [split for split, written in SPLIT_NAMES.items() if tops & set(written)]


def _names_of_split(folders: MaskFolders, split: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the names in a split, in order, and notes."""
    names = sorted(folders.images.keys() | folders.masks.keys())
    if lists := _lists(folders):
        if not (paths := lists_of_split(lists, split)):
            raise no_split(folders.root, split, in_order(lists))
        lacks = f"has neither an image in {folders.images_dir} nor a mask in {folders.masks_dir}"
        return [names[row] for path in paths for row in listed_rows(path, names, lambda _: lacks, _REMEDY)], ()
    labelled = sorted(folders.masks) if folders.some_unlabelled else names
    if found := _split_folders(folders):
        parts = ("train", "val") if split == "trainval" else (split,)
        tops = {top for part in parts for top in split_names(part)}
        chosen = [name for name in labelled if PurePosixPath(name).parts[0] in tops]
        if not chosen:
            raise no_split(folders.root, split, found)
        return chosen, ()
    if split not in UNLISTED_SPLITS:
        raise no_split(folders.root, split, UNLISTED_SPLITS)
    rows, train = hashed_rows(labelled, split)
    note = f"{folders.root} has no list of splits: {train} images are train and {len(labelled) - train} val, by name"
    return [labelled[row] for row in rows], (note,)
