"""The detection training loop, written out: data, model, epochs, evaluation, files, resume."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from effdense.config import to_mapping, to_yaml
from effdense.datasets.loading import BatchLoader
from effdense.errors import UserError
from effdense.files import write_atomically
from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.evaluate import Evaluation, evaluate
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.detection.metrics.coco_metrics import jsonable
from effdense.tasks.detection.model import EfficientDet
from effdense.tasks.detection.plots import plot_training, save_figure
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.setup import Data, build_detector, check_batches, open_data, origin_of, training_loader
from effdense.training.checkpoint import load_state, require_space, save_state, state_bytes
from effdense.training.ema import ModelEma
from effdense.training.interrupt import InterruptWatch
from effdense.training.optim import (
    build_optimizer,
    clip_gradients,
    parameter_groups,
    scale_lr,
    set_lr,
    warmup_cosine,
)
from effdense.training.precision import Precision, choose_precision
from effdense.training.randomness import random_state, restore_random_state, seed_everything
from effdense.training.runlog import Board, EpochBar, LossMeter, MetricsFile
from effdense.types import Batch

log = logging.getLogger(__name__)

STATE, BEST, LAST = "state.pt", "best.safetensors", "last.safetensors"
METRICS, CURVES, CONFIG = "metrics.jsonl", "training.png", "config.yaml"

STATE_COPIES = 10
"""What a run's files hold, in copies of the model: best, last and a state of four, each written beside the old one."""


@dataclass
class Progress:
    """Where a run is; saved with every state.

    Attributes:
        epoch: epochs finished.
        step: optimizer steps taken.
        batches: batches done of the epoch under way; 0 between epochs.
        best: best mAP so far, -1 before the first evaluation.
        best_epoch: the epoch (counted from 1) that it was reached in.
        stale: evaluations since.
        meter: the loss sums of the epoch under way.
    """

    epoch: int = 0
    step: int = 0
    batches: int = 0
    best: float = -1.0
    best_epoch: int = 0
    stale: int = 0
    meter: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """All that one training run works with."""

    config: DetectionConfig
    folder: Path
    data: Data
    detector: Detector
    loader: BatchLoader
    optimizer: torch.optim.Optimizer
    precision: Precision
    loss: DetectionLoss
    ema: ModelEma[EfficientDet] | None
    metrics: MetricsFile
    progress: Progress

    @property
    def model(self) -> EfficientDet:
        """The network that learns."""
        return self.detector.model

    @property
    def batches_per_epoch(self) -> int:
        """Forward passes an epoch."""
        return len(self.loader)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last may hold fewer batches than ``accumulate``."""
        return -(-self.batches_per_epoch // self.config.accumulate)

    def evaluated(self) -> Detector:
        """Return the detector that is evaluated and saved: the moving average, where one is kept."""
        return self.detector.with_model(self.model if self.ema is None else self.ema.module)


def train(config: DetectionConfig, folder: Path, *, resume: bool = False) -> Path:
    """Train a detector, evaluate it as it learns, and leave its files in a folder.

    Args:
        config: resolved settings (see `effdense.tasks.detection.run.resolve`).
        folder: where the run's files go; made once settings, data and weights are known to be usable.
        resume: go on from the folder's state; the result is that of a run never stopped.

    Returns:
        The path of the best model.

    Raises:
        UserError: anything about settings, data or disk that the user can mend.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved and a text on how to go on.
    """
    run = start(config, folder, resume=resume)
    board = Board(folder / "tensorboard", purge_step=run.progress.step + 1 if resume else None)
    watch = InterruptWatch()
    try:
        with watch:
            while run.progress.epoch < config.epochs and not stopped_early(run):
                epoch = run.progress.epoch
                losses, speed = train_one_epoch(run, watch)
                record = {
                    "epoch": epoch + 1,
                    "step": run.progress.step,
                    "lr": lr_at(run, run.progress.step - 1),
                    **losses,
                }
                evaluation = evaluate_epoch(run) if evaluation_due(run) else None
                finish_epoch(run, record, evaluation, speed, board)
                if watch.requested and run.progress.epoch < config.epochs:
                    watch.stop(f"Stopped after epoch {run.progress.epoch}; go on with: --resume {run.folder}")
    finally:
        board.close()
    save_figure(plot_training(folder / METRICS), folder / CURVES)
    return folder / BEST


def start(config: DetectionConfig, folder: Path, *, resume: bool) -> Run:
    """Build everything a run needs, and put it back where it was when resuming."""
    state = load_state(folder / STATE) if resume else None
    seed_everything(config.seed)
    data = open_data(config)
    detector = build_detector(config, data, origin=state["origin"] if state else None)
    check_batches(config, data, detector)
    model = detector.model
    groups = parameter_groups(
        model,
        weight_decay=config.weight_decay,
        backbone=model.backbone,
        backbone_lr_factor=config.backbone_lr_factor,
    )
    images_per_step = config.batch_size * config.accumulate
    lr = scale_lr(config.lr, images_per_step, config.optimizer)
    log.info(
        "learning rate %g for 64 images is %.3g for steps of %d (%s)", config.lr, lr, images_per_step, config.optimizer
    )
    if state is None:
        require_space(folder, state_bytes(model, copies=STATE_COPIES))
        write_atomically(folder / CONFIG, to_yaml(config))
    run = Run(
        config=config,
        folder=folder,
        data=data,
        detector=detector,
        loader=training_loader(config, data, detector),
        optimizer=build_optimizer(config.optimizer, groups, lr=lr, momentum=config.momentum),
        precision=choose_precision(config.amp, detector.device),
        loss=DetectionLoss(alpha=config.focal_alpha, gamma=config.focal_gamma, label_smoothing=config.label_smoothing),
        ema=ModelEma(model, config.ema_decay) if config.ema else None,
        metrics=MetricsFile(folder / METRICS, lines=state["metrics_lines"] if state else 0),
        progress=Progress(**state["progress"]) if state else Progress(),
    )
    if state is None:
        save(run)
    else:
        restore(run, state)
    return run


def train_one_epoch(run: Run, watch: InterruptWatch) -> tuple[dict[str, float], float]:
    """Train on every image once.

    Returns:
        The mean of each loss term, and images a second.

    Raises:
        NonFiniteLossError: naming step, image ids and terms.
        KeyboardInterrupt: after Ctrl-C, with the state saved.
    """
    config, progress = run.config, run.progress
    run.model.train()
    run.loader.set_epoch(progress.epoch, start=progress.batches * config.batch_size)
    meter = LossMeter(every=1 if run.detector.device.type == "cpu" else 20)
    if progress.batches:
        meter.restore(progress.meter)
    batches = run.batches_per_epoch
    bar = EpochBar(f"epoch {progress.epoch + 1}/{config.epochs}", batches, done=progress.batches)
    with bar:
        for batch in run.loader:
            one_batch(run, batch, batches, meter, watch)
            bar.advance(len(batch.image_ids), meter.known_means())
    progress.batches, progress.meter = 0, {}
    return meter.means(), bar.images_per_second()


def one_batch(run: Run, batch: Batch, batches: int, meter: LossMeter, watch: InterruptWatch) -> None:
    """Go forward and backward over a batch, and step where a group of them is complete."""
    config, progress = run.config, run.progress
    first = progress.batches // config.accumulate * config.accumulate
    losses = losses_of(run, run.model, batch.to(run.detector.device, non_blocking=True))
    meter.add(progress.step, batch.image_ids, losses)
    run.precision.backward(losses["total"] / min(config.accumulate, batches - first))
    progress.batches += 1
    if progress.batches % config.accumulate and progress.batches < batches:
        return
    optimizer_step(run)
    if watch.requested and progress.batches < batches:
        progress.meter = meter.state()
        save(run)
        watch.stop(f"Stopped within epoch {progress.epoch + 1}; go on with: --resume {run.folder}")


def losses_of(run: Run, model: EfficientDet, batch: Batch) -> dict[str, torch.Tensor]:
    """Return each loss term of a batch, and their weighted sum as ``total``."""
    with run.precision.autocast():
        class_logits, box_codes = model(batch.images)
    size_hw = (batch.images.shape[-2], batch.images.shape[-1])
    targets = assign(model.anchors(size_hw), batch.boxes_xyxy, batch.labels, batch.ignore)
    losses = run.loss(class_logits, box_codes, targets)
    return {**losses, "total": losses["class"] + run.config.box_weight * losses["box"]}


def optimizer_step(run: Run) -> None:
    """Clip, step, and let the moving average follow."""
    set_lr(run.optimizer, lr_at(run, run.progress.step))
    run.precision.unscale(run.optimizer)
    clip_gradients((p for g in run.optimizer.param_groups for p in g["params"]), run.config.clip_norm)
    run.precision.step(run.optimizer)
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.step += 1
    if run.ema is not None:
        run.ema.update(run.model)


def lr_at(run: Run, step: int) -> float:
    """Return the learning rate of a step."""
    config = run.config
    factor = warmup_cosine(
        step,
        steps=config.epochs * run.steps_per_epoch,
        warmup_steps=round(config.warmup_epochs * run.steps_per_epoch),
    )
    return scale_lr(config.lr, config.batch_size * config.accumulate, config.optimizer) * factor


def evaluation_due(run: Run) -> bool:
    """Whether the epoch that just ended is to be evaluated."""
    ended = run.progress.epoch + 1
    return ended % run.config.eval_every == 0 or ended == run.config.epochs


def evaluate_epoch(run: Run) -> Evaluation:
    """Evaluate on the validation split and remember the best."""
    detector, progress = run.evaluated(), run.progress
    evaluation = evaluate(
        detector,
        run.data.val,
        batch_size=run.config.batch_size,
        workers=run.config.workers,
        evaluator=run.config.evaluator,
    )
    score = evaluation.map
    detector.header = header_of(run, evaluation, progress.epoch + 1)
    if score > progress.best:
        progress.best, progress.best_epoch, progress.stale = score, progress.epoch + 1, 0
        detector.save(run.folder / BEST)
    else:
        progress.stale += 1
    return evaluation


def finish_epoch(run: Run, record: dict[str, Any], evaluation: Evaluation | None, speed: float, board: Board) -> None:
    """Write the epoch's files; the state comes last, so that a crash at any point repeats the epoch and no more."""
    run.progress.epoch += 1
    detector = run.evaluated()
    detector.header = header_of(run, evaluation, run.progress.epoch)
    detector.save(run.folder / LAST)
    if evaluation is not None:
        record.update(evaluation.coco.metrics)
    record["images_per_second"] = speed
    record["time"] = time.time()
    run.metrics.append(record)
    board.scalars({name: value for name, value in run_scalars(record).items() if value is not None}, run.progress.step)
    save(run)
    scores = "" if evaluation is None else f"  mAP {evaluation.map:.4f}  mAP50 {evaluation.coco.metrics['AP50']:.4f}"
    if run.progress.best_epoch == run.progress.epoch:
        scores += "  best"
    terms = "  ".join(f"{name} {record[name]:.4f}" for name in ("total", "class", "box"))
    log.info("epoch %d/%d  %s%s  %.1f img/s", run.progress.epoch, run.config.epochs, terms, scores, speed)


def stopped_early(run: Run) -> bool:
    """Whether the mAP has not improved for ``early_stop`` evaluations."""
    if run.config.early_stop and run.progress.stale >= run.config.early_stop:
        log.info("stopped early: no better mAP than %.4f in %d evaluations", run.progress.best, run.progress.stale)
        return True
    return False


def run_scalars(record: dict[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a record, named as TensorBoard groups them."""
    losses = ("total", "class", "box")
    skip = ("epoch", "step", "time")
    return {(f"loss/{k}" if k in losses else k): v for k, v in record.items() if k not in skip}


def header_of(run: Run, evaluation: Evaluation | None, epoch: int) -> dict[str, Any]:
    """Return what a model file says of its training and its score."""
    scores = None if evaluation is None else jsonable(evaluation.coco.metrics)
    return {"config": to_mapping(run.config), "epoch": epoch, "scores": scores}


def save(run: Run) -> None:
    """Write all that resuming needs."""
    state = {
        "progress": dict(vars(run.progress)),
        "metrics_lines": run.metrics.lines,
        "model": run.model.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "ema_updates": 0 if run.ema is None else run.ema.updates,
        "optimizer": run.optimizer.state_dict(),
        "scaler": None if run.precision.scaler is None else run.precision.scaler.state_dict(),
        "random": random_state(),
        "class_names": list(run.detector.class_names),
        "num_images": len(run.data.train),
        "origin": origin_of(run.model),
    }
    save_state(run.folder / STATE, state)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a run back where `save` left it.

    Raises:
        UserError: the data set is not the one that the run began with.
    """
    if tuple(state["class_names"]) != run.detector.class_names or state["num_images"] != len(run.data.train):
        raise UserError(
            f"{run.folder} was trained on {state['num_images']} images of {len(state['class_names'])} classes, the "
            f"data now has {len(run.data.train)} of {len(run.detector.class_names)}: resuming needs the same data"
        )
    run.model.load_state_dict(state["model"])
    if run.ema is not None:
        run.ema.module.load_state_dict(state["ema"])
        run.ema.updates = state["ema_updates"]
    run.optimizer.load_state_dict(state["optimizer"])
    if run.precision.scaler is not None and state["scaler"]:
        run.precision.scaler.load_state_dict(state["scaler"])
    restore_random_state(state["random"])
