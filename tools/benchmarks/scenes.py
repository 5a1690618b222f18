"""Images to measure on, drawn from a seed: no data set is needed, and every machine sees the same pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from effdense.types import UInt8

SHAPES = 40


def scene(height: int, width: int, seed: int = 0) -> UInt8:
    """Return an RGB image (H, W, 3): a soft background, filled shapes of many sizes, and a little noise.

    A JPEG of it is about as large, and takes about as long to decode, as one of a photo.
    """
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)
    image = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    for shape in _shapes(rng, height, width):
        cv2.ellipse(image, shape.centre, shape.axes, shape.angle, 0, 360, shape.colour, -1, cv2.LINE_AA)
    return _with_noise(image, rng)


def labelled_scene(height: int, width: int, classes: int, seed: int = 0) -> tuple[UInt8, UInt8]:
    """Return an image as `scene` draws it, whose shapes have the colour of their class, and its label map (H, W).

    Args:
        height: H, in pixels.
        width: W, in pixels.
        classes: K, of which the background is 0.
        seed: of the scene; the colours of the classes are always the same.
    """
    import cv2

    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(classes).integers(0, 256, (classes, 3)).tolist()
    image, labels = np.full((height, width, 3), 128, np.uint8), np.zeros((height, width), np.uint8)
    for shape in _shapes(rng, height, width):
        label = int(rng.integers(1, classes))
        for drawn, value in ((image, colours[label]), (labels, label)):
            cv2.ellipse(drawn, shape.centre, shape.axes, shape.angle, 0, 360, value, -1)
    return _with_noise(image, rng), labels


class _Shape(NamedTuple):
    colour: tuple[int, ...]
    centre: tuple[int, int]
    axes: tuple[int, ...]
    angle: float


def _shapes(rng: np.random.Generator, height: int, width: int) -> Iterator[_Shape]:
    for _ in range(SHAPES):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = tuple(int(side) for side in np.exp(rng.uniform(np.log(4), np.log(max(8, min(height, width) / 4)), 2)))
        yield _Shape(colour, centre, axes, float(rng.uniform(0, 180)))


def _with_noise(image: UInt8, rng: np.random.Generator) -> UInt8:
    return np.asarray(np.clip(image + rng.normal(0, 6, image.shape), 0, 255), np.uint8)


def write_jpeg(path: Path, image: UInt8) -> Path:
    """Write an image as a JPEG of quality 90 and return its path."""
    from PIL import Image

    Image.fromarray(image).save(path, quality=90)
    return path
