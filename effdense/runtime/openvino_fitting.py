"""Images that need no resizing, brought to an exported file's network without OpenVINO, which takes longer to begin."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from effdense.runtime.onnx_boxes import contents
from effdense.runtime.onnx_operations import operations
from effdense.runtime.onnx_pieces import fitting
from effdense.runtime.session import ORIGINAL
from effdense.runtime.stages import FITTED_HW, LIMITS, ORIGINALS, PIXELS, SIZE_HW, between
from effdense.types import Int64, UInt8


class Padding:
    """What a file's first stage does with images that have their size already: it pads them to the square.

    effdense fits images by the checkpoint's own transform, so a file gets no others, unless it is used unaided.
    """

    def __init__(self, side: int, fill: UInt8, may_be_done: bool) -> None:
        """Keep what it takes.

        Args:
            side: S, of the square, in pixels.
            fill: colour of the padding, (3,).
            may_be_done: the file can be told that images are fitted.
        """
        self._side, self._fill, self._may_be_done = side, fill.astype(np.float32), may_be_done

    def suffices(self, images: UInt8, original_hw: Int64) -> bool:
        """Whether the file would leave images as they are.

        Args:
            images: (B, H, W, 3).
            original_hw: (2,), the height and width that they had before they were fitted; 0 where that is not said.
        """
        if images.dtype != np.uint8 or images.shape[3] != 3:
            return False  # the file says what is wrong with it
        longest = max(images.shape[1:3])
        is_done = self._may_be_done and bool((original_hw > 0).all())
        return longest == self._side or (is_done and longest < self._side)

    def outputs(self, images: UInt8, contents_hw: Int64) -> dict[str, Any]:
        """Return what the first stage gives, by its names.

        Args:
            images: (B, H, W, 3), for which it suffices.
            contents_hw: (B, 2) or (1, 2), the part of each that is image; 0 stands for all of it.
        """
        count, height, width, _ = images.shape
        pixels = np.empty((count, 3, self._side, self._side), np.float32)
        pixels[:, :, :height, :width] = images.transpose(0, 3, 1, 2)
        pixels[:, :, height:] = pixels[:, :, :height, width:] = self._fill[:, None, None]
        size_hw = np.array([height, width])
        limits = np.tile(size_hw, (count, 1)).astype(np.float32)
        np.copyto(limits, contents_hw, where=contents_hw > 0, casting="same_kind")
        return {PIXELS: pixels, SIZE_HW: size_hw, FITTED_HW: size_hw, LIMITS: limits, ORIGINALS: limits}


def padding_of(first: onnx.ModelProto, side: int) -> Padding | None:
    """Return what may take the place of a file's first stage; None where that is another than this version's.

    Args:
        first: the first stage, see `effdense.runtime.stages.cut`.
        side: S, of the square, in pixels.
    """
    fills = [onnx.numpy_helper.to_array(one) for one in first.graph.initializer if one.name == "fill"]
    if len(fills) != 1 or fills[0].shape != (1, 3, 1, 1) or fills[0].dtype != np.uint8:
        return None
    fill = fills[0].reshape(3)
    inputs, outputs = ([one.name for one in values] for values in (first.graph.input, first.graph.output))
    may_be_done = ORIGINAL in inputs
    pieces = [fitting(side, fill.tolist(), may_be_done=may_be_done)]
    if LIMITS in outputs:
        pieces.append(contents())
    for piece in pieces:
        ends = [[one.name for one in values] for values in (piece.graph.input, piece.graph.output)]
        if not {*ends[0], *ends[1]} <= {*inputs, *outputs}:
            return None
        if operations(between(first, *ends)) != operations(piece):
            return None
    return Padding(side, fill, may_be_done)
