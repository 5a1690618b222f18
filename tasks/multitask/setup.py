"""What comes before the first step: data examined, model, loss and loader built."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effdense.backbones.origin import freeze_and_say, restore_origin
from effdense.datasets.class_names import classes_explained
from effdense.datasets.data_sources import parse_source
from effdense.datasets.loading import BatchLoader, balanced_train_loader
from effdense.datasets.multitask_index import MultitaskIndex
from effdense.datasets.multitask_opening import check_class_names, open_multitask
from effdense.datasets.roots import ready_root
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.model_parts import part_of
from effdense.tasks.detection import setup as detection
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.detection.predict import Selection
from effdense.tasks.multitask.config import SELECTION, MultitaskConfig
from effdense.tasks.multitask.loss import MultitaskLoss
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.segmentation import setup as segmentation
from effdense.training.device import choose_device
from effdense.training.settings import ALL_STAGES
from effdense.transforms import mean_fill, train_transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The data of a run, examined.

    Attributes:
        detection: both splits of the images with boxes, or None where no boxes are given.
        segmentation: both splits of the images with masks, or None where no masks are given.
        train: what is learnt from: all images that carry a label which a part in training needs.
    """

    detection: detection.Data | None
    segmentation: segmentation.Data | None
    train: MultitaskIndex


def open_data(config: MultitaskConfig) -> Data:
    """Open both splits of both labels, let the doctors look at them, and log what they found.

    Raises:
        UserError: the data cannot be used; or labels are missing that a part in training needs.
    """
    root = config.data_root
    if not config.files_named and not config.sources_named:
        panoptic = config.labels == "panoptic"
        root = ready_root(config.dataset, root, "multitask", download=config.download, panoptic=panoptic)
    opened = [
        open_multitask(
            config.dataset,
            root,
            getattr(config, f"{part}_split"),
            det_data=None if config.det_data is None else parse_source(config.det_data, "detection"),
            seg_data=None if config.seg_data is None else parse_source(config.seg_data, "segmentation"),
            labels=config.labels,
            classes=config.classes,
            binary=config.binary_masks,
            annotations=getattr(config, f"{part}_annotations"),
            images=getattr(config, f"{part}_images"),
        )
        for part in ("train", "val")
    ]
    (boxes, masks), (val_boxes, val_masks) = opened
    with_boxes = with_masks = None
    if boxes is not None and val_boxes is not None:
        with classes_explained(head="detection"):
            with_boxes = detection.examined(boxes, val_boxes, skip_broken=config.skip_broken)
    if masks is not None and val_masks is not None:
        with classes_explained(head="segmentation"):
            with_masks = segmentation.examined(masks, val_masks, skip_broken=config.skip_broken)
    _require_labels(config, with_boxes, with_masks)
    train = MultitaskIndex.of(
        with_boxes.train if with_boxes is not None and "detection" in config.active else None,
        with_masks.train if with_masks is not None and "segmentation" in config.active else None,
    )
    log.info("%s", train.summary())
    if "backbone" not in config.frozen:
        _warn_of_leaks(with_boxes, with_masks)
    return Data(with_boxes, with_masks, train)


def _warn_of_leaks(boxes: detection.Data | None, masks: segmentation.Data | None) -> None:
    """Say where an image is learnt from by one task and scored by the other: their backbone has seen it."""
    if boxes is None or masks is None:
        return
    for learnt, scored, first, second in (
        (boxes.train, masks.val, "boxes", "masks"),
        (boxes.val, masks.train, "masks", "boxes"),
    ):
        if common := MultitaskIndex.of(learnt, scored).counts.both:
            log.warning(
                "%d images are trained on for their %s and scored for their %s: the shared backbone has seen them, so "
                "the scores are too good",
                common,
                first,
                second,
            )


def _require_labels(config: MultitaskConfig, boxes: detection.Data | None, masks: segmentation.Data | None) -> None:
    """Refuse data without the labels of a task that is to be trained."""
    for task, there, kind, flag, tool in (
        ("detection", boxes, "boxes", "--det-data", "train_seg"),
        ("segmentation", masks, "masks", "--seg-data", "train_det"),
    ):
        if there is None and task in config.active:
            raise UserError(
                f"no {kind} are given, but the {task} head is to be trained: name them by {flag} KIND:FOLDER; "
                f"{tool} trains the other task alone, and --freeze backbone {task} keeps a head that --weights has"
            )


def class_names_of(config: MultitaskConfig, data: Data, state: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """Return the classes of each task: those of the data, and of a head without data those of its file.

    Raises:
        UserError: no class names are known for a head that is kept; or the two lists contradict each other.
    """
    names = {}
    for task, there in (("detection", data.detection), ("segmentation", data.segmentation)):
        if there is not None:
            names[task] = there.train.class_names
        elif state is not None:
            names[task] = tuple(state["class_names"][task])
        else:
            names[task] = tuple(_kept_header(config, task)["class_names"])
    check_class_names(names["detection"], names["segmentation"])
    return names


def category_ids_of(config: MultitaskConfig, data: Data, state: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Return the data set's own ids of the objects; where no boxes are given, those of the detector that is kept."""
    if data.detection is not None:
        return data.detection.train.category_ids
    if state is not None:
        return tuple(state["category_ids"])
    return tuple(_kept_header(config, "detection")["category_ids"])


def _kept_header(config: MultitaskConfig, task: str) -> dict[str, Any]:
    """Return what ``--weights`` says of a head that is kept and has no data.

    Raises:
        UserError: it says nothing, or has no such head.
    """
    try:
        header, _ = part_of(config.weights, read_header(Path(config.weights)), {}, task)
    except UserError as error:
        flag = "--det-data" if task == "detection" else "--seg-data"
        raise UserError(
            f"{error}. What classes the {task} head that is kept has, its file has to say, or {flag} KIND:FOLDER"
        ) from error
    return header


def build_multitask(config: MultitaskConfig, data: Data, state: Mapping[str, Any] | None = None) -> Multitask:
    """Build what is to be trained.

    Args:
        config: resolved settings.
        data: whose classes it is to know.
        state: on resuming, that of the run: no weights are looked for then.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    assert config.backbone is not None
    assert config.image_size is not None
    names = class_names_of(config, data, state)
    model = create_multitask(
        config.backbone,
        len(names["detection"]),
        len(names["segmentation"]),
        config.arch,
        det_arch=detection.spec_of(config.detection()),
        share_bifpn=config.share_bifpn,
        weights="none" if state else config.weights,
        replace_head=config.replace_head and state is None,
        class_names=names["detection"],
        seg_class_names=names["segmentation"],
        image_size=config.image_size,
        auxiliary=config.auxiliary_weight > 0,
        frozen=config.freeze,
    )
    if state is not None:
        restore_origin(model.backbone, state["origin"])
    freeze_and_say(model.backbone, ALL_STAGES if "backbone" in config.frozen else config.freeze_stages)
    model.freeze(config.freeze)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    multitask = Multitask(
        model.to(choose_device(config.device)),
        category_ids=category_ids_of(config, data, state),
        selection=Selection(**{name: getattr(config.detection(), name) for name in SELECTION}),
    )
    _log_model(config, multitask)
    return multitask


def _log_model(config: MultitaskConfig, multitask: Multitask) -> None:
    model = multitask.model
    log.info(
        "EfficientDet %s and %s on one %s: %.1f M parameters, %.1f M of them shared, %d px, %s, %s",
        model.spec.detection.name,
        config.arch,
        config.backbone,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        sum(parameter.numel() for parameter in model.backbone.parameters()) / 1e6,
        config.image_size,
        multitask.device,
        "fp32" if config.amp == "off" else config.amp,
    )
    if config.freeze:
        log.info("frozen, to the bit: %s", ", ".join(config.freeze))


def build_loss(config: MultitaskConfig, data: Data) -> MultitaskLoss:
    """Build the loss of both tasks.

    Raises:
        UserError: another number of class weights than of classes.
    """
    boxes = DetectionLoss(
        alpha=config.focal_alpha, gamma=config.det_focal_gamma, label_smoothing=config.label_smoothing
    )
    masks = None if data.segmentation is None else segmentation.build_loss(config.segmentation(), data.segmentation)
    return MultitaskLoss(boxes, masks, box_weight=config.box_weight)


def training_loader(config: MultitaskConfig, data: Data, multitask: Multitask) -> BatchLoader:
    """Build the loader of augmented batches.

    Raises:
        UserError: batches too small for BatchNorm.
    """
    size = multitask.image_size
    transform = train_transform(
        image_size_hw=(size, size),
        fill=mean_fill(multitask.model.backbone.mean),
        scale=(config.scale_min, config.scale_max),
        max_class_share=config.max_class_share,
        hflip=config.hflip,
        vflip=config.vflip,
        photometric=config.photometric,
        randaugment_ops=config.randaugment_ops,
        randaugment_magnitude=config.randaugment_magnitude,
    )
    loader, composition = balanced_train_loader(
        data.train,
        transform,
        batch_size=config.batch_size,
        mask_share=config.mask_share,
        workers=config.workers,
        device=multitask.device,
        seed=config.seed,
        fast_decode=config.fast_decode,
    )
    log.info("%s", composition)
    if not composition.epoch and config.mask_share != MultitaskConfig.mask_share:
        log.warning("--mask-share has no effect: every image has the same labels, so there is nothing to balance")
    multitask.model.check_batch(composition.boxes, composition.masks, (size, size))
    return loader
