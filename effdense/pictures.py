"""Pictures written to files, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
from PIL import Image

from effdense.files import write_atomically
from effdense.palette import voc_palette
from effdense.types import UInt8


def write_picture(path: Path, image: UInt8) -> None:
    """Write an RGB image (H, W, 3) as JPEG.

    It does not wait for the disk: thousands of pictures would each take milliseconds more, and can be drawn again.

    Raises:
        UserError: it cannot be written.
    """
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
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
