"""What comes before the first step: settings resolved, data examined, detector and loader built."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from effdense.backbones.origin import freeze_and_say, restore_origin
from effdense.datasets.doctor import examine
from effdense.datasets.index import DetectionIndex
from effdense.datasets.loading import BatchLoader, train_loader
from effdense.datasets.opening import match_classes, open_dataset
from effdense.datasets.roots import ready_root
from effdense.errors import UserError
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.model import choose_spec, create_efficientdet
from effdense.tasks.detection.predict import Detector, Selection
from effdense.tasks.detection.specs import EfficientDetSpec, shapes_of
from effdense.training.device import choose_device
from effdense.transforms import mean_fill, train_transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The two splits of a run, examined: train with its boxes cleaned, val with every box as its file has it."""

    train: DetectionIndex
    val: DetectionIndex


def spec_of(config: DetectionConfig) -> EfficientDetSpec:
    """Return the EfficientDet constants that the settings ask for."""
    return choose_spec(
        config.arch,
        config.backbone,
        channels=config.bifpn_channels,
        bifpn_repeats=config.bifpn_repeats,
        head_repeats=config.head_repeats,
        anchor_scale=config.anchor_scale,
        num_scales=config.num_scales,
        aspect_ratios=None if config.aspect_ratios is None else shapes_of(config.aspect_ratios),
        min_level=config.min_level,
        max_level=config.max_level,
        act=config.act,
        fusion=config.fusion,
        drop_path_rate=config.drop_path_rate,
        image_size=config.image_size,
    )


def open_data(config: DetectionConfig) -> Data:
    """Open and examine both splits.

    Raises:
        UserError: the data cannot be used; the text names file and line or annotation id.
    """
    root = config.data_root
    if not config.files_named:
        root = ready_root(config.dataset, root, "detection", download=config.download)
    splits = {
        part: open_dataset(
            config.dataset,
            root,
            getattr(config, f"{part}_split"),
            annotations=getattr(config, f"{part}_annotations"),
            images=getattr(config, f"{part}_images"),
        )
        for part in ("train", "val")
    }
    return examined(splits["train"], splits["val"], skip_broken=config.skip_broken)


def examined(train: DetectionIndex, val: DetectionIndex, *, skip_broken: bool) -> Data:
    """Give both splits the same classes, let the doctor look at them, and log what it found.

    Raises:
        UserError: the data cannot be used; the text names file and line or annotation id.
    """
    val = match_classes(val, train.class_names, train.source)
    report = examine({"train": train, "val": val}, skip_broken=skip_broken)
    for line in report.lines():
        log.info("%s", line)
    report.raise_errors()
    return Data(report.cleaned["train"], report.sound["val"])


def build_detector(config: DetectionConfig, data: Data, *, origin: dict[str, Any] | None = None) -> Detector:
    """Build the detector that is to be trained.

    Args:
        config: resolved settings.
        data: whose classes it is to know.
        origin: on resuming, where the weights once came from (`origin_of`); no weights are looked for then.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    spec = spec_of(config)
    class_names = data.train.class_names
    model = create_efficientdet(
        spec,
        len(class_names),
        weights="none" if origin else config.weights,
        replace_head=config.replace_head and origin is None,
        class_names=class_names,
    )
    if origin is not None:
        restore_origin(model.backbone, origin)
    freeze_and_say(model.backbone, config.freeze_stages)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    assert config.image_size is not None
    detector = Detector(
        model.to(choose_device(config.device)),
        class_names,
        image_size=config.image_size,
        category_ids=data.train.category_ids,
        selection=Selection(config.score_threshold, config.nms, config.nms_iou, config.max_detections),
    )
    log.info(
        "EfficientDet %s on %s: %.1f M parameters, %d px, %s, %s",
        spec.name,
        spec.backbone,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        config.image_size,
        detector.device,
        "fp32" if config.amp == "off" else config.amp,
    )
    return detector


def check_batch(detector: Detector, num_images: int) -> None:
    """Refuse to train on one image where the coarsest level is a single cell: BatchNorm cannot learn from one value.

    Raises:
        UserError: names both ways out.
    """
    size = detector.image_size
    cells = detector.model.anchor_maker.feature_sizes((size, size))[-1]
    if num_images == 1 and cells == (1, 1):
        raise UserError(
            f"batches of one image at --image-size {size} leave BatchNorm one value to learn from: give a larger "
            "--batch-size (and as many images), or a larger --image-size"
        )


def training_loader(config: DetectionConfig, data: Data, detector: Detector) -> BatchLoader:
    """Build the loader of augmented batches."""
    size = detector.image_size
    transform = train_transform(
        image_size_hw=(size, size),
        fill=mean_fill(detector.model.backbone.mean),
        scale=(config.scale_min, config.scale_max),
        hflip=config.hflip,
        vflip=config.vflip,
        photometric=config.photometric,
        randaugment_ops=config.randaugment_ops,
        randaugment_magnitude=config.randaugment_magnitude,
    )
    return train_loader(
        data.train,
        transform,
        batch_size=config.batch_size,
        workers=config.workers,
        device=detector.device,
        seed=config.seed,
        fast_decode=config.fast_decode,
    )
