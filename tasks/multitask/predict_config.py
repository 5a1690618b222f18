"""The settings of ``predict`` for a model of both tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.prediction import PredictSettings, check_share, ignored_predict_settings


@dataclass(frozen=True)
class PredictConfig(PredictSettings):
    """What to predict with, on what, and where to leave it."""

    dataset: Literal["none", "demo", "coco", "voc"] = "none"
    """In place of images: a data set with boxes, whose image ids are kept in detections.json. Of any other
    folder, name the images themselves, or the folder that holds them."""
    out: Path = Path("drawn")
    """Folder for the pictures, overview.jpg with the first twelve, detections.json and images.json, masks/ with index
    PNGs, and classes.txt, which names their values."""
    draw_above: float = 0.3
    """Least score of the boxes that are drawn; detections.json has everything that evaluation counts."""
    opacity: float = 0.5
    """How strongly classes are coloured: 0 shows the image, 1 the colours."""
    save_probabilities: bool = False
    """Write the probabilities of the pixels' classes too: probabilities/NAME.npz, float16 (K, H, W)."""

    def __post_init__(self) -> None:
        PredictSettings.__post_init__(self)
        check_share("draw_above", self.draw_above)
        check_share("opacity", self.opacity)


def ignored_settings(config: PredictConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    return ignored_predict_settings(config, one_by_one=True)
