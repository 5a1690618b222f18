"""What comes before the first step: data examined, segmenter, loss and loader built."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from effdense.backbones.origin import freeze_and_say, restore_origin
from effdense.datasets.loading import BatchLoader, train_loader
from effdense.datasets.roots import ready_root
from effdense.datasets.segmentation_doctor import examine_masks
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.datasets.segmentation_opening import match_segmentation_classes, open_segmentation
from effdense.errors import UserError
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.loss import SegmentationLoss, class_weights_from_counts
from effdense.tasks.segmentation.loss_terms import parse_terms
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.training.device import choose_device
from effdense.transforms import mean_fill, train_transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The two splits of a run, examined.

    Attributes:
        train: what is learnt from.
        val: what is evaluated on, with the classes of ``train``.
        pixel_counts: (K,), labelled pixels of each class in ``train``.
    """

    train: SegmentationIndex
    val: SegmentationIndex
    pixel_counts: npt.NDArray[np.int64]


def open_data(config: SegmentationConfig) -> Data:
    """Open and examine both splits.

    Raises:
        UserError: the data cannot be used; the text names file and value.
    """
    root = config.data_root
    if not config.files_named:
        panoptic = config.labels == "panoptic"
        root = ready_root(config.dataset, root, "segmentation", download=config.download, panoptic=panoptic)
    train, val = (
        open_segmentation(
            config.dataset,
            root,
            getattr(config, f"{part}_split"),
            classes=config.classes,
            binary=config.binary_masks,
            labels=config.labels,
            annotations=getattr(config, f"{part}_annotations"),
            images=getattr(config, f"{part}_images"),
        )
        for part in ("train", "val")
    )
    return examined(train, val, skip_broken=config.skip_broken)


def examined(train: SegmentationIndex, val: SegmentationIndex, *, skip_broken: bool) -> Data:
    """Give both splits the same classes, let the doctor look at them, and log what it found.

    Raises:
        UserError: the data cannot be used; the text names file and value.
    """
    val = match_segmentation_classes(val, train.class_names, train.source)
    report = examine_masks({"train": train, "val": val}, skip_broken=skip_broken)
    for line in report.lines():
        log.info("%s", line)
    report.raise_errors()
    return Data(report.sound["train"], report.sound["val"], report.pixel_counts["train"])


def build_segmenter(config: SegmentationConfig, data: Data, *, origin: dict[str, Any] | None = None) -> Segmenter:
    """Build the segmenter that is to be trained.

    Args:
        config: resolved settings.
        data: whose classes it is to know.
        origin: on resuming, where the weights once came from (`origin_of`); no weights are looked for then.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    assert config.backbone is not None
    assert config.image_size is not None
    class_names = data.train.class_names
    model = create_segmentation_model(
        config.arch,
        len(class_names),
        backbone=config.backbone,
        weights="none" if origin else config.weights,
        output_stride=config.output_stride,
        drop_path_rate=config.drop_path_rate or 0.0,
        auxiliary=config.auxiliary_weight > 0,
        replace_head=config.replace_head and origin is None,
        class_names=class_names,
    )
    if origin is not None:
        restore_origin(model.backbone, origin)
    freeze_and_say(model.backbone, config.freeze_stages)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    segmenter = Segmenter(
        model.to(choose_device(config.device)),
        class_names,
        image_size=config.scene_size or config.image_size,
        inference=Inference(window=config.window, stride=config.stride, scene_size=config.scene_size),
    )
    log.info(
        "%s on %s: %.1f M parameters, %d px, %d classes, %s, %s",
        config.arch,
        config.backbone,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        config.image_size,
        len(class_names),
        segmenter.device,
        "fp32" if config.amp == "off" else config.amp,
    )
    return segmenter


def build_loss(config: SegmentationConfig, data: Data) -> SegmentationLoss:
    """Build the loss, its class weights counted from the data where the settings say so.

    Raises:
        UserError: another number of weights than of classes.
    """
    names = data.train.class_names
    weights = config.class_weights
    if config.class_weighting != "none":
        weights = tuple(class_weights_from_counts(data.pixel_counts, config.class_weighting))
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True))
        log.info("class weights (%s): %s", config.class_weighting, shown)
    if weights is not None and len(weights) != len(names):
        raise UserError(
            f"class_weights has {len(weights)} numbers, the data has {len(names)} classes: {', '.join(names)}"
        )
    return SegmentationLoss(
        parse_terms(config.loss),
        len(names),
        class_weights=weights,
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma,
        tversky_alpha=config.tversky_alpha,
        tversky_beta=config.tversky_beta,
        ohem_threshold=config.ohem_threshold,
        ohem_min_share=config.ohem_min_share,
        auxiliary_weight=config.auxiliary_weight,
    )


def training_loader(config: SegmentationConfig, data: Data, segmenter: Segmenter) -> BatchLoader:
    """Build the loader of augmented batches.

    Raises:
        UserError: batches too small for the decoder's BatchNorm.
    """
    size, scene = config.image_size, config.scene_size
    assert size is not None
    segmenter.model.check_batch(min(config.batch_size, len(data.train)), (size, size))
    transform = train_transform(
        image_size_hw=(size, size),
        fill=mean_fill(segmenter.model.backbone.mean),
        scale=(config.scale_min, config.scale_max),
        scene_size_hw=(scene, scene) if scene else None,
        own_size=scene == 0,
        max_class_share=config.max_class_share,
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
        device=segmenter.device,
        seed=config.seed,
        fast_decode=config.fast_decode,
    )
