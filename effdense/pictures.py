"""Pictures written to files, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from effdense.errors import UserError
from effdense.files import write_atomically
from effdense.palette import voc_palette
from effdense.types import UInt8

MAX_SIDE = 65_500
"""The most pixels that a side of a JPEG has (JPEG_MAX_DIMENSION of libjpeg)."""


def write_picture(path: Path, image: UInt8) -> None:
    """Write an RGB image (H, W, 3) as JPEG.

    A side of more than 65500 pixels, the most that JPEG can have, is shrunk to that, and the other with it.
    It does not wait for the disk: thousands of pictures would each take milliseconds more, and can be drawn again.

    Raises:
        UserError: it cannot be written.
    """
    height, width = image.shape[:2]
    if (longest := max(height, width)) > MAX_SIDE:
        size = [max(1, round(side * MAX_SIDE / longest)) for side in (width, height)]
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    written, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not written:
        raise UserError(f"{path} cannot be written: a picture of {width}x{height} pixels does not become a JPEG")
    write_atomically(path, data.tobytes(), durable=False)


def write_index_png(path: Path, mask: UInt8) -> None:
    """Write class indices (H, W) as a PNG whose values are the indices, with VOC's colour map as its palette.

    Viewers show the colours; ``numpy.asarray(PIL.Image.open(path))`` is the mask itself.

    Raises:
        UserError: it cannot be written.
    """
    image = Image.fromarray(mask, mode="L")
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue(), durable=False)
