"""Boxes to label and to find, drawn from a seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST, LARGEST = 8.0, 400.0
"""Sides of the boxes in pixels, drawn by their logarithm; no box is larger than nine tenths of the image."""


def random_boxes(batch: int, count: int, side: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return boxes_xyxy (B, M, 4) inside a square image, and labels (B, M)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    low, high = math.log(SMALLEST), math.log(min(LARGEST, 0.9 * side))
    sizes = torch.exp(torch.rand(batch, count, 2, generator=generator) * (high - low) + low)
    corners = torch.rand(batch, count, 2, generator=generator) * (side - sizes)
    labels = torch.randint(0, classes, (batch, count), generator=generator)
    return torch.cat((corners, corners + sizes), -1), labels
