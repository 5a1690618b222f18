"""The colour map of Pascal VOC: one colour for each of 256 indices, and the way back.

VOC's development kit spreads the bits of an index over the three channels, least significant bit first: bit 0 becomes
the highest bit of red, bit 1 that of green, bit 2 that of blue, bit 3 the second highest of red, and so on. So no two
indices share a colour, and a colour is one of the map's exactly when none of its lower bits is set.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from effdense.types import Bool, UInt8

_CHANNELS = 3
_BITS = 8


@cache
def voc_palette() -> UInt8:
    """Return the RGB colour of each index, (256, 3): 0 is black, 15 is (192, 128, 128), 255 is (224, 224, 192).

    The array is shared and read-only.
    """
    indices = np.arange(256)
    palette = np.zeros((256, _CHANNELS), np.uint8)
    for bit in range(_BITS):
        turn, channel = divmod(bit, _CHANNELS)
        palette[:, channel] |= ((indices >> bit & 1) << (_BITS - 1 - turn)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


def voc_indices(image: UInt8) -> tuple[UInt8, Bool]:
    """Return the index of each pixel's colour, (H, W), and which pixels have a colour of the map, (H, W).

    Where a pixel has none, its index means nothing.

    Args:
        image: RGB, (H, W, 3).
    """
    to_bits, lower_bits = _inverse()
    parts = np.asarray(cv2.LUT(image, to_bits), np.uint8)  # (H, W, 3): the bits of the index that each channel holds
    rests = np.asarray(cv2.LUT(image, lower_bits), np.uint8)
    indices = parts[..., 0] | parts[..., 1] | parts[..., 2]
    return indices, (rests[..., 0] | rests[..., 1] | rests[..., 2]) == 0


@cache
def _inverse() -> tuple[UInt8, UInt8]:
    """Return two tables by value and channel, (256, 1, 3): the bits of the index, and what of the value is none."""
    values = np.arange(256)
    to_bits = np.zeros((256, 1, _CHANNELS), np.uint8)
    lower_bits = np.repeat(values.astype(np.uint8)[:, None, None], _CHANNELS, axis=2)
    for bit in range(_BITS):
        turn, channel = divmod(bit, _CHANNELS)
        place = _BITS - 1 - turn
        to_bits[:, 0, channel] |= ((values >> place & 1) << bit).astype(np.uint8)
        lower_bits[:, 0, channel] &= np.uint8(255 ^ (1 << place))
    return to_bits, lower_bits
