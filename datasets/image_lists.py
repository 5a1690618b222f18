"""The images of a split by themselves, for what needs no labels: no mask is read, and none has to be there."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effdense.datasets.coco import find_annotations, images_folder, load_annotations
from effdense.datasets.coco_json import image_columns
from effdense.datasets.demo import demo_folder
from effdense.datasets.images import read_header, read_rgb, read_upright
from effdense.datasets.index import Names, file_at, pack_names, stated_size
from effdense.datasets.layout import SPLIT_NAMES
from effdense.datasets.listing import images_below
from effdense.datasets.mask_files import MaskFiles
from effdense.datasets.mask_folders import MaskFolders, find_mask_folders, find_voc_masks, open_masks
from effdense.datasets.segmentation_opening import SEGMENTATION_DATASETS
from effdense.datasets.voc import voc_bases
from effdense.errors import UserError, nearest
from effdense.types import Int64, Sample

_VOC_IMAGES = ("JPEGImages", "images", "Images")
_IMAGES = "images"


@dataclass(frozen=True, eq=False)
class ImageList:
    """n images.

    Attributes:
        images_dir: the folder that ``file_names`` are relative to.
        file_names: (n,), UTF-8.
        image_ids: (n,).
        sizes_hw: (n, 2), pixels as annotated; 0, 0 where nothing states them.
        masks: where mask files lie, which may be missing; None where there are none. Their size decides on EXIF.
    """

    images_dir: Path
    file_names: Names
    image_ids: Int64
    sizes_hw: Int64
    masks: MaskFiles | None = None

    def __len__(self) -> int:
        return len(self.file_names)

    def path(self, position: int) -> Path:
        """Return the image file at a position."""
        return file_at(self.images_dir, self.file_names, position)

    def sample(self, position: int) -> Sample:
        """Read an image, turned as its annotation or its mask has it; without either, upright.

        Raises:
            IndexError: there is no such position.
            UserError: the image is missing or broken, or has another size than the annotation states.
        """
        position = range(len(self))[position]
        path = self.path(position)
        size_hw = stated_size(self.sizes_hw, position) or self._size_of_mask(position)
        image = read_upright(path) if size_hw is None else read_rgb(path, size_hw)
        size_hw = (image.shape[0], image.shape[1])
        image_id = int(self.image_ids[position])
        return Sample(image=image, image_id=image_id, original_size_hw=size_hw, resized_size_hw=size_hw)

    def _size_of_mask(self, position: int) -> tuple[int, int] | None:
        """Return the size of a mask, in pixels, or None where it says nothing of its image: missing, broken, other."""
        if self.masks is not None:
            with contextlib.suppress(UserError):
                size_hw = read_header(self.masks.path(position)).size_hw
                if read_header(self.path(position)).fits(size_hw):
                    return size_hw
        return None


def open_image_list(name: str, root: Path | None, split: str) -> ImageList:
    """Open the images of one split; its labels may be of any classes, broken, or missing.

    Args:
        name: "demo", "voc", "folder" or "coco", as for ``open_segmentation``.
        root: the folder of the data set; for the demo set the folder to keep it in, or None for the cache.
        split: as for ``open_segmentation``.

    Raises:
        UserError: unknown name, no such split, or no images in the folder.
    """
    if name not in SEGMENTATION_DATASETS:
        known = ", ".join(SEGMENTATION_DATASETS)
        raise UserError(f"unknown dataset {name!r}, known are {known}{nearest(name, SEGMENTATION_DATASETS)}")
    if name == "demo":
        return _listed(find_mask_folders(demo_folder(root, split)), split, name)
    if root is None:
        raise UserError(f"dataset {name!r} needs the folder that it lies in: --data-root DIR")
    return _open_coco(root, split) if name == "coco" else _listed(_folders(name, root), split, name)


def _listed(folders: MaskFolders, split: str, name: str) -> ImageList:
    index = open_masks(folders, split, name=name, class_names=(), class_values=(), binary=False, notes=())
    masks = index.masks if folders.masks else None
    assert masks is None or isinstance(masks, MaskFiles)
    return ImageList(index.images_dir, index.file_names, index.image_ids, index.sizes_hw, masks)


def _folders(name: str, root: Path) -> MaskFolders:
    """Find images and masks, or else images alone.

    Raises:
        UserError: there are no images.
    """
    try:
        return find_voc_masks(root) if name == "voc" else find_mask_folders(root)
    except UserError:
        if folders := _voc_without_masks(root) if name == "voc" else _without_masks(root):
            return folders
        raise


def _voc_without_masks(root: Path) -> MaskFolders | None:
    for base in voc_bases(root):
        for folder in _VOC_IMAGES:
            if images := images_below(base / folder):
                return MaskFolders(base, base / folder, base / folder, images, {})
    return None


def _without_masks(root: Path) -> MaskFolders | None:
    if images := images_below(root / _IMAGES):
        return MaskFolders(root, root / _IMAGES, root / _IMAGES, images, {})
    by_split: dict[str, str] = {}
    for written in (name for names in SPLIT_NAMES.values() for name in names):
        found = images_below(root / written / _IMAGES)
        by_split |= {f"{written}/{stem}": f"{written}/{_IMAGES}/{path}" for stem, path in found.items()}
    return MaskFolders(root, root, root, by_split, {}, by_split=True) if by_split else None


def _open_coco(root: Path, split: str) -> ImageList:
    content, path = load_annotations(root, split, _annotations(root, split))
    file_names, image_ids, sizes_hw = image_columns(content["images"], path)
    packed = pack_names(file_names)
    return ImageList(images_folder(None, path, root, split, packed), packed, image_ids, np.asarray(sizes_hw, np.int64))


def _annotations(root: Path, split: str) -> Path:
    """Return the file that lists a split's images: of instances, or else of panoptic labels."""
    try:
        return find_annotations(root, split)
    except UserError:
        with contextlib.suppress(UserError):
            return find_annotations(root, split, "panoptic")
        raise
