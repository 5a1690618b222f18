"""The settings of ``join``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from effdense.errors import UserError

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class JoinConfig:
    """What to join, and where to leave it."""

    detector: Path
    """A .safetensors file of a detector."""
    segmenter: Path
    """A .safetensors file of a segmenter that was trained on the same backbone."""
    out: Path
    """The file to write; ends in .safetensors."""
    image_size: int | None = None
    """Side of the square that images are fitted into, in pixels; by default that of both models."""

    def __post_init__(self) -> None:
        if self.out.suffix != SUFFIX:
            raise UserError(f"--out is {self.out}, expected a file that ends in {SUFFIX}")
        if self.out.resolve() in (self.detector.resolve(), self.segmenter.resolve()):
            raise UserError(f"--out {self.out} is one of the two files that are joined: give another name")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is {self.image_size}, expected 1 or more")
