"""The settings of ``predict`` for a segmenter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError
from effdense.prediction import PredictSettings, check_share, ignored_predict_settings
from effdense.tasks.segmentation.inference import Inference


@dataclass(frozen=True)
class PredictConfig(PredictSettings):
    """What to predict with, on what, and where to leave it."""

    dataset: Literal["none", "demo", "voc", "coco", "folder"] = "none"
    """In place of images: a data set; its masks, where there are any, decide on EXIF's rotation and are not read."""
    out: Path = Path("drawn")
    """Folder for the pictures, overview.jpg with the first twelve, masks/ with index PNGs, and classes.txt."""
    batch_size: int = 8
    """Images, or windows, in a forward pass."""
    opacity: float = 0.5
    """How strongly classes are coloured: 0 shows the image, 1 the colours."""
    image_size: int | None = None
    """Side of the square that whole images are fitted into, in pixels; by default what the model was trained with."""
    window: int | None = None
    """Slide a window of this side over the image, in pixels; by default as the model was trained, 0 for the whole."""
    stride: int | None = None
    """Pixels from one window to the next; by default three quarters of --window."""
    scene_size: int | None = None
    """With a window: side of the square that the image is fitted into first, in pixels; 0 keeps its own pixels; by
    default what the model was trained with."""
    tta: tuple[str, ...] | None = None
    """Average over hflip, vflip and scales such as 0.75 and 1.25, in every combination."""
    save_probabilities: bool = False
    """Write the probabilities too: probabilities/NAME.npz, float16 (K, H, W)."""

    def __post_init__(self) -> None:
        PredictSettings.__post_init__(self)
        check_share("opacity", self.opacity)
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is {self.image_size}, expected 1 or more")
        Inference(self.window, self.stride if self.window else None, self.scene_size, self.tta or ())


def ignored_settings(config: PredictConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    built_in = ("image_size", "window", "stride", "scene_size", "tta")
    return ignored_predict_settings(config, built_in=built_in, one_by_one=True)
