"""Every setting of a multitask run: the YAML schema, the flags of ``train-multi`` and the Python API."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from effdense.datasets.data_sources import parse_source
from effdense.errors import UserError
from effdense.tasks.detection import config as detection
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.multitask.specs import SIZE_STEP, least_size
from effdense.tasks.segmentation import config as segmentation
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.loss_terms import parse_terms
from effdense.tasks.segmentation.specs import get_architecture
from effdense.training.settings import (
    ABOVE_ZERO,
    ALL_STAGES,
    ZERO_OR_MORE,
    Range,
    TrainingSettings,
    check_ranges,
    ignored_training_settings,
)

S = TypeVar("S", bound=TrainingSettings)

Part = Literal["backbone", "detection", "segmentation"]

_RANGES: tuple[Range, ...] = (
    (("det_weight", "seg_weight"), *ABOVE_ZERO),
    (("gradients_every", "gradnorm_alpha"), *ZERO_OR_MORE),
    (("mask_share",), "more than 0 and less than 1", lambda value: 0 < value < 1),
)

SELECTION = ("score_threshold", "nms", "nms_iou", "max_detections")
"""The settings of which boxes become detections."""

_OF_DETECTION = ("box_weight", "focal_alpha", "det_focal_gamma")
_OF_SEGMENTATION = (
    "seg_loss", "class_weights", "class_weighting", "ohem_threshold", "ohem_min_share", "seg_focal_gamma",
    "tversky_alpha", "tversky_beta", "auxiliary_weight", "max_class_share",
)  # fmt: skip
"""Settings of learning one of the tasks."""

_DATA = ("dataset", "data_root", "download", "train_annotations", "train_images", "val_annotations", "val_images")

_DETECTION_NAMES = {"arch": "det_arch", "focal_gamma": "det_focal_gamma"}
_SEGMENTATION_NAMES = {"loss": "seg_loss", "focal_gamma": "seg_focal_gamma"}
"""What settings of a single task are called here, where not the same."""


@dataclass(frozen=True)
class MultitaskConfig(TrainingSettings):
    """Settings of one training run."""

    dataset: Literal["demo", "coco", "voc"] = "demo"
    """Which kind of data set has both boxes and masks: the built-in demo scenes, COCO JSON, or Pascal VOC."""
    det_data: str | None = None
    """In place of --dataset: where the boxes come from, as KIND:FOLDER, such as voc:DIR or coco:DIR."""
    seg_data: str | None = None
    """In place of --dataset: where the masks come from, as KIND:FOLDER, such as voc:DIR, folder:DIR or coco:DIR."""
    backbone: str | None = None
    """Short name (b0 ... b8, l2, v2_s, lite0, edge_s ...) or any timm EfficientNet; see `effdense backbones`. By
    default that of --weights FILE, else the EfficientDet's own, and lite0 where neither is given."""
    arch: str = "fpn"
    """Decoder of the segmentation: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan,
    upernet, segformer, or bifpn, EfficientDet's own."""
    det_arch: str = "auto"
    """EfficientDet configuration (d0 ... d7, d7x, lite0 ... lite4, lite3x); auto takes the one of the backbone."""
    weights: str = "auto"
    """auto (ImageNet's if they can be had, else random and said), imagenet (or an error), none, or a file: of a
    multitask model, or of a detector or segmenter to which the other head is added, or of a backbone."""
    replace_head: bool = False
    """With --weights FILE: start the class layers afresh where the file's are for other classes."""
    freeze: tuple[Part, ...] = ()
    """Parts that stay as they are, to the bit: backbone, detection, segmentation. With `backbone detection` a
    segmentation head is added to a detector whose results do not change."""
    compare: bool = False
    """Train each task alone too, with the same budget, and report what sharing costs: compare.md in the run's folder;
    takes about as long again."""
    image_size: int | None = None
    """Side of the square that images are fitted into, in pixels, a multiple of 32; by default that of a frozen head,
    else the EfficientDet's (demo: 128, pan: 256)."""
    drop_path_rate: float | None = None
    """Stochastic depth of the backbone's last block; by default the EfficientDet's."""
    scale_min: float = 0.8
    """Smallest factor of the scale jitter, relative to --image-size."""
    scale_max: float = 1.25
    """Largest factor of the scale jitter; what is larger than --image-size is cropped at random."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 8
    """Images in a forward pass."""
    lr: float = 0.016
    """Learning rate for 64 images a step; scaled to the real number by its root (adamw) or linearly (sgd), and said."""
    label_smoothing: float = 0.0
    """Label smoothing of the classes of both tasks."""

    # --- data
    mask_share: float = 0.5
    """Where not every image has both labels: the share of each batch that is drawn from the images with masks; the rest
    is drawn from those with boxes."""
    labels: Literal["auto", "masks", "instances", "panoptic"] = "auto"
    """Where the masks come from: PNG files, COCO's instances drawn as masks, or COCO's panoptic PNGs; auto takes what
    the data set has."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the mask values, the first for 0; by default those of classes.txt, or of VOC."""
    binary_masks: bool = False
    """The masks hold 0 and 255, and 255 is a class (foreground), not what is to be ignored."""

    # --- model
    share_bifpn: bool = True
    """With --arch bifpn: the segmentation head reads the detector's own pyramid and P2; else it has a BiFPN of its
    own."""
    bifpn_channels: int | None = None
    """BiFPN width; by default the EfficientDet's."""
    bifpn_repeats: int | None = None
    """BiFPN layers; by default the EfficientDet's."""
    head_repeats: int | None = None
    """Convolutions in each detection head; by default the EfficientDet's."""
    anchor_scale: float | None = None
    """Smallest anchor, in units of the level's stride; by default the EfficientDet's."""
    num_scales: int | None = None
    """Anchor sizes an octave; by default the EfficientDet's 3."""
    aspect_ratios: tuple[float, ...] | None = None
    """Width over height of the anchors; by default the EfficientDet's 1, 2 and 0.5."""
    min_level: int | None = None
    """Finest pyramid level of the detector, of stride 2 to this power; by default 3."""
    max_level: int | None = None
    """Coarsest pyramid level of the detector; by default 7 (d7x: 8)."""
    act: Literal["silu", "relu6"] | None = None
    """Activation of BiFPN and detection heads; by default the EfficientDet's."""
    fusion: Literal["fastattn", "sum"] | None = None
    """How BiFPN fuses maps: learned weights or a plain sum; by default the EfficientDet's."""

    # --- augmentation
    max_class_share: float = 1.0
    """Most of a crop's labelled pixels that one class may have; other crops are drawn, up to ten. 1 is off."""

    # --- balancing the tasks
    balance: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """How the losses of the tasks are weighted: as --det-weight and --seg-weight say; by learned uncertainty
    (arXiv 1705.07115); or so that their gradients on the backbone stay in balance (GradNorm, arXiv 1711.02257). The two
    that adapt start from the weights given."""
    det_weight: float = 1.0
    """Weight of the detection loss."""
    seg_weight: float = 1.0
    """Weight of the segmentation loss."""
    gradnorm_alpha: float = 1.5
    """GradNorm: how strongly the task that learns more slowly is favoured; 0 keeps the gradient norms equal."""
    gradients_every: int = 20
    """Steps between two measurements of each task's gradient on the backbone, for the log and for GradNorm; one costs
    about two backward passes. 0 never measures."""

    # --- loss of the detection
    box_weight: float = 50.0
    """Weight of the box loss against the class loss (EfficientDet's 50)."""
    focal_alpha: float = 0.25
    """Focal loss of the detection: weight of the positive class."""
    det_focal_gamma: float = 1.5
    """Focal loss of the detection: how strongly easy anchors are discounted."""

    # --- loss of the segmentation
    seg_loss: str = "ce+dice"
    """Sum of terms with weights, such as ce+0.5*dice; terms are ce, dice, lovasz, focal and tversky."""
    class_weights: tuple[float, ...] | None = None
    """A weight for each class of the masks, in every term of the loss."""
    class_weighting: Literal["none", "median", "inverse_log"] = "none"
    """Weights from the pixel frequencies of the training split: median frequency balancing, or ENet's rule."""
    ohem_threshold: float = 0.0
    """Online hard example mining in ce: only pixels whose true class has a probability below this count; 0 is off."""
    ohem_min_share: float = 0.0625
    """With OHEM: at least this share of the labelled pixels count, the hardest."""
    seg_focal_gamma: float = 2.0
    """Focal loss of the segmentation: how strongly easy pixels are discounted."""
    tversky_alpha: float = 0.3
    """Tversky loss: weight of false positives."""
    tversky_beta: float = 0.7
    """Tversky loss: weight of false negatives."""
    auxiliary_weight: float = 0.0
    """Weight of an auxiliary head on the decoder's last level but one (deep supervision, 0.4 in PSPNet); 0 builds
    none."""

    # --- evaluation
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """Which library computes COCO's numbers; they agree to the last bit."""
    nms: Literal["hard", "soft"] | None = None
    """Non-maximum suppression: hard, or Gaussian soft; by default that of a frozen detector, else hard."""
    nms_iou: float | None = None
    """Overlap above which hard suppression drops a box of the same class; by default that of a frozen detector, else
    0.5."""
    score_threshold: float | None = None
    """Detections below this score are dropped; by default that of a frozen detector, else 0.001."""
    max_detections: int | None = None
    """Most detections an image; by default as many as of a frozen detector, else 100."""

    def __post_init__(self) -> None:
        if self.download and self.sources_named:
            raise UserError(
                "--download goes with --dataset voc or coco; --det-data and --seg-data name folders that are there"
            )
        TrainingSettings.__post_init__(self)
        check_ranges(self, _RANGES)
        for name, task in (("det_data", "detection"), ("seg_data", "segmentation")):
            if (value := getattr(self, name)) is not None:
                parse_source(value, task)
        self._check_size()
        self._check_frozen()
        self.detection()  # their checks hold here too
        self.segmentation()

    def _check_size(self) -> None:
        if self.image_size is None:
            return
        least = least_size(get_architecture(self.arch).name)
        if self.image_size % SIZE_STEP or self.image_size < least:
            below = max(least, self.image_size // SIZE_STEP * SIZE_STEP)
            above = max(below + SIZE_STEP, least)
            limit = f" from {least} on with --arch {self.arch}" if least > SIZE_STEP else ""
            raise UserError(
                f"image_size is {self.image_size}; a backbone shared by both heads takes multiples of {SIZE_STEP}"
                f"{limit}, such as {below} or {above}: give one of these as --image-size"
            )

    def _check_frozen(self) -> None:
        """Refuse what does not go together with the parts that are frozen."""
        frozen = self.frozen
        backbone = "--freeze backbone" if "backbone" in self.freeze else f"--freeze-stages {ALL_STAGES}"
        if len(frozen) == 3:
            named = "" if "backbone" in self.freeze else f" with {backbone}"
            raise UserError(f"--freeze {' '.join(self.freeze)}{named} leaves nothing to train: leave one of them out")
        if self.compare and self.freeze:
            raise UserError(
                "--compare trains each task alone beside this run, which --freeze makes no sense of: give one"
            )
        if self.balance == "gradnorm" and not self.gradients_every:
            raise UserError("--balance gradnorm works with measured gradients: give --gradients-every 1 or more")
        if self.balance != "fixed" and len(self.active) < 2:
            raise UserError(f"--balance {self.balance} weighs two tasks, --freeze leaves one to train: leave one out")
        if self.balance == "gradnorm" and "backbone" in frozen:
            raise UserError(f"--balance gradnorm balances gradients on the backbone, which {backbone} takes away")
        if self.weights in ("auto", "imagenet", "none") and frozen - {"backbone"}:
            heads = " and ".join(dict.fromkeys(part for part in self.freeze if part != "backbone"))
            raise UserError(f"--freeze {heads} needs --weights FILE that holds the head; --weights is {self.weights}")
        if "backbone" in frozen and self.weights == "none":
            raise UserError(f"{backbone} would freeze random weights under --weights none: leave one of them out")
        if self.arch == "bifpn" and self.share_bifpn and frozen == {"backbone", "segmentation"}:
            raise UserError(
                f"{backbone} with --freeze segmentation would change what the segmentation says, as the BiFPN that it "
                "reads goes on learning with the detection: give --no-share-bifpn, and weights of a segmenter with its "
                "own"
            )
        if "backbone" in self.freeze and self.freeze_stages:
            raise UserError("--freeze backbone freezes all stages: leave --freeze-stages out")

    @property
    def frozen(self) -> frozenset[str]:
        """The parts that stay as they are; ``freeze_stages`` can freeze the whole backbone too."""
        stages: tuple[Part, ...] = ("backbone",) if self.freeze_stages == ALL_STAGES else ()
        return frozenset((*self.freeze, *stages))

    @property
    def active(self) -> tuple[str, ...]:
        """The tasks that something is left to train of, or with."""
        if "backbone" in self.frozen:
            return tuple(task for task in ("detection", "segmentation") if task not in self.frozen)
        return "detection", "segmentation"

    @property
    def sources_named(self) -> bool:
        """Whether boxes and masks have a data set each, in place of one for both."""
        return self.det_data is not None or self.seg_data is not None

    def detection(self, **changes: Any) -> DetectionConfig:
        """Return these settings as those of a detector that is trained alone, with ``changes``."""
        return _of_task(self, DetectionConfig, self.det_data, "detection", _DETECTION_NAMES, changes)

    def segmentation(self, **changes: Any) -> SegmentationConfig:
        """Return these settings as those of a segmenter that is trained alone, with ``changes``."""
        ours: dict[str, Any] = {"output_stride": max(get_architecture(self.arch).output_strides)}
        if self.backbone is None:
            ours["backbone"] = SegmentationConfig.backbone
        if "ce" not in parse_terms(self.seg_loss):
            ours["label_smoothing"] = 0.0  # it is the detection's alone
        return _of_task(self, SegmentationConfig, self.seg_data, "segmentation", _SEGMENTATION_NAMES, ours | changes)


def _of_task(
    config: MultitaskConfig, kind: type[S], source: str | None, task: str, names: Any, changes: dict[str, Any]
) -> S:
    known = {one.name for one in fields(config)}
    values: dict[str, Any] = {}
    for one in fields(kind):
        name = names.get(one.name, one.name)
        if name in known and one.name != "resume" and not (name in SELECTION and getattr(config, name) is None):
            values[one.name] = getattr(config, name)
    if source is not None:
        parsed = parse_source(source, task)
        values |= {"dataset": parsed.name, "data_root": parsed.root}
    return kind(**(values | changes))


def ignored_settings(config: MultitaskConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    ignored = ignored_training_settings(config)
    for name, reason in segmentation.ignored_settings(config.segmentation()).items():
        ours = _SEGMENTATION_NAMES.get(name, name)
        ignored[ours] = reason.replace("--loss", "--seg-loss")
    for name, reason in detection.ignored_settings(config.detection()).items():
        ignored[_DETECTION_NAMES.get(name, name)] = reason
    for gone in ("label_smoothing", "stride", "image_size"):  # of both tasks, or none of these settings
        ignored.pop(gone, None)
    if config.sources_named:
        ignored |= dict.fromkeys(_DATA, "--det-data and --seg-data name the data")
    if config.arch != "bifpn":
        ignored["share_bifpn"] = f"--arch {config.arch} has no BiFPN"
    if config.balance != "gradnorm":
        ignored["gradnorm_alpha"] = f"--balance is {config.balance}"
    if "backbone" in config.frozen:
        why = "--freeze backbone" if "backbone" in config.freeze else f"--freeze-stages {ALL_STAGES}"
        why = f"{why} leaves nothing of the backbone to train"
        ignored |= dict.fromkeys(("gradients_every", "backbone_lr_factor", "drop_path_rate"), why)
    return ignored | _ignored_of_tasks(config)


def _ignored_of_tasks(config: MultitaskConfig) -> dict[str, str]:
    """Return the settings of a task that is not trained, or that no data are given for."""
    ignored: dict[str, str] = {}
    for task, settings in (("detection", _OF_DETECTION), ("segmentation", _OF_SEGMENTATION)):
        if task not in config.active:
            why = f"--freeze leaves nothing to train by the {task} loss"
            ignored |= dict.fromkeys((*settings, f"{task[:3]}_weight", "mask_share"), why)
    if "detection" not in config.active and "ce" not in parse_terms(config.seg_loss):
        ignored["label_smoothing"] = f"--seg-loss {config.seg_loss} has no ce term, and no other loss is trained"
    if config.sources_named and config.det_data is None:
        ignored["evaluator"] = "no boxes are given (--det-data)"
    if config.sources_named and config.seg_data is None:
        ignored |= dict.fromkeys(("labels", "classes", "binary_masks"), "no masks are given (--seg-data)")
    return ignored


def absolute_source(source: str | None) -> str | None:
    """Return KIND:FOLDER with its folder absolute, so that a run can be resumed from anywhere."""
    if source is None:
        return None
    name, colon, folder = source.partition(":")
    return f"{name}:{Path(folder).expanduser().absolute()}" if colon else source
