"""Mask files: label maps as images, read as indices whatever kind of image they are.

What a pixel says is its index, never its look: of a palette image the index and not the colour (VOC's person is 15, and
its colour as grey would be 147), of a grey image the number as it was stored (Pillow and OpenCV stretch 2 and 4 bits to
the whole range of a byte, which is undone here). A colour image without a palette means the indices whose colours in
VOC's colour map it shows; where it is grey in truth, with all three channels alike, it means that grey. Some greys are
colours of VOC's map as well: an image of such greys alone could be either, and is refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from effdense.datasets.images import explained, open_with_pillow, sound_bytes
from effdense.datasets.index import Names, file_at
from effdense.datasets.segmentation_index import LabelError
from effdense.palette import voc_indices
from effdense.types import IGNORE_INDEX, Bool, Int64, UInt8

MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".webp", ".jpg", ".jpeg")
"""What counts as a mask file, in lower case; where several differ by suffix alone, the earlier is taken."""

FOREGROUND_VALUE = 255
"""What a binary mask has where its object is."""

_SHOWN = 12
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY = 0
_STRETCHED_BY = {2: 85, 4: 17}
"""By bits per pixel, what decoders multiply the numbers of a grey PNG with."""
_LOSSY = (".jpg", ".jpeg", ".webp")
_DEEP = 16
_TIFF_BITS = 258
"""The tag of TIFF that holds the bits per sample."""


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """A folder of mask files as a MaskSource.

    Attributes:
        folder: what ``file_names`` are relative to.
        file_names: (n,), UTF-8.
        class_names: (K,), for messages.
        class_values: (K,), the number that each class has in the files.
        binary: 255 is a class (the second of two), and not void.
        void_values: further numbers in the files that mean void, as 255 does.
    """

    folder: Path
    file_names: Names
    class_names: tuple[str, ...]
    class_values: tuple[int, ...]
    binary: bool = False
    void_values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.class_names) == len(self.class_values) == len(set(self.class_values))
        assert all(0 <= value < 256 for value in self.class_values)
        assert self.binary == (IGNORE_INDEX in self.class_values)
        assert not set(self.void_values) & set(self.class_values)

    def read(self, position: int, size_hw: tuple[int, int] | None = None) -> UInt8:
        """Return the labels of a mask in the size of its file, (H, W): 0..K-1, and 255 = ignore.

        Args:
            position: which file.
            size_hw: not used; a file has its own size.

        Raises:
            LabelError: a value that is no class; names file, value and place.
            UserError: missing, or no image.
        """
        values = self.values(position)
        labels, strays, as_they_are = self._tables
        if cv2.countNonZero(cv2.LUT(values, strays)):
            raise self._stray_value(position, values, strays[values].astype(np.bool_))
        return values if as_they_are else np.asarray(cv2.LUT(values, labels), np.uint8)

    def values(self, position: int) -> UInt8:
        """Return the numbers in a file as they are, (H, W); of a binary mask of one bit, 255 for 1.

        Raises:
            LabelError: numbers above 255, or colours that VOC's colour map does not have.
            UserError: missing, or no image.
        """
        return read_values(self.path(position), one_bit=FOREGROUND_VALUE if self.binary else 1)

    def path(self, position: int) -> Path:
        """Return the mask file at a position."""
        return file_at(self.folder, self.file_names, position)

    def where(self, position: int) -> str:
        """Say which file a mask comes from."""
        return f"mask {self.path(position)}"

    def select(self, positions: Int64) -> MaskFiles:
        """Return the masks at the given positions, in that order."""
        return replace(self, file_names=self.file_names[positions])

    @cached_property
    def _tables(self) -> tuple[UInt8, UInt8, bool]:
        """Return the label of each value and a mark where it has none, (256,) each, and whether labels are values."""
        labels, strays = np.full(256, IGNORE_INDEX, np.uint8), np.ones(256, np.uint8)
        strays[[IGNORE_INDEX, *self.void_values]] = 0
        for label, value in enumerate(self.class_values):
            labels[value], strays[value] = label, 0
        known = np.flatnonzero(strays == 0)
        return labels, strays, bool((labels[known] == known).all())

    def _stray_value(self, position: int, values: UInt8, astray: Bool) -> LabelError:
        path = self.path(position)
        y, x = _first(astray)
        found = np.unique(values[astray]).tolist()
        others = [str(value) for value in found if value != values[y, x]]
        also = f" (nor {'is' if len(others) == 1 else 'are'} {_listed(others)})" if others else ""
        numbered = [f"{value} {name}" for value, name in zip(self.class_values, self.class_names, strict=True)]
        return LabelError(
            f"mask {path}: value {values[y, x]} at x {x}, y {y} is no class{also}; the classes are "
            f"{_listed(numbered)}{'' if self.binary else f', and {IGNORE_INDEX} is void'}. {self._remedy(path)}"
        )

    def _remedy(self, path: Path) -> str:
        if path.suffix.lower() in _LOSSY:
            return "This kind of file does not keep its values: make the masks anew as PNG"
        if self.binary:
            return (
                "Binary masks hold 0 and 255 alone: set every other value to the nearer of them, "
                "or leave out --binary-masks if they hold class indices"
            )
        return "Correct the masks, or name all classes in classes.txt or with --classes"


def read_values(path: Path, *, one_bit: int = 1) -> UInt8:
    """Read a mask file as indices, (H, W), whatever kind of image it is; see the module.

    Args:
        path: the file.
        one_bit: what to return for 1 where a pixel has one bit.

    Raises:
        LabelError: numbers above 255, colours that VOC's colour map does not have, greys that are colours of that map
            too, or an image of some other kind.
        UserError: missing, cut short, or no image.
    """
    with explained(path, "mask"):
        data = sound_bytes(path)
        with open_with_pillow(io.BytesIO(data)) as image:
            mode, deep = image.mode, _is_deep(image, data)
            pixels = np.array(image)  # (H, W) or (H, W, channels)
    if mode == "1":
        return np.asarray(np.where(pixels, one_bit, 0), np.uint8)
    if mode == "L":
        return _as_stored(pixels, data)
    if mode == "P":
        return pixels
    if deep and mode in ("LA", "RGB", "RGBA"):
        return _of_deep_channels(data, path)
    if mode in ("LA", "PA"):
        return np.ascontiguousarray(pixels[..., 0])
    if mode == "I" or mode.startswith("I;16"):
        return _as_bytes(pixels, path)
    if mode in ("RGB", "RGBA"):
        return _indices_of_colors(np.ascontiguousarray(pixels[..., :3]), path)
    raise LabelError(f"mask {path} is an image of kind {mode!r}; a mask is a PNG with one class index per pixel")


def _as_stored(pixels: UInt8, data: bytes) -> UInt8:
    if not data.startswith(_PNG):
        return pixels
    bits, kind = data[24], data[25]  # of the header chunk, which comes first
    return np.asarray(pixels // _STRETCHED_BY[bits], np.uint8) if kind == _GREY and bits in _STRETCHED_BY else pixels


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the channels have 16 bits, of which Pillow would keep the upper 8 where there are several channels."""
    if data.startswith(_PNG):
        return data[24] == _DEEP
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, ())
    return any(number >= _DEEP for number in np.atleast_1d(bits).tolist())


def _of_deep_channels(data: bytes, path: Path) -> UInt8:
    """Return the indices of an image with several channels of 16 bits, whose numbers are to fit into 8."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim not in (2, 3) or pixels.dtype != np.uint16:
        raise LabelError(f"mask {path} has channels of 16 bits that cannot be read; save it as an index PNG of 8 bits")
    pixels = np.atleast_3d(pixels)
    colors = pixels[..., 2::-1] if pixels.shape[2] >= 3 else pixels[..., :1]
    _as_bytes(colors.max(axis=2), path)
    return _indices_of_colors(np.broadcast_to(colors, (*colors.shape[:2], 3)).astype(np.uint8), path)


def _as_bytes(pixels: npt.NDArray[np.integer], path: Path) -> UInt8:
    astray = (pixels < 0) | (pixels > 255)
    if astray.any():
        y, x = _first(astray)
        raise LabelError(
            f"mask {path}: value {pixels[y, x]} at x {x}, y {y} is no class index: those go from 0 to 254, and 255 is "
            "void; if class and object are packed into one number, write the class alone"
        )
    return pixels.astype(np.uint8)


def _indices_of_colors(pixels: UInt8, path: Path) -> UInt8:
    indices, known = voc_indices(pixels)
    red, green, blue = cv2.split(pixels)
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    if known.all():
        if is_grey and indices.any():
            y, x = _first(indices > 0)
            raise LabelError(
                f"mask {path}: the grey {red[y, x]} in three channels, at x {x}, y {y}, could be index {red[y, x]} or "
                f"the colour of index {indices[y, x]} in Pascal VOC's colour map, and the file has nothing that tells; "
                "save it as an index PNG: one channel, one class index per pixel"
            )
        return indices
    if is_grey:
        return np.asarray(red, np.uint8)
    y, x = _first(~known)
    raise LabelError(
        f"mask {path}: the colour {tuple(pixels[y, x].tolist())} at x {x}, y {y} is none of Pascal VOC's colour map; "
        "a mask is a PNG with one class index per pixel, or has that map's colours alone"
    )


def _first(marked: Bool) -> tuple[int, int]:
    """Return row and column of the first pixel, by lines, that is marked."""
    y, x = np.unravel_index(int(np.argmax(marked)), marked.shape)
    return int(y), int(x)


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
