"""Training images decoded no larger than the scale jitter is going to leave them, and shrunk the cheap way.

A JPEG can be decoded at a half, a quarter or an eighth of its size by leaving out the finer frequencies of its blocks,
in 0.6 to 0.8 of the time, and what follows is cheaper, too. What is left to shrink, mostly by less than a half, is left
to INTER_LINEAR, which takes a tenth of INTER_AREA's time. The pixels are not those of the whole image averaged, so this
is for training alone, and for those who ask for it (``fast_decode``). What is drawn for an image stays the same.

Measured on photos of 640 x 480 and below, beside the whole image and INTER_AREA: 0.2 to 4 grey levels apart on
average, a half to twice of what lies between INTER_AREA and Pillow's bilinear filter. On the one photo of the finest
texture, 8.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from effdense.datasets.images import JPEG_MAGIC, ReadImage, explained, opencv_rgb, read_rgb, read_whole, sound_bytes
from effdense.transforms import Compose, RandomScaleCrop, Transform
from effdense.transforms.geometry import AREA_BELOW
from effdense.types import UInt8

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
LINEAR_FROM = 0.5
"""Factor from which INTER_LINEAR shrinks: there it mixes four pixels of four, each of the image in one result."""


def small_reader(transform: Transform, seeds: tuple[int, ...]) -> ReadImage:
    """Return what reads an image as small as a transform will make it; the whole where it cannot be told.

    Args:
        transform: what the image will be given to; only one that begins with `RandomScaleCrop` tells.
        seeds: of the generator that it will draw from.
    """
    first = transform.transforms[0] if isinstance(transform, Compose) and transform.transforms else transform

    def read(path: Path, size_hw: tuple[int, int] | None) -> tuple[UInt8, tuple[int, int]]:
        if size_hw is None or not isinstance(first, RandomScaleCrop):
            return read_whole(path, size_hw)
        wanted_hw = first.draw_size(size_hw, np.random.default_rng(seeds))
        return shrunk(read_reduced(path, size_hw, reduction(size_hw, wanted_hw)), wanted_hw), size_hw

    return read


def shrunk(image: UInt8, wanted_hw: tuple[int, int]) -> UInt8:
    """Return an image at the wanted size by INTER_LINEAR where the exact way would take INTER_AREA and need not.

    From `LINEAR_FROM` up to `AREA_BELOW` no pixel is left out, or few, but they do not weigh the same. All others are
    returned as they are, for the transform to resize.

    Args:
        image: RGB, (H, W, 3).
        wanted_hw: what the transform resizes it to, in pixels.
    """
    factor = min(wanted / side for wanted, side in zip(wanted_hw, image.shape[:2], strict=True))
    if not LINEAR_FROM <= factor < AREA_BELOW:
        return image
    return np.asarray(cv2.resize(image, wanted_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def reduction(size_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> int:
    """Return by how much an image may be decoded smaller, 1, 2, 4 or 8, and still be no smaller than what is wanted.

    Where a side is no multiple of it, the picture is stretched over the rest of the last pixel: by half a pixel of what
    is wanted at most, or a lesser factor is taken.

    Args:
        size_hw: of the image, in pixels.
        wanted_hw: what it will be resized to.
    """
    sides = [*zip(size_hw, wanted_hw, strict=True)]
    shrinks = min(side // wanted for side, wanted in sides)
    fitting = (k for k in _REDUCED if k <= shrinks and all(-side % k * wanted <= side / 2 for side, wanted in sides))
    return max(fitting, default=1)


def read_reduced(path: Path, size_hw: tuple[int, int], factor: int) -> UInt8:
    """Read an image as RGB at half, a quarter or an eighth of its size, rounded up, if it is a JPEG; else the whole.

    The decoder leaves out the finer frequencies of each 8x8 block, which is cheaper than to decode and average them,
    and differs from it about as much as one good filter from another. That the image is less than ``factor`` pixels
    larger or smaller than stated goes unnoticed.

    Args:
        path: the file.
        size_hw: the size that the annotation states, in pixels.
        factor: 1, 2, 4 or 8.

    Raises:
        UserError: as ``read_rgb``.
    """
    if factor > 1:
        with explained(path):
            data = sound_bytes(path)
            if data.startswith(JPEG_MAGIC):
                image = opencv_rgb(data, _REDUCED[factor])
                if image is not None and image.shape[:2] == tuple(-(-side // factor) for side in size_hw):
                    return image
    return read_rgb(path, size_hw)
