"""A window that slides over an image, from top to bottom; what no later window touches is handed on at once.

Windows overlap, and each counts most in its middle: the weight of a pixel is a Hann window in either direction, and the
weights of all windows over a pixel add up to 1. The sum is taken of logits, so that an image that one window covers
gets exactly what it gets as a whole. Only the rows under the current windows are kept: K x window x width numbers and
the few rows that are waiting to be fetched, however high the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side of an image: every ``stride`` pixels, the last one flush with the edge.

    Args:
        length: of the side, in pixels; where it is no more than the window, one window covers it.
        window: side of the window, in pixels.
        stride: 1..window.
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def blending_weights(length: int, window: int, starts: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the weight of each pixel of each window along one side of an image, (len(starts), covered pixels).

    A Hann window at the pixels' middles, sin^2(pi (i + 1/2) / n), is nowhere 0, so every pixel has a weight to be
    divided by; afterwards the weights of all windows over a pixel add up to 1.

    Args:
        length: of the side, in pixels.
        window: side of the window, in pixels.
        starts: from `window_starts`.
    """
    covered = min(window, length)
    hann = np.sin(np.pi * (np.arange(covered) + 0.5) / covered) ** 2
    total = np.zeros(length)
    for start in starts:
        total[start : start + covered] += hann
    return np.stack([hann / total[start : start + covered] for start in starts]).astype(np.float32)


class WindowRows:
    """The logits of an image under a sliding window, computed as they are asked for: a `LogitRows`.

    Flips turn each window round and not the image, so that in a view upside down, too, the top rows come first; the
    grid of windows is mirrored with them. A view of a mirrored image is thus the mirrored view of the image.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        image: Tensor,
        *,
        window: int,
        stride: int,
        fill: Sequence[int],
        flipped: tuple[int, ...] = (),
        batch_size: int = 8,
    ) -> None:
        """Lay out the windows; nothing is computed yet.

        Args:
            forward: from windows (B, 3, window, window) to logits (B, K, window, window).
            image: uint8, (3, h, w).
            window: side of the window, in pixels.
            stride: pixels from one window to the next, 1..window.
            fill: colour that a window is padded with at the bottom and the right where the image is smaller, RGB.
            flipped: dimensions that each window is turned round in for the network, -2 and -1.
            batch_size: most windows in a forward pass; only windows side by side are taken together.
        """
        height, width = image.shape[-2:]
        self.size_hw = (height, width)
        self._forward = forward
        self._image = image
        self._window = window
        self._flipped = flipped
        self._batch_size = batch_size
        self._fill = torch.tensor(fill, dtype=image.dtype, device=image.device).view(3, 1, 1)
        tops = _starts(height, window, stride, mirrored=-2 in flipped)
        self._lefts = _starts(width, window, stride, mirrored=-1 in flipped)
        row_weights = torch.from_numpy(blending_weights(height, window, tops)).to(image.device)
        self._column_weights = torch.from_numpy(blending_weights(width, window, self._lefts)).to(image.device)
        ends = [*tops[1:], height]
        self._lines = list(zip(tops, ends, row_weights, strict=True))[::-1]  # the next one last
        self._buffer: Tensor | None = None  # (K, n, w): rows from _top on; those before _finished will not change
        self._top = self._finished = self._bottom = 0

    @property
    def most_at_once(self) -> int:
        """The most windows that a forward pass takes."""
        return min(self._batch_size, len(self._lefts))

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows first..last - 1, (K, last - first, w) float32; rows above ``first`` are asked for no more."""
        assert self._top <= first < last <= self.size_hw[0]
        while self._finished < last:
            self._add_line(first)
        assert self._buffer is not None
        return self._buffer[:, first - self._top : last - self._top]

    def _add_line(self, needed: int) -> None:
        """Run the next line of windows and add what they say; drop the rows above ``needed`` to make room."""
        top, finished, row_weights = self._lines.pop()
        covered = len(row_weights)
        for start in range(0, len(self._lefts), self._batch_size):
            lefts = self._lefts[start : start + self._batch_size]
            logits = self._logits(top, lefts)  # (n, K, covered rows, covered columns)
            if self._buffer is None:
                self._buffer = logits.new_zeros(logits.shape[1], 0, self.size_hw[1])
            if start == 0:
                self._make_room(min(needed, top), top + covered)
            rows = self._buffer[:, top - self._top : top - self._top + covered]
            for left, one, column_weights in zip(lefts, logits, self._column_weights[start:], strict=False):
                weights = row_weights[:, None] * column_weights
                rows[:, :, left : left + one.shape[-1]].addcmul_(one, weights)
        self._finished = finished

    def _logits(self, top: int, lefts: Sequence[int]) -> Tensor:
        """Return what the network says of windows side by side, turned back and without padding."""
        side = self._window
        height, width = min(side, self.size_hw[0]), min(side, self.size_hw[1])
        windows = self._fill.repeat(len(lefts), 1, side, side)
        for window, left in zip(windows, lefts, strict=True):
            content = self._image[:, top : top + height, left : left + width]
            window[:, :height, :width] = content.flip(self._flipped)
        logits = self._forward(windows.contiguous(memory_format=torch.channels_last))
        return logits[..., :height, :width].flip(self._flipped).float()

    def _make_room(self, needed: int, end: int) -> None:
        """Let the buffer hold the rows needed..end - 1, the new ones zero.

        Rows move up within it, as many at a time as they move by, so that none is overwritten before it has moved.
        """
        assert self._buffer is not None
        move, kept = needed - self._top, self._bottom - needed
        if end - needed > self._buffer.shape[1]:
            larger = self._buffer.new_zeros(self._buffer.shape[0], end - needed, self._buffer.shape[2])
            larger[:, :kept] = self._buffer[:, move : move + kept]
            self._buffer = larger
        elif move:
            for row in range(0, kept, move):
                count = min(move, kept - row)
                self._buffer[:, row : row + count] = self._buffer[:, row + move : row + move + count]
        self._buffer[:, kept:] = 0
        self._top, self._bottom = needed, end


def _starts(length: int, window: int, stride: int, *, mirrored: bool) -> list[int]:
    starts = window_starts(length, window, stride)
    covered = min(window, length)
    return [length - covered - start for start in reversed(starts)] if mirrored else starts
