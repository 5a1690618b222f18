"""Logits become label maps and probabilities in pixels of the original image, a band of rows after the other.

Bilinear enlargement mixes neighbouring rows only, so a band of the label map needs few rows of the logits. Those are
asked for from top to bottom: (K, H, W) floats of a large image exist only where they are asked for as the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from effdense.tasks.segmentation.memory import require_memory
from effdense.types import Float32, Segmentation

_BAND_ELEMENTS = 2**20
"""Most numbers of a band, over all classes: 4 MB of float32, few enough to stay in a processor's cache."""


class LogitRows(Protocol):
    """The logits of one image in one view, turned back, handed out from top to bottom."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the logits, in pixels."""
        ...

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows first..last - 1, (K, last - first, w) float32; rows above ``first`` are asked for no more."""
        ...


@dataclass(frozen=True)
class WholeRows:
    """Logits that are all there, (K, h, w).

    Attributes:
        logits: of the image's content, without padding.
    """

    logits: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the logits, in pixels."""
        return self.logits.shape[-2], self.logits.shape[-1]

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows first..last - 1, (K, last - first, w) float32."""
        return self.logits[:, first:last].float()


def segmentation_of(
    views: Sequence[LogitRows],
    size_hw: tuple[int, int],
    class_names: tuple[str, ...],
    *,
    probabilities: bool = False,
    confidence: bool = False,
) -> Segmentation:
    """Average the views of an image, and label each pixel of the original with its most probable class.

    Args:
        views: at least one; each covers the whole image in a size of its own.
        size_hw: of the original image, in pixels.
        class_names: (K,).
        probabilities: return them too.
        confidence: return the greatest of them of each pixel, which takes no more than one number a pixel.

    Raises:
        UserError: the probabilities are larger than the memory.
    """
    height, width = size_hw
    mask = np.empty((height, width), np.uint8)
    everything: Float32 | None = None
    greatest: Float32 | None = np.empty((height, width), np.float32) if confidence else None
    if probabilities:
        require_memory(
            4 * len(class_names) * height * width,
            None,
            f"the probabilities of {len(class_names)} classes in an image of {width}x{height} pixels",
            "ask for the labels alone, or use a smaller image",
        )
        everything = np.empty((len(class_names), height, width), np.float32)
    band = max(1, _BAND_ELEMENTS // (len(class_names) * width))
    for first in range(0, height, band):
        last = min(first + band, height)
        scores = resized_rows(views[0], size_hw, first, last)  # (K, last - first, W)
        if len(views) > 1 or probabilities or confidence:
            mean = torch.softmax(scores, 0)
            for view in views[1:]:
                mean += torch.softmax(resized_rows(view, size_hw, first, last), 0)
            mean /= len(views)
            scores = scores if len(views) == 1 else mean  # one view's logits say the same with fewer ties
            if everything is not None:
                everything[:, first:last] = mean.cpu().numpy()
            if greatest is not None:
                greatest[first:last] = mean.amax(0).cpu().numpy()
        mask[first:last] = scores.max(0).indices.to(torch.uint8).cpu().numpy()  # four times as fast as argmax(0)
    return Segmentation(mask, everything, class_names, greatest)


def resized_rows(source: LogitRows, size_hw: tuple[int, int], first: int, last: int) -> Tensor:
    """Return rows of what ``F.interpolate(mode="bilinear", align_corners=False)`` makes of the whole.

    Args:
        source: logits of size (h, w).
        size_hw: the size after, (H, W), in pixels.
        first: first row after.
        last: row after the last.

    Returns:
        (K, last - first, W).
    """
    h, w = source.size_hw
    height, width = size_hw
    if h == height:
        rows = source.rows(first, last)
    else:
        # in float32, as PyTorch does it: in thousands of rows the weights would differ visibly otherwise
        step = np.float32(h) / np.float32(height)
        at = np.maximum(step * (np.arange(first, last, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
        above = np.minimum(at.astype(np.int64), h - 1)
        below = np.minimum(above + 1, h - 1)
        block = source.rows(int(above[0]), int(below[-1]) + 1)
        share = torch.from_numpy(at - above.astype(np.float32)).to(block.device)[:, None]
        rows = torch.lerp(_picked(block, above - above[0]), _picked(block, below - above[0]), share)
    if w == width:
        return rows
    return F.interpolate(rows[None], size=(last - first, width), mode="bilinear", align_corners=False)[0]


def _picked(block: Tensor, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
    return block.index_select(1, torch.from_numpy(rows).to(block.device))
