"""Image files: their headers, and their pixels as RGB.

EXIF: a photo may be stored lying on its side with a tag that says how to turn it. Annotation tools disagree on whether
they follow the tag, so neither always nor never turning is right. Here the annotation's size decides: the picture is
turned only when it does not match as stored and does match once turned.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from effdense.errors import UserError
from effdense.types import UInt8

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""What counts as an image, in lower case, the more common first."""

_TAIL_BYTES = 4096
_END_MARKS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND"}
_EXIF_ORIENTATION = 0x0112
_EXIF_SIDEWAYS = (5, 6, 7, 8)
_EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_PIXELS = 2**30
"""OpenCV's own limit."""

JPEG_MAGIC = b"\xff\xd8\xff"
"""What every JPEG begins with."""
JPEG_SUFFIXES = (".jpg", ".jpeg")
"""How its name ends, in lower case, as a rule."""
_COLOR_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)
"""OpenCV before 4.10 decodes into BGR only."""

ReadImage: TypeAlias = Callable[[Path, "tuple[int, int] | None"], "tuple[UInt8, tuple[int, int]]"]
"""Reads an image file of a stated size, if one is stated; returns its pixels, and the size of the whole image."""

_pillow = threading.RLock()
"""Held while Pillow's settings, which all threads share, are other than the user's."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels.

    Attributes:
        size_hw: pixels as stored, before any EXIF rotation.
        orientation: EXIF's, 1 to 8; 1 is upright.
        num_bytes: length of the file.
    """

    size_hw: tuple[int, int]
    orientation: int
    num_bytes: int

    @property
    def sideways(self) -> bool:
        """Whether the orientation swaps width and height."""
        return self.orientation in _EXIF_SIDEWAYS

    def fits(self, size_hw: tuple[int, int]) -> bool:
        """Whether the image has the given size, as stored or once turned by EXIF."""
        return self.size_hw == size_hw or (self.sideways and self.size_hw[::-1] == size_hw)


def read_header(path: Path) -> Header:
    """Read size and orientation, and see that the file is not cut short; decodes no pixels of a sound JPEG or PNG.

    Raises:
        UserError: the file is missing, is no image, or ends too early.
    """
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            start = file.read(8)
            file.seek(max(0, num_bytes - _TAIL_BYTES))
            tail = file.read()
            file.seek(0)
            header = _parse_header(file, num_bytes)
        if not _ends_properly(start, tail):
            _decode_with_pillow(path.read_bytes())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return header


def read_rgb(path: Path, size_hw: tuple[int, int] | None = None) -> UInt8:
    """Read an image as RGB, (H, W, 3); grey, palette, 16-bit and transparent images become plain RGB.

    Args:
        path: the file.
        size_hw: the size that the annotation states, in pixels, or None where it states none; it decides on EXIF.

    Raises:
        UserError: the file is missing or broken, or has another size than the annotation states.
    """
    with explained(path):
        data = sound_bytes(path)
        image = _decode(data)
        if size_hw is None or image.shape[:2] == size_hw:
            return image
        header = _parse_header(io.BytesIO(data), len(data))
        if header.fits(size_hw):
            return _decode_with_pillow(data, turn=True)
    raise UserError(size_mismatch(path, header, size_hw))


def read_whole(path: Path, size_hw: tuple[int, int] | None) -> tuple[UInt8, tuple[int, int]]:
    """Read an image as ``read_rgb`` does, and return its size, too: the usual `ReadImage`."""
    image = read_rgb(path, size_hw)
    return image, (image.shape[0], image.shape[1])


def read_upright(path: Path) -> UInt8:
    """Read an image as RGB, (H, W, 3), the way a person sees it: turned as its EXIF orientation says.

    Raises:
        UserError: the file is missing or broken.
    """
    with explained(path):
        data = sound_bytes(path)
        turned = _parse_header(io.BytesIO(data), len(data)).orientation != 1
        return _decode_with_pillow(data, turn=True) if turned else _decode(data)
    raise AssertionError("unreachable: errors leave as UserError")


def size_mismatch(path: Path, header: Header, size_hw: tuple[int, int]) -> str:
    """Return the sentence for an image that has another size than its annotation states."""
    (height, width), (stated_height, stated_width) = header.size_hw, size_hw
    return (
        f"{path} is {width}x{height} pixels, but its annotation states {stated_width}x{stated_height}; "
        "annotate the image as it is, or put the image back that was annotated"
    )


@contextlib.contextmanager
def explained(path: Path, what: str = "image") -> Iterator[None]:
    """Turn whatever a decoder raises into a UserError that names the file; a UserError passes as it is.

    Args:
        path: the file.
        what: what it is called in the message.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, cv2.error, Image.DecompressionBombError) as error:
        raise _unreadable(path, error, what) from error


def sound_bytes(path: Path) -> bytes:
    """Return a file's content; Pillow raises here where it is cut short."""
    data = path.read_bytes()
    if not _ends_properly(data[:8], data[-_TAIL_BYTES:]):
        _decode_with_pillow(data)
    return data


def _parse_header(file: BinaryIO, num_bytes: int) -> Header:
    with open_with_pillow(file) as image:
        width, height = image.size
        # Pillow would decode a whole PNG to look for a tag behind the pixels.
        has_tags = image.format != "PNG" or "exif" in image.info
        orientation = _orientation(image) if has_tags else 1
    return Header((height, width), orientation, num_bytes)


def open_with_pillow(file: BinaryIO) -> Image.Image:
    """Open an image with Pillow, of any size that OpenCV reads.

    Raises:
        ValueError: it has more pixels than that.
    """
    with _pillow, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow refuses orthophotos as attacks
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are more than the limit of 2**30 = {_MAX_PIXELS}")
    return image


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1, upright, where the tags are absent, nonsense or cannot be read."""
    with _pillow, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        except Exception:  # the tags are a side matter: whatever Pillow trips over in them, the pixels may be sound
            return 1
    return orientation if orientation in _EXIF_TURNS else 1


def _ends_properly(start: bytes, tail: bytes) -> bool:
    """Whether the end mark lies where it mostly does; if not, look closer: data may follow a sound image."""
    for magic, end_mark in _END_MARKS.items():
        if start.startswith(magic):
            return end_mark in tail
    return True


def _decode(data: bytes) -> UInt8:
    image = opencv_rgb(data, cv2.IMREAD_COLOR)
    return _decode_with_pillow(data) if image is None else image


def opencv_rgb(data: bytes, flags: int) -> UInt8 | None:
    """Return pixels as RGB, or None where OpenCV cannot decode them."""
    # A JPEG comes as RGB at no cost, at its own size and at the reduced ones; other formats are BGR first.
    direct = data.startswith(JPEG_MAGIC) and _COLOR_RGB is not None
    mode = flags & ~cv2.IMREAD_COLOR | _COLOR_RGB if direct and _COLOR_RGB is not None else flags
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    except cv2.error:
        return None
    if image is None:
        return None
    return np.asarray(image if direct else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _decode_with_pillow(data: bytes, turn: bool = False) -> UInt8:
    """Decode formats that OpenCV lacks; unlike OpenCV, Pillow raises where an image is cut short."""
    with open_with_pillow(io.BytesIO(data)) as image:
        image.load()  # a TIFF is turned here already, and its tag then gone
        turned = _EXIF_TURNS.get(_orientation(image)) if turn else None
        rgb = image.convert("RGB")
        return np.array(rgb if turned is None else rgb.transpose(turned), np.uint8)


def _unreadable(path: Path, error: Exception, what: str = "image") -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{what} {path} does not exist")
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error).strip() or "broken"
    return UserError(f"{what} {path} cannot be read ({reason}); replace it or take it out of the data set")
