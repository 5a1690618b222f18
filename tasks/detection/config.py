"""Every setting of a detection run: the YAML schema, the flags of ``train-det`` and the Python API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError

_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (
        ("epochs", "batch_size", "accumulate", "eval_every", "max_detections", "scale_min", "lr", "box_weight"),
        "more than 0",
        lambda value: value > 0,
    ),
    (
        ("image_size", "bifpn_channels", "bifpn_repeats", "head_repeats", "anchor_scale", "num_scales", "max_level"),
        "more than 0",
        lambda value: value > 0,
    ),
    (
        ("hflip", "vflip", "photometric", "score_threshold", "nms_iou", "ema_decay"),
        "a number between 0 and 1",
        lambda value: 0 <= value <= 1,
    ),
    (("label_smoothing", "momentum", "drop_path_rate"), "0 or more and less than 1", lambda value: 0 <= value < 1),
    (("focal_alpha",), "more than 0 and less than 1", lambda value: 0 < value < 1),
    (
        ("weight_decay", "warmup_epochs", "clip_norm", "early_stop", "randaugment_ops", "backbone_lr_factor"),
        "0 or more",
        lambda value: value >= 0,
    ),
    (("focal_gamma",), "0 or more", lambda value: value >= 0),
    (("workers",), "-1 (choose), 0 (none) or more", lambda value: value >= -1),
    (("freeze_stages",), "0 to 7", lambda value: 0 <= value <= 7),
    (("randaugment_magnitude",), "0 to 10", lambda value: 0 <= value <= 10),
    (("seed",), "0 or more, below 2 to the power of 63", lambda value: 0 <= value < 2**63),
)
"""Names of settings, what they are to be, and whether a value is."""


@dataclass(frozen=True)
class DetectionConfig:
    """Settings of one training run."""

    # --- data
    dataset: Literal["demo", "coco", "voc"] = "demo"
    """Which kind of data set: the built-in demo scenes, COCO JSON, or Pascal VOC XML."""
    data_root: Path | None = None
    """Folder of the data set; the demo set needs none."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split to evaluate on and to choose the best epoch by."""
    train_annotations: Path | None = None
    """COCO: annotation file to train on, in place of a known layout; goes with --train-images."""
    train_images: Path | None = None
    """COCO: folder of the training images."""
    val_annotations: Path | None = None
    """COCO: annotation file to evaluate on; goes with --val-images."""
    val_images: Path | None = None
    """COCO: folder of the images to evaluate on."""
    skip_broken: bool = False
    """Leave out images that are missing or cannot be read, and count them, where otherwise the run would stop."""
    workers: int = -1
    """Processes that load images; 0 loads in the main process; -1 chooses: 0 on a CPU, up to 8 beside a GPU."""

    # --- model
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
    drop_path_rate: float | None = None
    """Stochastic depth of the backbone's last block; by default the architecture's."""

    # --- augmentation
    scale_min: float = 0.8
    """Smallest factor of the scale jitter, relative to --image-size; 0.1 to 2 suits long runs on much data."""
    scale_max: float = 1.25
    """Largest factor of the scale jitter."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip: 0.5 where up and down mean nothing, as in microscopy."""
    photometric: float = 0.0
    """Strength, 0 to 1, of random brightness, contrast, saturation and hue."""
    randaugment_ops: int = 0
    """RandAugment operations an image; 0 is off."""
    randaugment_magnitude: float = 5.0
    """Strength of RandAugment's operations, 0 to 10."""

    # --- optimisation
    epochs: int = 12
    """Passes over the training split."""
    batch_size: int = 4
    """Images in a forward pass; a small batch takes more steps an epoch, which counts on small data."""
    accumulate: int = 1
    """Forward passes an optimizer step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    lr: float = 0.032
    """Learning rate for 64 images a step; scaled to the real number by its root (adamw) or linearly (sgd), and said."""
    backbone_lr_factor: float = 1.0
    """Factor on the learning rate of the backbone."""
    weight_decay: float = 1e-4
    """Weight decay of everything but biases, norms and fusion weights."""
    momentum: float = 0.9
    """SGD's momentum, AdamW's first beta."""
    warmup_epochs: float = 0.5
    """Epochs of linear warm-up."""
    clip_norm: float = 10.0
    """Largest norm of the gradient; 0 is off."""
    freeze_stages: int = 0
    """Stages of the backbone, from the stem on, whose weights and BatchNorm statistics stay as they are (0 to 7)."""
    ema: bool = True
    """Evaluate and save a moving average of the weights."""
    ema_decay: float = 0.9998
    """Decay of the average in a long run; it starts lower and rises, so short runs keep up."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; auto is bf16 where the hardware has it."""
    channels_last: bool = True
    """Keep tensors in channels-last order, which convolutions prefer."""

    # --- loss
    box_weight: float = 50.0
    """Weight of the box loss against the class loss (EfficientDet's 50)."""
    focal_alpha: float = 0.25
    """Focal loss: weight of the positive class."""
    focal_gamma: float = 1.5
    """Focal loss: how strongly easy anchors are discounted."""
    label_smoothing: float = 0.0
    """Label smoothing of the class targets."""

    # --- evaluation
    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    early_stop: int = 0
    """Stop after this many evaluations without a better mAP; 0 never stops early."""
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

    # --- run
    resume: Path | None = None
    """Go on with the run in this folder, by its own settings; only --device and --workers may be given beside it."""
    out: Path | None = None
    """Folder of the run; by default runs/detection/NAME with a name made of backbone, data set and a number."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of weights, order and augmentation: the same seed gives the same run on the same machine."""

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.scale_max < self.scale_min:
            raise UserError(f"scale_max {self.scale_max} is below scale_min {self.scale_min}")
        if self.warmup_epochs > self.epochs:
            raise UserError(f"warmup_epochs {self.warmup_epochs} is more than the run's {self.epochs} epochs")
        if self.min_level is not None and not 1 <= self.min_level <= 5:
            raise UserError(f"min_level is {self.min_level}, expected 1 to 5: a backbone has strides 2 to 32")
        finest = self.min_level or 3
        if self.max_level is not None and self.max_level <= finest:
            raise UserError(f"max_level is {self.max_level}, expected more than min_level, which is {finest}")
        if self.aspect_ratios is not None and not (self.aspect_ratios and min(self.aspect_ratios) > 0):
            raise UserError(f"aspect_ratios is {self.aspect_ratios}, expected one number above 0 or more")
        if self.weights == "none" and self.freeze_stages > 0:
            raise UserError("--freeze-stages would freeze random weights under --weights none: leave one of them out")
        self._check_data()

    def _check_ranges(self) -> None:
        """Refuse numbers that are out of range."""
        for names, says, right in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not right(value):
                    raise UserError(f"{name} is {value}, expected {says}")

    def _check_data(self) -> None:
        """Refuse file settings that contradict each other."""
        for part in ("train", "val"):
            files = [getattr(self, f"{part}_annotations"), getattr(self, f"{part}_images")]
            if (files[0] is None) != (files[1] is None):
                raise UserError(f"--{part}-annotations and --{part}-images go together: give both or neither")
            if files[0] is not None and self.dataset != "coco":
                raise UserError(f"--{part}-annotations belongs to --dataset coco, not to {self.dataset}")
        explicit = self.train_annotations is not None and self.val_annotations is not None
        if self.dataset in ("coco", "voc") and self.data_root is None and not explicit:
            raise UserError(f"--dataset {self.dataset} needs --data-root DIR")
        if self.dataset == "demo" and self.data_root is not None:
            raise UserError("--data-root has no effect on the demo set: give --dataset coco or voc, or leave it out")


def ignored_settings(config: DetectionConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    ignored: dict[str, str] = {}
    if not config.ema:
        ignored["ema_decay"] = "the moving average is off (--no-ema)"
    if config.randaugment_ops == 0:
        ignored["randaugment_magnitude"] = "--randaugment-ops is 0"
    if config.nms == "soft":
        ignored["nms_iou"] = "--nms soft lowers scores by overlap and has no threshold"
    if config.weights in ("auto", "imagenet", "none"):
        ignored["replace_head"] = f"--weights {config.weights} brings no head"
    explicit = [part for part in ("train", "val") if getattr(config, f"{part}_annotations") is not None]
    for part in explicit:
        ignored[f"{part}_split"] = f"--{part}-annotations names the file"
    if len(explicit) == 2:
        ignored["data_root"] = "--train-annotations and --val-annotations name the files"
    return ignored
