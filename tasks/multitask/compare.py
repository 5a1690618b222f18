"""Train each task alone with the budget of a multitask run, and say what sharing the backbone costs and saves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from effdense.config import load_yaml
from effdense.errors import UserError
from effdense.json_files import read_json_lines
from effdense.tasks.detection import run as detection_run
from effdense.tasks.detection import train as detection_train
from effdense.tasks.detection import weights as detection_weights
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.evaluate import evaluate as evaluate_boxes
from effdense.tasks.detection.predict import load_detector
from effdense.tasks.multitask.budget import Budget, budget_alone, images_seen, settings_alone
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.multitask.costs import measure_costs
from effdense.tasks.multitask.predict import Multitask, load_multitask
from effdense.tasks.multitask.setup import Data
from effdense.tasks.multitask.transfer import Compared, Transfer, write_transfer
from effdense.tasks.segmentation import run as segmentation_run
from effdense.tasks.segmentation import train as segmentation_train
from effdense.tasks.segmentation import weights as segmentation_weights
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.evaluate import evaluate as evaluate_masks
from effdense.tasks.segmentation.predict import load_segmenter
from effdense.training.checkpoint import load_state
from effdense.training.device import choose_device
from effdense.training.run_folder import BEST, CONFIG, METRICS, STATE
from effdense.training.settings import WEIGHT_WORDS, TrainingSettings
from effdense.types import UInt8

log = logging.getLogger(__name__)

ALONE = "alone"
"""Folder of the single runs, in that of the multitask run."""

LABELS = {"detection": "images_with_boxes", "segmentation": "images_with_masks"}
"""What metrics.jsonl calls the images of an epoch with the label of each task."""

_OF_THE_MACHINE = ("device", "workers", "out", "resume")
"""Settings that a run may be taken up again with others of."""

_OF_THE_BUDGET = tuple(settings_alone(TrainingSettings(), Budget(1, 1, 1)))
"""Settings that depend on how many images the shared run has seen, so that they are known only after it."""

S = TypeVar("S", bound=TrainingSettings)


def check_single_runs(config: MultitaskConfig, folder: Path) -> None:
    """Refuse single runs that are there already and are not those to compare with, before the shared run begins.

    Args:
        config: resolved settings of the multitask run.
        folder: of the multitask run.

    Raises:
        UserError: names the first setting that differs; those of the budget are looked at after the shared run.
    """
    for task, settings_of in (("detection", detection_settings), ("segmentation", segmentation_settings)):
        alone = Alone(task, folder / ALONE / task, Budget(config.batch_size, config.epochs, config.batch_size), 0)
        if (alone.folder / STATE).is_file():
            settings: TrainingSettings = settings_of(config, alone)
            refuse_other_settings(settings, alone.folder, but=_OF_THE_BUDGET)


def compare(config: MultitaskConfig, best: Path, data: Data, batches_per_epoch: int) -> Path:
    """Train a detector and a segmenter alone, score all three models on the validation split, and write the report.

    What is there already of the single runs is kept: a finished one is not repeated, and an interrupted one goes on.

    Args:
        config: resolved settings of the multitask run.
        best: its best model, in its folder.
        data: what it was trained on; both labels are there.
        batches_per_epoch: of its loader.

    Returns:
        The path of compare.json; compare.md lies beside it, the single runs in ``alone/``.

    Raises:
        UserError: settings, data or disk that the user can mend, or single runs of other settings.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved and a text on how to go on.
    """
    assert data.detection is not None
    assert data.segmentation is not None
    folder = best.parent
    boxes = planned(config, folder, "detection", len(data.detection.train), batches_per_epoch)
    masks = planned(config, folder, "segmentation", len(data.segmentation.train), batches_per_epoch)
    try:
        train_alone(detection_settings(config, boxes), boxes.folder, detection_train.train)
        train_alone(segmentation_settings(config, masks), masks.folder, segmentation_train.train)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"Stopped in the comparison; go on with: --resume {folder}") from interrupt
    log.info("scoring the three models on the validation split, and measuring what they cost")
    device = choose_device(config.device)
    shared = load_multitask(best).to(device)
    detector = load_detector(boxes.folder / BEST).to(device)
    segmenter = load_segmenter(masks.folder / BEST).to(device)
    size, workers = config.batch_size, config.workers
    maps = [
        evaluate_boxes(one, data.detection.val, batch_size=size, workers=workers, evaluator=config.evaluator).map
        for one in (detector, shared.detector)
    ]
    mious = [
        evaluate_masks(one, data.segmentation.val, batch_size=size, workers=workers).miou
        for one in (segmenter, shared.segmenter)
    ]
    files = {"together": best, "detection alone": boxes.best, "segmentation alone": masks.best}
    transfer = Transfer(
        (compared(boxes, "mAP", maps, detector.header), compared(masks, "mIoU", mious, segmenter.header)),
        measure_costs(detector, segmenter, shared, image=example_image(shared, data)),
        config.seed,
        {name: one.relative_to(folder).as_posix() for name, one in files.items()},
        unlike(config),
    )
    return write_transfer(folder, transfer)


@dataclass(frozen=True)
class Alone:
    """A task that is trained alone.

    Attributes:
        task: ``detection`` or ``segmentation``.
        folder: of its run.
        budget: for how long.
        seen_together: images with its label that the shared run has seen.
    """

    task: str
    folder: Path
    budget: Budget
    seen_together: int

    @property
    def best(self) -> Path:
        """Its best model."""
        return self.folder / BEST


def planned(config: MultitaskConfig, folder: Path, task: str, num_images: int, batches_per_epoch: int) -> Alone:
    """Return what a task is to be trained with alone.

    The shared run's plan counts, not where ``early_stop`` may have ended it: that can end the single run too.

    Args:
        config: of the shared run.
        folder: of the shared run.
        task: ``detection`` or ``segmentation``.
        num_images: with this task's label, in the training split.
        batches_per_epoch: of the shared run.
    """
    records = read_json_lines(folder / METRICS)
    seen = images_seen(records, LABELS[task])
    budget = budget_alone(seen / len(records), batches_per_epoch, config.epochs, num_images)
    return Alone(task, folder / ALONE / task, budget, seen)


def detection_settings(config: MultitaskConfig, alone: Alone) -> DetectionConfig:
    """Return the settings of the detector's own run."""
    changes = {**settings_alone(config, alone.budget), "out": alone.folder}
    if config.replace_head:
        changes["replace_head"] = detection_weights.read_weights(config.weights).is_detector
    return detection_run.resolve(config.detection(**changes))


def segmentation_settings(config: MultitaskConfig, alone: Alone) -> SegmentationConfig:
    """Return the settings of the segmenter's own run."""
    changes = {**settings_alone(config, alone.budget), "out": alone.folder}
    if config.replace_head:
        changes["replace_head"] = segmentation_weights.read_weights(config.weights).is_segmenter(config.arch)
    return segmentation_run.resolve(config.segmentation(**changes))


def unlike(config: MultitaskConfig) -> tuple[str, ...]:
    """Return in sentences what a task that is trained alone cannot have as in the shared run."""
    sentences = []
    if config.max_class_share < 1:
        sentences.append(
            f"Crops were chosen by their masks together (--max-class-share {config.max_class_share}) and for the "
            "segmentation alone; the detector alone has no masks, so its crops are not chosen."
        )
    if config.arch == "bifpn" and config.share_bifpn:
        start = "" if config.weights in WEIGHT_WORDS else f", so that of {config.weights} it may have started with less"
        sentences.append(
            "Together the segmentation head reads the detector's BiFPN; alone it has one of its own, "
            f"which begins with P2{start}."
        )
    return tuple(sentences)


def train_alone(config: S, folder: Path, train: Callable[..., Path]) -> None:
    """Train, or go on with what was interrupted, or leave what is finished.

    Args:
        config: resolved settings.
        folder: of the run.
        train: that of the task.

    Raises:
        UserError: the folder holds a run of other settings, or whatever ``train`` raises.
    """
    if not (folder / STATE).is_file():
        log.info("alone, in %s: %d epochs in batches of %d", folder, config.epochs, config.batch_size)
        train(config, folder)
        return
    refuse_other_settings(config, folder)
    if is_finished(config, folder):
        log.info("alone, in %s: trained already", folder)
        return
    log.info("alone, in %s: going on", folder)
    train(config, folder, resume=True)


def refuse_other_settings(config: TrainingSettings, folder: Path, *, but: Collection[str] = ()) -> None:
    """Refuse a run that is not the one to compare with.

    Args:
        config: resolved settings of that one.
        folder: of the run.
        but: settings that are not looked at.

    Raises:
        UserError: names the first setting that differs.
    """
    kept = load_yaml(type(config), folder / CONFIG).config
    for one in fields(config):
        there, wanted = getattr(kept, one.name), getattr(config, one.name)
        if one.name not in (*_OF_THE_MACHINE, *but) and there != wanted:
            raise UserError(
                f"{folder} holds a run with {one.name} {there}, and the comparison needs {wanted}: remove that folder, "
                "or move it elsewhere"
            )


def is_finished(config: TrainingSettings, folder: Path) -> bool:
    """Whether a run has had all its epochs, or has stopped early."""
    progress = load_state(folder / STATE)["progress"]
    return bool(progress["epoch"] >= config.epochs or 0 < config.early_stop <= progress["stale"])


def compared(alone: Alone, score: str, alone_and_together: Sequence[float], header: dict[str, Any]) -> Compared:
    """Return the row of a task.

    Args:
        alone: how it was trained alone.
        score: what its score is called.
        alone_and_together: the two scores, 0..1.
        header: of the best model of its own run.
    """
    epochs = len(read_json_lines(alone.folder / METRICS))
    first, second = alone_and_together
    return Compared(
        task=alone.task,
        score=score,
        alone=first,
        together=second,
        images_alone=epochs * alone.budget.images_per_epoch,
        images_together=alone.seen_together,
        best_epoch_alone=int(header["epoch"]),
        epochs_alone=epochs,
        batch_size_alone=alone.budget.batch_size,
    )


def example_image(multitask: Multitask, data: Data) -> UInt8:
    """Return the first validation image with boxes as the network sees it, (S, S, 3).

    What is found in it takes time; noise would be no example.
    """
    assert data.detection is not None
    sample = data.detection.val.sample(0)
    return multitask.transform(sample, np.random.default_rng(0)).image
