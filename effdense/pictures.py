"""Pictures written to files, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2

from effdense.files import write_atomically
from effdense.types import UInt8


def write_picture(path: Path, image: UInt8) -> None:
    """Write an RGB image (H, W, 3) as JPEG.

    It does not wait for the disk: thousands of pictures would each take milliseconds more, and can be drawn again.

    Raises:
        UserError: it cannot be written.
    """
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    write_atomically(path, data.tobytes(), durable=False)
