"""How a segmenter looks at an image: as a whole or through a window, once or in several views. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from effdense.errors import UserError, nearest

FLIPS = ("hflip", "vflip")

LEAST_WINDOW = 32
"""A window is no smaller than one cell of a backbone's coarsest map, in pixels."""

_SCALES = (0.1, 10.0)


@dataclass(frozen=True)
class View:
    """One of the ways in which an image is shown to the network.

    Attributes:
        scale: factor on the size that the image is shown in.
        hflip: mirrored left to right.
        vflip: mirrored top to bottom.
    """

    scale: float = 1.0
    hflip: bool = False
    vflip: bool = False

    @property
    def flipped(self) -> tuple[int, ...]:
        """The dimensions of a (..., H, W) tensor to turn round; doing so twice undoes it."""
        return (-2,) * self.vflip + (-1,) * self.hflip


@dataclass(frozen=True)
class Inference:
    """How images become label maps.

    Without a window an image is fitted into the square of the model's image size and padded at the bottom and the
    right. With one it is fitted into the square of ``scene_size``, nothing is padded, and the window slides over it.

    Attributes:
        window: side of the sliding window, in pixels; None or 0 looks at an image as a whole.
        stride: pixels from one window to the next; None is three quarters of the window.
        scene_size: side of the square that an image is fitted into before a window slides over it, in pixels; None or
            0 leaves it as it is. Without a window it has no effect.
        tta: test-time augmentation: ``"hflip"``, ``"vflip"`` and scales such as ``"0.75"``. An image is seen in every
            combination of them, itself at scale 1 included, and the probabilities are averaged.

    Raises:
        UserError: a value out of range, or a word that is no augmentation.
    """

    window: int | None = None
    stride: int | None = None
    scene_size: int | None = None
    tta: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tta", tuple(self.tta))  # JSON has lists
        if self.window and self.window < LEAST_WINDOW:
            raise UserError(f"window is {self.window}, expected {LEAST_WINDOW} or more, or 0 for the image as a whole")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride is {self.stride}, expected 1 or more")
        if self.window and self.stride is not None and self.stride > self.window:
            raise UserError(f"stride is {self.stride}, more than the window's {self.window}: pixels would be left out")
        if self.scene_size is not None and self.scene_size < 0:
            raise UserError(f"scene_size is {self.scene_size}, expected 0 (an image's own size) or more")
        if self.window and self.scene_size and self.window >= self.scene_size:
            raise UserError(
                f"a window of {self.window} covers the whole scene, as images are fitted into {self.scene_size} "
                "pixels: give a smaller --window, a larger --scene-size, or --scene-size 0 to slide over an image's "
                "own pixels"
            )
        parse_tta(self.tta)

    def changed(
        self,
        *,
        window: int | None = None,
        stride: int | None = None,
        scene_size: int | None = None,
        tta: tuple[str, ...] | None = None,
    ) -> Inference:
        """Return a copy with other values; None leaves a value as it is, and 0 is no window, or an image's own size.

        Another window comes with its own stride unless one is given.

        Raises:
            UserError: a value out of range, or one that has no effect as there is no window.
        """
        chosen = replace(
            self,
            window=self.window if window is None else window,
            stride=self.stride if stride is None and window is None else stride,
            scene_size=self.scene_size if scene_size is None else scene_size,
            tta=self.tta if tta is None else tta,
        )
        for name, value in (("stride", stride), ("scene_size", scene_size)):
            if value is not None and not chosen.window:
                raise UserError(f"{name} {value} has no effect on whole images: give a window too, or leave it out")
        return chosen

    @property
    def step(self) -> int:
        """Pixels from one window to the next."""
        return self.stride or max(1, (self.window or 0) * 3 // 4)

    @property
    def views(self) -> tuple[View, ...]:
        """What is averaged over, the plain view first."""
        return parse_tta(self.tta)

    @property
    def resizes_itself(self) -> bool:
        """Whether images have to come in their own size, as one fitted square would not do."""
        return bool(self.window) or any(view.scale != 1 for view in self.views)


def parse_tta(words: tuple[str, ...]) -> tuple[View, ...]:
    """Return every combination of the scales and flips that are named, the plain view first.

    Args:
        words: ``"hflip"``, ``"vflip"``, and factors on the size as text; 1 is always among them.

    Raises:
        UserError: a word that is neither, or a factor out of range.
    """
    scales = [1.0, *sorted({_scale(word) for word in words if word not in FLIPS} - {1.0})]
    across, down = ((False, True) if flip in words else (False,) for flip in FLIPS)
    return tuple(View(scale, hflip, vflip) for scale in scales for vflip in down for hflip in across)


def _scale(word: str) -> float:
    try:
        scale = float(word)
    except ValueError:
        raise UserError(
            f"tta has {word!r}, expected hflip, vflip or scales such as 0.75 and 1.25{nearest(word, FLIPS)}"
        ) from None
    if not (math.isfinite(scale) and _SCALES[0] <= scale <= _SCALES[1]):
        raise UserError(f"tta has the scale {word}, expected {_SCALES[0]:g} to {_SCALES[1]:g}")
    return scale
