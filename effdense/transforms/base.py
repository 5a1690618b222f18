"""The interface of every transform, and what all of them share: composing, and which boxes survive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from effdense.errors import UserError
from effdense.types import Float32, Sample


class Transform(Protocol):
    """Takes a sample and a generator, returns a new sample; never writes into the arrays that came in."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the transformed sample; every random choice is drawn from ``rng``."""
        ...


@dataclass(frozen=True)
class Compose:
    """Transforms applied one after the other, all drawing from the same generator."""

    transforms: Sequence[Transform]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample after every transform."""
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


@dataclass(frozen=True)
class BoxRule:
    """Which boxes stay in a sample after a crop or a warp.

    Attributes:
        min_size: least width and height of what is left of a box, in pixels.
        min_visible: least share of a box's area that must still be inside the image, 0..1.

    Crowd and difficult boxes stay with any area left: they say where not to learn, and without them what is left of a
    crowd would be taught as background.

    Raises:
        UserError: a negative size or a share outside 0..1.
    """

    min_size: float = 1.0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        if self.min_size < 0:
            raise UserError(f"min_size is a number of pixels and cannot be negative, got {self.min_size}")
        check_share("min_visible", self.min_visible)


def keep_boxes(sample: Sample, boxes_xyxy: Float32, rule: BoxRule) -> Sample:
    """Clip moved boxes to the sample's image and drop those of which too little is left, with all that belongs to them.

    Args:
        sample: already holds the new image, and still the boxes as they were before they moved.
        boxes_xyxy: where these boxes came to lie, unclipped, (N, 4).
        rule: what is too little. A box without area, before or after, is always dropped: turning it would give it one.
    """
    height, width = sample.image.shape[:2]
    clipped = np.clip(boxes_xyxy, 0, np.array([width, height, width, height], np.float32)).astype(np.float32)
    full_wh = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).astype(np.float64)
    left_wh = (clipped[:, 2:] - clipped[:, :2]).astype(np.float64)
    visible = left_wh.prod(axis=1) >= rule.min_visible * full_wh.prod(axis=1)
    had_area = (sample.boxes_xyxy[:, 2:] > sample.boxes_xyxy[:, :2]).all(axis=1)
    enough = visible & (left_wh >= rule.min_size).all(axis=1)
    keep = had_area & (left_wh > 0).all(axis=1) & (enough | sample.crowd | sample.difficult)
    return sample.replace(
        boxes_xyxy=clipped[keep],
        labels=sample.labels[keep],
        crowd=sample.crowd[keep],
        difficult=sample.difficult[keep],
    )


def check_share(name: str, value: float) -> None:
    """Refuse a probability or share outside 0..1.

    Raises:
        UserError: ``value`` is outside 0..1 or not a number.
    """
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} must lie between 0 and 1, got {value}")


def check_fill(fill: Sequence[int]) -> tuple[int, int, int]:
    """Return an RGB colour as three plain ints.

    Raises:
        UserError: not three whole numbers in 0..255.
    """
    colour = tuple(int(value) for value in fill)
    if len(colour) != 3 or any(not 0 <= value <= 255 for value in colour) or list(colour) != list(fill):
        raise UserError(f"fill must be three whole numbers in 0..255 (red, green, blue), got {tuple(fill)}")
    return colour[0], colour[1], colour[2]


def check_size(size_hw: Sequence[int]) -> tuple[int, int]:
    """Return an image size as two plain ints.

    Raises:
        UserError: not two positive whole numbers.
    """
    size = tuple(int(value) for value in size_hw)
    if len(size) != 2 or min(size) < 1 or list(size) != list(size_hw):
        raise UserError(f"an image size is two positive whole numbers (height, width), got {tuple(size_hw)}")
    return size[0], size[1]


def mean_fill(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the colour that normalises to zero: the mean that the weights were trained with, as 0..255 RGB.

    Args:
        mean: a backbone's ``mean``, 0..1.
    """
    return check_fill([round(255 * value) for value in mean])
