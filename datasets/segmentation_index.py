"""SegmentationIndex: images with a class index for every pixel, as flat NumPy columns, and where their masks come from.

Masks are read or drawn when they are asked for. What does so is a MaskSource: a folder of mask files, or the objects of
an annotation file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from effdense.datasets.images import ReadImage, read_header, read_whole
from effdense.datasets.index import Names, file_at, names_without_suffix, stated_size
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX, Int64, Sample, UInt8

MAX_CLASSES = IGNORE_INDEX
"""Labels are bytes and 255 is none, so a data set has at most 255 classes."""


class LabelError(UserError):
    """A sound mask that says what cannot be used: a value that is no class, or another size than its image has.

    Unlike an unreadable file it is never left out by itself, for where one mask is so, it is mostly all of them.
    """


class MaskSource(Protocol):
    """The masks of an index, by position."""

    def read(self, position: int, size_hw: tuple[int, int], /) -> UInt8:
        """Return a mask, (H, W): labels 0..K-1, and 255 where no class is given.

        Args:
            position: which mask.
            size_hw: the image's size in pixels. What is drawn is drawn in this size; what is read from a file has the
                size of the file, which the caller checks.

        Raises:
            UserError: missing or broken; `LabelError` for a value that is no class, with file and place.
        """
        ...

    def where(self, position: int, /) -> str:
        """Say where a mask comes from, for messages."""
        ...

    def select(self, positions: Int64, /) -> MaskSource:
        """Return the masks at the given positions, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class SegmentationIndex:
    """n images and their masks.

    Attributes:
        name: what was opened: "voc", "coco", "folder" or "demo".
        split: which part of it: "train", "val", ...
        source: the annotation file, or the folder of the masks.
        images_dir: the folder that ``file_names`` are relative to.
        class_names: (K,), in the order of the labels.
        file_names: (n,), UTF-8.
        image_ids: (n,).
        sizes_hw: (n, 2), pixels as annotated; 0, 0 where that is not known before the mask is read.
        masks: n of them.
        notes: sentences on what was decided while reading, to be told to the user.
    """

    name: str
    split: str
    source: Path
    images_dir: Path
    class_names: tuple[str, ...]
    file_names: Names
    image_ids: Int64
    sizes_hw: Int64
    masks: MaskSource
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        num_images = len(self.file_names)
        assert len(self.class_names) <= MAX_CLASSES
        assert self.image_ids.shape == (num_images,)
        assert self.sizes_hw.shape == (num_images, 2)

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def image_names(self) -> list[str]:
        """File names without their extension, (n,)."""
        return names_without_suffix(self.file_names)

    def path(self, position: int) -> Path:
        """Return the image file at a position."""
        return file_at(self.images_dir, self.file_names, position)

    def size_hw(self, position: int) -> tuple[int, int]:
        """Return the size of an image, in pixels: as annotated, or else as the file itself has it.

        Raises:
            UserError: the size is not known and the image cannot be read.
        """
        return stated_size(self.sizes_hw, position) or read_header(self.path(position)).size_hw

    def mask(self, position: int) -> UInt8:
        """Return the labels of an image, (H, W), with 255 = ignore.

        Raises:
            UserError: the mask cannot be read, or holds a value that is no class.
        """
        return self.masks.read(position, self.size_hw(position))

    def sample(self, position: int, read: ReadImage = read_whole) -> Sample:
        """Read an image and its mask.

        The mask's size decides on the image's EXIF orientation: the image is turned only where it does not match as
        stored and does match once turned.

        Args:
            position: which image.
            read: reads its file.

        Raises:
            IndexError: there is no such position.
            UserError: image or mask is missing or broken, their sizes differ, or a value of the mask is no class.
        """
        position = range(len(self))[position]
        path = self.path(position)
        image, size_hw = read(path, stated_size(self.sizes_hw, position))
        mask = self.masks.read(position, size_hw)
        if mask.shape != size_hw:
            self.check_size(position, (mask.shape[0], mask.shape[1]))
            image, size_hw = read(path, (mask.shape[0], mask.shape[1]))
        return Sample(
            image=image,
            mask=mask,
            has_boxes=False,
            image_id=int(self.image_ids[position]),
            original_size_hw=size_hw,
            resized_size_hw=size_hw,
        )

    def check_size(self, position: int, mask_size_hw: tuple[int, int]) -> None:
        """See that a mask has the size of its image, as stored or once turned by EXIF; reads the image's header.

        Raises:
            LabelError: it has another size; names both files and sizes.
            UserError: the image cannot be read.
        """
        header = read_header(self.path(position))
        if not header.fits(mask_size_hw):
            (height, width), (mask_height, mask_width) = header.size_hw, mask_size_hw
            raise LabelError(
                f"{self.masks.where(position)} is {mask_width}x{mask_height} pixels, but its image "
                f"{self.path(position)} is {width}x{height}; a mask needs the size of its image"
            )

    def select(self, positions: Sequence[int] | npt.NDArray[Any]) -> SegmentationIndex:
        """Return the images at the given positions, in that order, with their masks."""
        chosen = np.asarray(positions, np.int64).reshape(-1)
        return replace(
            self,
            file_names=self.file_names[chosen],
            image_ids=self.image_ids[chosen],
            sizes_hw=self.sizes_hw[chosen],
            masks=self.masks.select(chosen),
        )


@dataclass(frozen=True, eq=False)
class RelabelledMasks:
    """The masks of another source with other labels.

    Attributes:
        source: the masks.
        table: (256,), the new label of each old one; 255 at 255.
    """

    source: MaskSource
    table: UInt8

    def read(self, position: int, size_hw: tuple[int, int]) -> UInt8:
        """Return a mask in the new labels, (H, W)."""
        return np.asarray(cv2.LUT(self.source.read(position, size_hw), self.table), np.uint8)

    def where(self, position: int) -> str:
        """Say where a mask comes from."""
        return self.source.where(position)

    def select(self, positions: Int64) -> RelabelledMasks:
        """Return the masks at the given positions, in that order."""
        return replace(self, source=self.source.select(positions))
