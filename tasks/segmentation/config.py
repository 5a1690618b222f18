"""Every setting of a segmentation run: the YAML schema, the flags of ``train-seg`` and the Python API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effdense.errors import UserError
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.loss_terms import parse_terms
from effdense.tasks.segmentation.specs import get_architecture
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
    (("tversky_alpha", "tversky_beta"), *ABOVE_ZERO),
    (("focal_gamma", "auxiliary_weight"), *ZERO_OR_MORE),
    (("ohem_threshold", "ohem_min_share"), *SHARE),
    (("max_class_share",), "more than 0 and at most 1", lambda value: 0 < value <= 1),
)

DEMO_IMAGE_SIZE = 128
"""The demo scenes are this large."""

DEFAULT_IMAGE_SIZE = 512


@dataclass(frozen=True)
class SegmentationConfig(TrainingSettings):
    """Settings of one training run."""

    dataset: Literal["demo", "coco", "voc", "folder"] = "demo"
    """Which kind of data set: the built-in demo scenes, COCO JSON, Pascal VOC, or folders images/ and masks/."""
    arch: str = "fpn"
    """Decoder: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan, upernet, segformer, or
    bifpn, EfficientDet's own."""
    backbone: str | None = "lite0"
    """Short name (b0 ... b8, l2, v2_s, lite0, edge_s ...) or any timm EfficientNet; see `effdense backbones`."""
    weights: str = "auto"
    """auto (ImageNet's if they can be had, else random and said), imagenet (or an error), none, or a file: of a
    backbone, a segmenter, or a detector, whose backbone is taken."""
    image_size: int | None = None
    """Side of the square that the network sees, in pixels; by default 512 (demo: 128)."""
    drop_path_rate: float | None = None
    """Stochastic depth of the backbone's last block; by default 0."""
    scale_min: float = 0.5
    """Smallest factor of the scale jitter, relative to --scene-size."""
    scale_max: float = 2.0
    """Largest factor of the scale jitter; what is larger than --image-size is cropped at random."""
    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 8
    """Images in a forward pass."""
    lr: float = 0.016
    """Learning rate for 64 images a step; scaled to the real number by its root (adamw) or linearly (sgd), and said."""

    # --- data
    labels: Literal["auto", "masks", "instances", "panoptic"] = "auto"
    """Where the masks come from: PNG files, COCO's instances drawn as masks, or COCO's panoptic PNGs; auto takes what
    the data set has."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the mask values, the first for 0; by default those of classes.txt, or of VOC."""
    binary_masks: bool = False
    """The masks hold 0 and 255, and 255 is a class (foreground), not what is to be ignored."""

    # --- model
    output_stride: int | None = None
    """Stride of the backbone's last map, 8, 16 or 32, by dilation; by default the decoder's own."""
    scene_size: int | None = None
    """Side of the square that a whole image is fitted into before scale jitter and crop, in pixels; by default
    --image-size; 0 keeps each image's own pixels and needs --window."""

    # --- augmentation
    max_class_share: float = 0.75
    """Most of a crop's labelled pixels that one class may have; other crops are drawn, up to ten. 1 is off."""

    # --- loss
    loss: str = "ce+dice"
    """Sum of terms with weights, such as ce+0.5*dice; terms are ce, dice, lovasz, focal and tversky."""
    class_weights: tuple[float, ...] | None = None
    """A weight for each class, in every term of the loss."""
    class_weighting: Literal["none", "median", "inverse_log"] = "none"
    """Weights from the pixel frequencies of the training split: median frequency balancing, or ENet's rule."""
    ohem_threshold: float = 0.0
    """Online hard example mining in ce: only pixels whose true class has a probability below this count; 0 is off."""
    ohem_min_share: float = 0.0625
    """With OHEM: at least this share of the labelled pixels count, the hardest."""
    focal_gamma: float = 2.0
    """Focal loss: how strongly easy pixels are discounted."""
    tversky_alpha: float = 0.3
    """Tversky loss: weight of false positives."""
    tversky_beta: float = 0.7
    """Tversky loss: weight of false negatives."""
    auxiliary_weight: float = 0.0
    """Weight of an auxiliary head on the decoder's last level but one (deep supervision, 0.4 in PSPNet): of stride 16
    mostly, of stride 4 in pspnet, which reads 4 and 8; 0 builds none."""

    # --- evaluation
    window: int | None = None
    """Evaluate by sliding a window of this side over the image, in pixels; by default, or with 0, the image as a
    whole."""
    stride: int | None = None
    """Pixels from one window to the next; by default three quarters of --window."""

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        check_ranges(self, _RANGES)
        terms = parse_terms(self.loss)
        allowed = get_architecture(self.arch).output_strides
        if self.output_stride is not None and self.output_stride not in allowed:
            raise UserError(
                f"output_stride is {self.output_stride}; {self.arch} takes {' or '.join(map(str, allowed))}"
            )
        if self.backbone is None:
            raise UserError("backbone is none: name one, such as lite0 or b2")
        if self.ohem_threshold and "ce" not in terms:
            raise UserError(f"--ohem-threshold picks pixels of the term ce, which --loss {self.loss} has not")
        if self.class_weights is not None and self.class_weighting != "none":
            raise UserError("--class-weights and --class-weighting both set the weights of the classes: give one")
        if self.class_weights is not None and not (min(self.class_weights) >= 0 < max(self.class_weights)):
            raise UserError(f"class_weights is {self.class_weights}, expected numbers of 0 or more, one above 0")
        if self.scene_size == 0 and not self.window:
            raise UserError("--scene-size 0 keeps images at their own size, which evaluation needs --window for")
        Inference(self.window, self.stride, self.sizes[1])

    @property
    def sizes(self) -> tuple[int, int]:
        """``image_size`` and ``scene_size``, in pixels, the defaults filled in."""
        image_size = self.image_size or (DEMO_IMAGE_SIZE if self.dataset == "demo" else DEFAULT_IMAGE_SIZE)
        return image_size, image_size if self.scene_size is None else self.scene_size


def ignored_settings(config: SegmentationConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    ignored = ignored_training_settings(config)
    terms = parse_terms(config.loss)
    if "focal" not in terms:
        ignored["focal_gamma"] = f"--loss {config.loss} has no focal term"
    if "tversky" not in terms:
        ignored |= dict.fromkeys(("tversky_alpha", "tversky_beta"), f"--loss {config.loss} has no tversky term")
    if "ce" not in terms:
        ignored["label_smoothing"] = f"--loss {config.loss} has no ce term"
    if not config.ohem_threshold:
        ignored["ohem_min_share"] = "--ohem-threshold is 0"
    if not config.window:
        ignored["stride"] = "no --window is given"
    image_size, scene_size = config.sizes
    largest = round(config.scale_max * scene_size)
    if scene_size and largest <= image_size:
        ignored["max_class_share"] = f"no image exceeds {largest} pixels, so nothing is cropped to {image_size}"
    return ignored
