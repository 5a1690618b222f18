"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

import numpy as np

from effdense.errors import UserError
from effdense.transforms.albumentation import Albumentation
from effdense.transforms.base import check_share
from effdense.types import Sample


class Photometric:
    """Change brightness, contrast, saturation and hue by random amounts, in random order (ColorJitter)."""

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        p: float = 0.8,
    ) -> None:
        """Build the operation.

        Args:
            brightness: the factor is uniform in 1 - brightness .. 1 + brightness.
            contrast: likewise.
            saturation: likewise.
            hue: the shift is uniform in -hue .. hue, as a share of the colour circle; at most 0.5. Anything but 0
                costs a trip to HSV and back, more than the other three together.
            p: probability that anything is changed at all.

        Raises:
            UserError: a strength or a probability out of range.
        """
        for name, value in {"brightness": brightness, "contrast": contrast, "saturation": saturation, "p": p}.items():
            check_share(name, value)
        if not 0 <= hue <= 0.5:
            raise UserError(f"hue is a share of the colour circle, between 0 and 0.5, got {hue}")
        self._jitter = Albumentation(
            "ColorJitter",
            {
                "brightness": (1 - brightness, 1 + brightness),
                "contrast": (1 - contrast, 1 + contrast),
                "saturation": (1 - saturation, 1 + saturation),
                "hue": (-float(hue), float(hue)),
                "p": p,
            },
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with other colours; boxes and mask are the same objects."""
        return self._jitter(sample, rng)
