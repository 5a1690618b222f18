"""Images to measure on, drawn from a seed: no data set is needed, and every machine sees the same pixels."""

from __future__ import annotations

from pathlib import Path

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
    for _ in range(SHAPES):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = tuple(int(side) for side in np.exp(rng.uniform(np.log(4), np.log(max(8, min(height, width) / 4)), 2)))
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    noise = rng.normal(0, 6, image.shape)
    return np.asarray(np.clip(image + noise, 0, 255), np.uint8)


def write_jpeg(path: Path, image: UInt8) -> Path:
    """Write an image as a JPEG of quality 90 and return its path."""
    from PIL import Image

    Image.fromarray(image).save(path, quality=90)
    return path
