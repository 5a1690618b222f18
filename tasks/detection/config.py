"""Every setting of a detection run: the YAML schema, the flags of ``train-det`` and the Python API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effdense.errors import UserError
from effdense.training.settings import (
    ABOVE_ZERO,
    SHARE,
    ZERO_OR_MORE,
    Range,
    TrainingSettings,
    check_ranges,
    ignored_training_settings,
)

_RANGES: tuple[Range, ...] = (
    (("max_detections", "box_weight", "bifpn_channels", "bifpn_repeats", "head_repeats"), *ABOVE_ZERO),
    (("anchor_scale", "num_scales", "max_level"), *ABOVE_ZERO),
    (("score_threshold", "nms_iou"), *SHARE),
    (("focal_alpha",), "more than 0 and less than 1", lambda value: 0 < value < 1),
    (("focal_gamma",), *ZERO_OR_MORE),
)


@dataclass(frozen=True)
class DetectionConfig(TrainingSettings):
    """Settings of one training run."""

    dataset: Literal["demo", "coco", "voc"] = "demo"
    """Which kind of data set: the built-in demo scenes, COCO JSON, or Pascal VOC XML."""
    backbone: str | None = None
    """Short name (b0 ... b8, l2, v2_s, lite0, edge_s ...) or any timm EfficientNet; see `effdense backbones`.
    By default the architecture's own, and lite0 where neither is given."""
    arch: str = "auto"
    """EfficientDet configuration (d0 ... d7, d7x, lite0 ... lite4, lite3x); auto takes the one of the backbone."""
    weights: str = "auto"
    """auto (ImageNet's if they can be had, else random and said), imagenet (or an error), coco (a detector's), none, or
    a file."""
    replace_head: bool = False
    """With --weights FILE or coco: start the class head afresh where the file's is for other classes."""
    image_size: int | None = None
    """Side of the square that images are fitted into, in pixels; by default the architecture's (demo: 128)."""
    drop_path_rate: float | None = None
    """Stochastic depth of the backbone's last block; by default the architecture's."""
    scale_min: float = 0.8
    """Smallest factor of the scale jitter, relative to --image-size; 0.1 to 2 suits long runs on much data."""

    # --- model
    bifpn_channels: int | None = None
    """BiFPN width; by default the architecture's."""
    bifpn_repeats: int | None = None
    """BiFPN layers; by default the architecture's."""
    head_repeats: int | None = None
    """Convolutions in each head; by default the architecture's."""
    anchor_scale: float | None = None
    """Smallest anchor, in units of the level's stride; by default the architecture's."""
    num_scales: int | None = None
    """Anchor sizes an octave; by default the architecture's 3."""
    aspect_ratios: tuple[float, ...] | None = None
    """Width over height of the anchors; by default the architecture's 1, 2 and 0.5."""
    min_level: int | None = None
    """Finest pyramid level, of stride 2 to this power; by default the architecture's 3."""
    max_level: int | None = None
    """Coarsest pyramid level; by default the architecture's 7 (d7x: 8)."""
    act: Literal["silu", "relu6"] | None = None
    """Activation of BiFPN and heads; by default the architecture's."""
    fusion: Literal["fastattn", "sum"] | None = None
    """How BiFPN fuses maps: learned weights or a plain sum; by default the architecture's."""

    # --- loss
    box_weight: float = 50.0
    """Weight of the box loss against the class loss (EfficientDet's 50)."""
    focal_alpha: float = 0.25
    """Focal loss: weight of the positive class."""
    focal_gamma: float = 1.5
    """Focal loss: how strongly easy anchors are discounted."""

    # --- evaluation
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """Which library computes COCO's numbers; they agree to the last bit."""
    nms: Literal["hard", "soft"] = "hard"
    """Non-maximum suppression: hard, or Gaussian soft."""
    nms_iou: float = 0.5
    """Overlap above which hard suppression drops a box of the same class."""
    score_threshold: float = 0.001
    """Detections below this score are dropped."""
    max_detections: int = 100
    """Most detections an image."""

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        check_ranges(self, _RANGES)
        if self.min_level is not None and not 1 <= self.min_level <= 5:
            raise UserError(f"min_level is {self.min_level}, expected 1 to 5: a backbone has strides 2 to 32")
        finest = self.min_level or 3
        if self.max_level is not None and self.max_level <= finest:
            raise UserError(f"max_level is {self.max_level}, expected more than min_level, which is {finest}")
        if self.aspect_ratios is not None and not (self.aspect_ratios and min(self.aspect_ratios) > 0):
            raise UserError(f"aspect_ratios is {self.aspect_ratios}, expected one number above 0 or more")


def ignored_settings(config: DetectionConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    ignored = ignored_training_settings(config)
    if config.nms == "soft":
        ignored["nms_iou"] = "--nms soft lowers scores by overlap and has no threshold"
    return ignored
