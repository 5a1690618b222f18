"""What comes before the first step: settings resolved, data examined, detector and loader built."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from effdense.datasets.doctor import examine
from effdense.datasets.index import DetectionIndex
from effdense.datasets.opening import match_classes, open_dataset
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.model import choose_spec, create_efficientdet
from effdense.tasks.detection.pipeline import BatchLoader, train_loader, train_transform
from effdense.tasks.detection.predict import Detector, Selection
from effdense.tasks.detection.specs import EfficientDetSpec
from effdense.training.device import choose_device
from effdense.transforms import mean_fill

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The two splits of a run, examined and cleaned."""

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
        image_size=config.image_size,
    )


def open_data(config: DetectionConfig) -> Data:
    """Open both splits, let the doctor look at them, and log what it found.

    Raises:
        UserError: the data cannot be used; the text names file and line or annotation id.
    """
    splits = {
        part: open_dataset(
            config.dataset,
            config.data_root,
            getattr(config, f"{part}_split"),
            annotations=getattr(config, f"{part}_annotations"),
            images=getattr(config, f"{part}_images"),
        )
        for part in ("train", "val")
    }
    splits["val"] = match_classes(splits["val"], splits["train"].class_names, splits["train"].source)
    report = examine(splits, skip_broken=config.skip_broken)
    for line in report.lines():
        log.info("%s", line)
    report.raise_errors()
    return Data(report.cleaned["train"], report.cleaned["val"])


def build_detector(config: DetectionConfig, data: Data, *, restore: bool) -> Detector:
    """Build the detector that is to be trained.

    Args:
        config: resolved settings.
        data: whose classes it is to know.
        restore: the weights come from the run's state, so none are looked for.
    """
    spec = spec_of(config)
    model = create_efficientdet(
        spec,
        len(data.train.class_names),
        weights="none" if restore else config.weights,
        replace_head=config.replace_head,
    )
    log.info("weights: %s", model.backbone.weights_source)
    device = choose_device(config.device)
    model.backbone.freeze_stages(config.freeze_stages)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    assert config.image_size is not None
    selection = Selection(config.score_threshold, config.nms, config.nms_iou, config.max_detections)
    detector = Detector(
        model.to(device),
        data.train.class_names,
        image_size=config.image_size,
        category_ids=data.train.category_ids,
        selection=selection,
    )
    log.info(
        "EfficientDet %s on %s: %.1f M parameters, %d px, %s",
        spec.name, spec.backbone, sum(p.numel() for p in model.parameters()) / 1e6, config.image_size, device,
    )  # fmt: skip
    return detector


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
    )
