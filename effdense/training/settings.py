"""The settings that every training run has, whatever its task; a task's own dataclass adds to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError

Range = tuple[tuple[str, ...], str, Callable[[float], bool]]
"""Names of settings, what they are to be, and whether a value is."""

ABOVE_ZERO: tuple[str, Callable[[float], bool]] = ("more than 0", lambda value: value > 0)
ZERO_OR_MORE: tuple[str, Callable[[float], bool]] = ("0 or more", lambda value: value >= 0)
SHARE: tuple[str, Callable[[float], bool]] = ("a number between 0 and 1", lambda value: 0 <= value <= 1)
BELOW_ONE: tuple[str, Callable[[float], bool]] = ("0 or more and less than 1", lambda value: 0 <= value < 1)

ALL_STAGES = 8
"""As ``freeze_stages``: the stem and every stage, of any backbone."""

WEIGHT_WORDS = ("auto", "imagenet", "coco", "none")
"""What ``weights`` can be beside a file."""

_RANGES: tuple[Range, ...] = (
    (("epochs", "batch_size", "accumulate", "eval_every", "scale_min", "lr", "image_size"), *ABOVE_ZERO),
    (("hflip", "vflip", "photometric", "ema_decay"), *SHARE),
    (("label_smoothing", "momentum", "drop_path_rate"), *BELOW_ONE),
    (
        ("weight_decay", "warmup_epochs", "clip_norm", "early_stop", "randaugment_ops", "backbone_lr_factor"),
        *ZERO_OR_MORE,
    ),
    (("workers",), "-1 (choose), 0 (none) or more", lambda value: value >= -1),
    (("freeze_stages",), f"0 to {ALL_STAGES}", lambda value: 0 <= value <= ALL_STAGES),
    (("randaugment_magnitude",), "0 to 10", lambda value: 0 <= value <= 10),
    (("seed",), "0 or more, below 2 to the power of 63", lambda value: 0 <= value < 2**63),
)


@dataclass(frozen=True)
class TrainingSettings:
    """What every training run can be told."""

    # --- data
    dataset: str = "demo"
    """Which kind of data set."""
    data_root: Path | None = None
    """Folder of the data set, by default data/voc or data/coco; the demo set needs none."""
    download: bool = False
    """Fetch the official archives of the data set into its folder, where they are not there yet."""
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

    fast_decode: bool = False
    """Decode a JPEG at 1/2, 1/4 or 1/8 where the scale jitter shrinks it to no more, and shrink it further by bilinear
    interpolation: a fifth to a half more images a second; they differ by 0.2 to 4 grey levels on average, the crops
    are the same. In training only."""

    # --- model
    backbone: str | None = None
    """Short name (b0 ... b8, l2, v2_s, lite0, edge_s ...) or any timm EfficientNet; see `effdense backbones`."""
    arch: str = "auto"
    """Architecture."""
    weights: str = "auto"
    """auto (ImageNet's if they can be had, else random and said), imagenet (or an error), none, or a file."""
    replace_head: bool = False
    """With --weights FILE: start the class head afresh where the file's is for other classes."""
    image_size: int | None = None
    """Side of the square that the network sees, in pixels."""
    drop_path_rate: float | None = None
    """Stochastic depth of the backbone's last block."""

    # --- augmentation
    scale_min: float = 0.8
    """Smallest factor of the scale jitter."""
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
    schedule: Literal["cosine", "poly"] = "cosine"
    """How the learning rate falls after the warm-up: half a cosine, or (1 - t) to the power of 0.9."""
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
    """Stages of the backbone, from the stem on, whose weights and BatchNorm statistics stay as they are; 8 is all
    of it."""
    ema: bool = True
    """Evaluate and save a moving average of the weights."""
    ema_decay: float = 0.9998
    """Decay of the average in a long run; it starts lower and rises, so short runs keep up."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; auto is bf16 where the hardware has it."""
    channels_last: bool = True
    """Keep tensors in channels-last order, which convolutions prefer."""
    compile: bool = False
    """Compile the network by torch.compile: pays in long runs on a GPU; needs a C++ compiler."""
    label_smoothing: float = 0.0
    """Label smoothing of the class targets."""

    # --- evaluation
    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    early_stop: int = 0
    """Stop after this many evaluations without a better score; 0 never stops early."""

    # --- run
    resume: Path | None = None
    """Go on with the run in this folder, by its own settings; only --device and --workers may be given beside it."""
    out: Path | None = None
    """Folder of the run; by default runs/TASK/NAME with a name made of the model, the data set and a number."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of weights, order and augmentation: the same seed gives the same run on the same machine; on a GPU up to the
    order of additions."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.scale_max < self.scale_min:
            raise UserError(f"scale_max {self.scale_max} is below scale_min {self.scale_min}")
        if self.warmup_epochs > self.epochs:
            raise UserError(f"warmup_epochs {self.warmup_epochs} is more than the run's {self.epochs} epochs")
        if self.weights == "none" and self.freeze_stages > 0:
            raise UserError("--freeze-stages would freeze random weights under --weights none: leave one of them out")
        self._check_data()

    def _check_data(self) -> None:
        """Refuse file settings that contradict each other."""
        for part in ("train", "val"):
            files = [getattr(self, f"{part}_annotations"), getattr(self, f"{part}_images")]
            if (files[0] is None) != (files[1] is None):
                raise UserError(f"--{part}-annotations and --{part}-images go together: give both or neither")
            if files[0] is not None and self.dataset != "coco":
                raise UserError(f"--{part}-annotations belongs to --dataset coco, not to {self.dataset}")
        if self.dataset == "demo" and self.data_root is not None:
            raise UserError("--data-root has no effect on the demo set: name another --dataset, or leave it out")
        if self.download and self.dataset not in ("voc", "coco"):
            raise UserError(f"--download fetches voc or coco; --dataset {self.dataset} has no official archive")

    @property
    def files_named(self) -> bool:
        """Whether both splits are named by their files, so that no data root is needed."""
        return self.train_annotations is not None and self.val_annotations is not None


def check_ranges(settings: object, ranges: Sequence[Range]) -> None:
    """Refuse numbers that are out of range; None is none.

    Raises:
        UserError: names the setting, its value and what it is to be.
    """
    for names, says, right in ranges:
        for name in names:
            value = getattr(settings, name)
            if value is not None and not right(value):
                raise UserError(f"{name} is {value}, expected {says}")


def ignored_training_settings(settings: TrainingSettings) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    ignored: dict[str, str] = {}
    if not settings.ema:
        ignored["ema_decay"] = "the moving average is off (--no-ema)"
    if settings.randaugment_ops == 0:
        ignored["randaugment_magnitude"] = "--randaugment-ops is 0"
    if settings.freeze_stages == ALL_STAGES:
        whole = f"--freeze-stages {ALL_STAGES} leaves nothing of the backbone to train"
        ignored["backbone_lr_factor"] = ignored["drop_path_rate"] = whole
    if settings.weights in ("auto", "imagenet", "none"):
        ignored["replace_head"] = f"--weights {settings.weights} brings no head"
    for part in ("train", "val"):
        if getattr(settings, f"{part}_annotations") is not None:
            ignored[f"{part}_split"] = f"--{part}-annotations names the file"
    if settings.files_named:
        ignored["data_root"] = ignored["download"] = "--train-annotations and --val-annotations name the files"
    return ignored
