"""RandAugment (Cubuk et al. 2020) with the operations that leave boxes meaningful.

Operations and ranges are the paper's (its magnitude 0..10 spans the ranges of AutoAugment, Cubuk et al. 2019, table 6):
enhancement factors 1 +- 0.9, shear 0.3, rotation 30 degrees, translation 150 of 331 pixels, posterize down to 4 bits.
Geometric operations move the boxes to the bounds of their moved corners, and come last: what they bring in keeps its
colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from effdense.errors import UserError, nearest
from effdense.transforms.albumentation import Albumentation
from effdense.transforms.base import BoxRule, Transform, check_fill
from effdense.types import Sample

MAX_MAGNITUDE = 10.0


@dataclass(frozen=True)
class AutoContrast:
    """Stretch each channel to 0..255.

    Ours, because Albumentations' counts its histogram without the value 255 and so stretches an image that needs none.
    """

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the stretched sample; nothing is drawn from ``rng``."""
        low = sample.image.min(axis=(0, 1)).astype(np.float64)
        high = sample.image.max(axis=(0, 1)).astype(np.float64)
        scale = np.where(high > low, 255.0 / np.maximum(high - low, 1.0), 1.0)
        offset = np.where(high > low, -low * scale, 0.0)
        table = np.clip(np.arange(256)[:, None] * scale + offset, 0, 255).astype(np.uint8)
        return sample.replace(image=cv2.LUT(sample.image, table.reshape(1, 256, 3)))


@dataclass(frozen=True)
class Soften:
    """Blend with a smoothed copy, the opposite of sharpening; Albumentations has only the one direction.

    Attributes:
        amount: 0 leaves the image as it is, 1 is the smoothed copy (3 x 3, the centre weighs 5, as in Pillow's SMOOTH).
    """

    amount: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the softened sample; nothing is drawn from ``rng``."""
        kernel = np.full((3, 3), self.amount / 13.0)
        kernel[1, 1] = 1.0 - 8.0 * self.amount / 13.0
        return sample.replace(image=cv2.filter2D(sample.image, -1, kernel))


@dataclass(frozen=True)
class _Context:
    """What operations need beside their strength.

    Attributes:
        strength: magnitude as a share of the greatest, 0..1.
        fill: colour that a geometric operation brings in.
        boxes: which boxes stay after a geometric operation.
    """

    strength: float
    fill: tuple[int, int, int]
    boxes: BoxRule

    def colour(self, kind: str) -> list[Transform]:
        unchanged = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
        factors = [1 - 0.9 * self.strength, 1 + 0.9 * self.strength]
        return [Albumentation("ColorJitter", {**unchanged, kind: (factor, factor), "p": 1.0}) for factor in factors]

    def affine(self, kind: str, axis: str, amount: float) -> list[Transform]:
        variants: list[Transform] = []
        for signed in (-amount * self.strength, amount * self.strength):
            value = {"x": (0.0, 0.0), "y": (0.0, 0.0), axis: (signed, signed)} if axis else (signed, signed)
            arguments = {kind: value, "fill": self.fill, "p": 1.0}
            variants.append(Albumentation("Affine", arguments, boxes=self.boxes))
        return variants

    def sharpness(self) -> list[Transform]:
        alpha = 0.9 * self.strength / 13.0
        sharpen = Albumentation("Sharpen", {"alpha": (alpha, alpha), "lightness": (1.0, 1.0), "p": 1.0})
        return [sharpen, Soften(0.9 * self.strength)]

    def posterize(self) -> list[Transform]:
        bits = 8 - round(4 * self.strength)
        return [Albumentation("Posterize", {"num_bits": bits, "p": 1.0})] if bits < 8 else []

    def solarize(self) -> list[Transform]:
        threshold = 1.0 - self.strength
        return [Albumentation("Solarize", {"threshold_range": (threshold, threshold), "p": 1.0})]


_ALWAYS: dict[str, Callable[[_Context], list[Transform]]] = {
    "autocontrast": lambda context: [AutoContrast()],
    "equalize": lambda context: [Albumentation("Equalize", {"p": 1.0})],
}
_COLOURS: dict[str, Callable[[_Context], list[Transform]]] = {
    "posterize": _Context.posterize,
    "solarize": _Context.solarize,
    "color": lambda context: context.colour("saturation"),
    "contrast": lambda context: context.colour("contrast"),
    "brightness": lambda context: context.colour("brightness"),
    "sharpness": _Context.sharpness,
}
_GEOMETRIC: dict[str, Callable[[_Context], list[Transform]]] = {
    "rotate": lambda context: context.affine("rotate", "", 30.0),
    "shear_x": lambda context: context.affine("shear", "x", math.degrees(math.atan(0.3))),
    "shear_y": lambda context: context.affine("shear", "y", math.degrees(math.atan(0.3))),
    "translate_x": lambda context: context.affine("translate_percent", "x", 150 / 331),
    "translate_y": lambda context: context.affine("translate_percent", "y", 150 / 331),
}
_BY_STRENGTH = {**_COLOURS, **_GEOMETRIC}
RANDAUGMENT_OPERATIONS = (*_ALWAYS, *_BY_STRENGTH)
"""Every operation by name; the last five move boxes."""


class RandAugment:
    """Apply a number of operations, each drawn uniformly with replacement and with a random sign, at one magnitude.

    Those that change colours are applied before those that move pixels, each kind in the order drawn: afterwards they
    would recolour what was brought in, which is to look as padding does in evaluation.
    """

    def __init__(
        self,
        num_ops: int,
        magnitude: float,
        fill: Sequence[int],
        *,
        operations: Sequence[str] = RANDAUGMENT_OPERATIONS,
        boxes: BoxRule | None = None,
    ) -> None:
        """Build every operation once.

        Args:
            num_ops: operations per image; 0 changes nothing.
            magnitude: strength of each, 0..10. At 0 only autocontrast and equalize, which have none, do anything.
            fill: colour that a geometric operation brings in, RGB in 0..255; masks get 255.
            operations: which to draw from.
            boxes: which boxes stay after a geometric operation.

        Raises:
            UserError: an unknown operation, none at all, or a number or magnitude out of range.
        """
        if num_ops < 0 or int(num_ops) != num_ops:
            raise UserError(f"the number of RandAugment operations is a whole number from 0 on, got {num_ops}")
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise UserError(f"RandAugment's magnitude lies between 0 and 10, got {magnitude}")
        if not operations:
            raise UserError("RandAugment needs at least one operation to draw from")
        self.num_ops = int(num_ops)
        context = _Context(magnitude / MAX_MAGNITUDE, check_fill(fill), boxes or BoxRule())
        self._variants = [_variants(name, context) for name in operations]
        self._geometric = [name in _GEOMETRIC for name in operations]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample after the drawn operations."""
        drawn = rng.integers(len(self._variants), size=self.num_ops)
        for chosen in sorted(drawn, key=self._geometric.__getitem__):
            variants = self._variants[chosen]
            if variants:
                sample = variants[rng.integers(len(variants))](sample, rng)
        return sample


def _variants(name: str, context: _Context) -> list[Transform]:
    if name in _ALWAYS:
        return _ALWAYS[name](context)
    if name not in _BY_STRENGTH:
        raise UserError(f"RandAugment has no operation {name!r}{nearest(name, RANDAUGMENT_OPERATIONS)}")
    return _BY_STRENGTH[name](context) if context.strength > 0 else []
