"""The settings of ``predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError


@dataclass(frozen=True)
class PredictConfig:
    """What to predict with, on what, and where to leave it."""

    model: Path
    """A .safetensors file of a training run."""
    images: tuple[Path, ...] = ()
    """Image files, and folders with images in and below them."""
    dataset: Literal["none", "demo", "coco", "voc"] = "none"
    """In place of images: a data set, whose image ids are kept in detections.json."""
    data_root: Path | None = None
    """With --dataset: the folder of the data set; the demo set needs none."""
    split: str = "val"
    """With --dataset: the split."""
    out: Path = Path("drawn")
    """Folder for the pictures, overview.jpg with the first twelve, detections.json and images.json."""
    draw_above: float = 0.3
    """Least score of what is drawn; detections.json has everything that evaluation counts."""
    batch_size: int = 8
    """Images in a forward pass."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and count them, where otherwise the tool would stop."""

    def __post_init__(self) -> None:
        if bool(self.images) == (self.dataset != "none"):
            raise UserError("give either images (files or folders) or --dataset, and not both")
        if self.dataset in ("none", "demo") and self.data_root is not None:
            raise UserError(
                "--data-root has no effect without --dataset coco or voc: leave it out or name the data set"
            )
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}, expected 1 or more")
        if not 0 <= self.draw_above <= 1:
            raise UserError(f"draw_above is {self.draw_above}, expected a number between 0 and 1")


def ignored_settings(config: PredictConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    return {"split": "no --dataset is given"} if config.dataset == "none" else {}
