"""The detection training loop, written out: data, model, epochs, evaluation, files, resume."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effdense.backbones.origin import origin_of
from effdense.config import to_mapping
from effdense.datasets.loading import BatchLoader
from effdense.json_files import jsonable
from effdense.plots import save_figure
from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.evaluate import Evaluation, evaluate
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.detection.model import EfficientDet
from effdense.tasks.detection.plots import plot_training
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.setup import Data, build_detector, check_batch, open_data, training_loader
from effdense.training.checkpoint import load_state, save_state, state_bytes
from effdense.training.compilation import check_compiler, compile_parts, explained_compiling
from effdense.training.interrupt import InterruptWatch
from effdense.training.learner import (
    Learner,
    Progress,
    backward,
    build_learner,
    evaluation_due,
    learner_state,
    lr_at,
    restore_learner,
    stopped_early,
)
from effdense.training.randomness import seed_everything
from effdense.training.run_folder import (
    BEST,
    CURVES,
    LAST,
    METRICS,
    STATE,
    make_run_folder,
    require_same_data,
)
from effdense.training.runlog import Board, EpochBar, LossMeter, MetricsFile, write_record
from effdense.types import Batch

log = logging.getLogger(__name__)


@dataclass
class Run:
    """All that one training run works with."""

    config: DetectionConfig
    folder: Path
    data: Data
    detector: Detector
    loader: BatchLoader
    learner: Learner[EfficientDet]
    loss: DetectionLoss
    metrics: MetricsFile

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.learner.progress

    def evaluated(self) -> Detector:
        """Return the detector that is evaluated and saved: the moving average, where one is kept."""
        return self.detector.with_model(self.learner.averaged)


def train(config: DetectionConfig, folder: Path, *, resume: bool = False) -> Path:
    """Train a detector, evaluate it as it learns, and leave its files in a folder.

    Args:
        config: resolved settings (see `effdense.tasks.detection.run.resolve`).
        folder: where the run's files go; made once settings, data and weights are known to be usable.
        resume: go on from the folder's state; on a CPU the result is that of a run never stopped, on a GPU up to the
            order of additions.

    Returns:
        The path of the best model.

    Raises:
        UserError: anything about settings, data or disk that the user can mend.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved and a text on how to go on.
    """
    run = start(config, folder, resume=resume)
    learner, progress = run.learner, run.progress
    board = Board(folder / "tensorboard", purge_step=progress.step + 1 if resume else None)
    watch = InterruptWatch()
    try:
        with watch, explained_compiling(watch, folder):
            while progress.epoch < config.epochs and not stopped_early(learner, "mAP"):
                losses, speed = train_one_epoch(run, watch)
                lr = lr_at(learner, progress.step - 1)
                record = {"epoch": progress.epoch + 1, "step": progress.step, "lr": lr, **losses}
                record["images_per_second"] = speed
                evaluation = evaluate_epoch(run) if evaluation_due(learner) else None
                finish_epoch(run, record, list(losses), evaluation, board)
                if watch.requested and progress.epoch < config.epochs:
                    watch.stop(f"Stopped after epoch {progress.epoch}; go on with: --resume {folder}")
    finally:
        board.close()
    save_figure(plot_training(folder / METRICS), folder / CURVES)
    return folder / BEST


def start(config: DetectionConfig, folder: Path, *, resume: bool) -> Run:
    """Build everything a run needs, and put it back where it was when resuming."""
    state = load_state(folder / STATE) if resume else None
    if config.compile:
        check_compiler(config.device)
    seed_everything(config.seed)
    data = open_data(config)
    detector = build_detector(config, data, origin=state["origin"] if state else None)
    check_batch(detector, min(config.batch_size, len(data.train)))
    model = detector.model
    loader = training_loader(config, data, detector)
    learner = build_learner(config, model, model.backbone, batches_per_epoch=len(loader), device=detector.device)
    if config.compile:
        compile_parts([*model.backbone.parts(), model.neck, model.head])
    if state is None:
        make_run_folder(folder, config, state_bytes(model))
    run = Run(
        config=config,
        folder=folder,
        data=data,
        detector=detector,
        loader=loader,
        learner=learner,
        loss=DetectionLoss(alpha=config.focal_alpha, gamma=config.focal_gamma, label_smoothing=config.label_smoothing),
        metrics=MetricsFile(folder / METRICS, lines=state["metrics_lines"] if state else 0),
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
    learner, progress, device = run.learner, run.progress, run.detector.device
    learner.model.train()
    run.loader.set_epoch(progress.epoch, start=progress.batches * run.config.batch_size)
    meter = LossMeter(every=1 if device.type == "cpu" else 20)
    if progress.batches:
        meter.restore(progress.meter)
    bar = EpochBar(f"epoch {progress.epoch + 1}/{run.config.epochs}", len(run.loader), done=progress.batches)
    with bar:
        for batch in run.loader:
            losses = losses_of(run, learner.model, batch.to(device, non_blocking=True))
            meter.add(progress.step, batch.image_ids, losses)
            stepped = backward(learner, losses["total"])
            bar.advance(len(batch.image_ids), meter.known_means())
            if watch.requested and stepped and progress.batches < len(run.loader):
                progress.meter = meter.state()
                save(run)
                watch.stop(f"Stopped within epoch {progress.epoch + 1}; go on with: --resume {run.folder}")
    progress.batches, progress.meter = 0, {}
    return meter.means(), bar.images_per_second()


def losses_of(run: Run, model: EfficientDet, batch: Batch) -> dict[str, torch.Tensor]:
    """Return each loss term of a batch, and their weighted sum as ``total``."""
    with run.learner.precision.autocast():
        class_logits, box_codes = model(batch.images)
    size_hw = (batch.images.shape[-2], batch.images.shape[-1])
    targets = assign(model.anchors(size_hw), batch.boxes_xyxy, batch.labels, batch.ignore)
    losses = run.loss(class_logits, box_codes, targets)
    return {**losses, "total": losses["class"] + run.config.box_weight * losses["box"]}


def evaluate_epoch(run: Run) -> Evaluation:
    """Evaluate on the validation split and remember the best."""
    detector = run.evaluated()
    evaluation = evaluate(
        detector,
        run.data.val,
        batch_size=run.config.batch_size,
        workers=run.config.workers,
        evaluator=run.config.evaluator,
    )
    detector.header = header_of(run, evaluation, run.progress.epoch + 1)
    if run.progress.note_score(evaluation.map):
        detector.save(run.folder / BEST)
    return evaluation


def finish_epoch(
    run: Run, record: dict[str, Any], losses: list[str], evaluation: Evaluation | None, board: Board
) -> None:
    """Write the epoch's files; the state comes last, so that a crash at any point repeats the epoch and no more."""
    progress = run.progress
    progress.epoch += 1
    detector = run.evaluated()
    detector.header = header_of(run, evaluation, progress.epoch)
    detector.save(run.folder / LAST)
    if evaluation is not None:
        record.update(evaluation.coco.metrics)
    write_record(record, losses, metrics=run.metrics, board=board, step=progress.step)
    save(run)
    scores = "" if evaluation is None else f"  mAP {evaluation.map:.4f}  mAP50 {evaluation.coco.metrics['AP50']:.4f}"
    if progress.best_epoch == progress.epoch:
        scores += "  best"
    terms = "  ".join(f"{name} {record[name]:.4f}" for name in ("total", "class", "box"))
    speed = record["images_per_second"]
    log.info("epoch %d/%d  %s%s  %.1f img/s", progress.epoch, run.config.epochs, terms, scores, speed)


def header_of(run: Run, evaluation: Evaluation | None, epoch: int) -> dict[str, Any]:
    """Return what a model file says of its training and its score."""
    scores = None if evaluation is None else jsonable(evaluation.coco.metrics)
    return {"config": to_mapping(run.config), "epoch": epoch, "scores": scores}


def save(run: Run) -> None:
    """Write all that resuming needs."""
    state = {
        **learner_state(run.learner),
        "metrics_lines": run.metrics.lines,
        "class_names": list(run.detector.class_names),
        "num_images": len(run.data.train),
        "origin": origin_of(run.learner.model.backbone),
    }
    save_state(run.folder / STATE, state)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a run back where `save` left it.

    Raises:
        UserError: the data set is not the one that the run began with.
    """
    require_same_data(run.folder, state, run.detector.class_names, len(run.data.train))
    restore_learner(run.learner, state)
