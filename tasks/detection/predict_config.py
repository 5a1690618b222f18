"""The settings of ``predict`` for a detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.prediction import PredictSettings, check_share, ignored_predict_settings


@dataclass(frozen=True)
class PredictConfig(PredictSettings):
    """What to predict with, on what, and where to leave it."""

    dataset: Literal["none", "demo", "coco", "voc"] = "none"
    """In place of images: a data set, whose image ids are kept in detections.json. Of any other
    folder, name the images themselves, or the folder that holds them."""
    out: Path = Path("drawn")
    """Folder for the pictures, overview.jpg with the first twelve, detections.json and images.json."""
    draw_above: float = 0.3
    """Least score of what is drawn; detections.json has everything that evaluation counts."""

    def __post_init__(self) -> None:
        PredictSettings.__post_init__(self)
        check_share("draw_above", self.draw_above)


def ignored_settings(config: PredictConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    return ignored_predict_settings(config)
