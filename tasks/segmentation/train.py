"""The segmentation training loop, written out: data, model, epochs, evaluation, files, resume."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effdense.backbones.origin import origin_of
from effdense.config import to_mapping
from effdense.datasets.loading import BatchLoader
from effdense.plots import save_figure
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.evaluate import Evaluation, evaluate
from effdense.tasks.segmentation.loss import SegmentationLoss
from effdense.tasks.segmentation.model import SegmentationModel
from effdense.tasks.segmentation.plots import plot_training
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.setup import (
    Data,
    build_loss,
    build_segmenter,
    open_data,
    training_loader,
)
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

    config: SegmentationConfig
    folder: Path
    data: Data
    segmenter: Segmenter
    loader: BatchLoader
    learner: Learner[SegmentationModel]
    loss: SegmentationLoss
    metrics: MetricsFile

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.learner.progress

    def evaluated(self) -> Segmenter:
        """Return the segmenter that is evaluated and saved: the moving average, where one is kept."""
        return self.segmenter.with_model(self.learner.averaged)


def train(config: SegmentationConfig, folder: Path, *, resume: bool = False) -> Path:
    """Train a segmenter, evaluate it as it learns, and leave its files in a folder.

    Args:
        config: resolved settings (see `effdense.tasks.segmentation.run.resolve`).
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
            while progress.epoch < config.epochs and not stopped_early(learner, "mIoU"):
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


def start(config: SegmentationConfig, folder: Path, *, resume: bool) -> Run:
    """Build everything a run needs, and put it back where it was when resuming."""
    state = load_state(folder / STATE) if resume else None
    if config.compile:
        check_compiler(config.device)
    seed_everything(config.seed)
    data = open_data(config)
    segmenter = build_segmenter(config, data, origin=state["origin"] if state else None)
    model, loss = segmenter.model, build_loss(config, data)
    loader = training_loader(config, data, segmenter)
    learner = build_learner(config, model, model.backbone, batches_per_epoch=len(loader), device=segmenter.device)
    if config.compile:
        compile_parts([*model.backbone.parts(), model.decoder, model.head, model.auxiliary])
    if state is None:
        make_run_folder(folder, config, state_bytes(model))
    run = Run(
        config=config,
        folder=folder,
        data=data,
        segmenter=segmenter,
        loader=loader,
        learner=learner,
        loss=loss,
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
    learner, progress, device = run.learner, run.progress, run.segmenter.device
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


def losses_of(run: Run, model: SegmentationModel, batch: Batch) -> dict[str, torch.Tensor]:
    """Return each loss term of a batch, and their weighted sum as ``total``."""
    assert batch.masks is not None
    with run.learner.precision.autocast():
        outputs = model.training_outputs(batch.images)
    return run.loss(outputs, batch.masks)


def evaluate_epoch(run: Run) -> Evaluation:
    """Evaluate on the validation split and remember the best."""
    segmenter = run.evaluated()
    evaluation = evaluate(segmenter, run.data.val, batch_size=run.config.batch_size, workers=run.config.workers)
    segmenter.header = header_of(run, evaluation, run.progress.epoch + 1)
    if run.progress.note_score(evaluation.miou):
        segmenter.save(run.folder / BEST)
    return evaluation


def finish_epoch(
    run: Run, record: dict[str, Any], losses: list[str], evaluation: Evaluation | None, board: Board
) -> None:
    """Write the epoch's files; the state comes last, so that a crash at any point repeats the epoch and no more."""
    progress = run.progress
    progress.epoch += 1
    segmenter = run.evaluated()
    segmenter.header = header_of(run, evaluation, progress.epoch)
    segmenter.save(run.folder / LAST)
    if evaluation is not None:
        record.update(evaluation.scores.summary())
    write_record(record, losses, metrics=run.metrics, board=board, step=progress.step)
    save(run)
    scores = "" if evaluation is None else f"  mIoU {evaluation.miou:.4f}"
    if progress.best_epoch == progress.epoch:
        scores += "  best"
    terms = "  ".join(f"{name} {record[name]:.4f}" for name in losses if name != "total" or len(losses) > 2)
    speed = record["images_per_second"]
    log.info("epoch %d/%d  %s%s  %.1f img/s", progress.epoch, run.config.epochs, terms, scores, speed)


def header_of(run: Run, evaluation: Evaluation | None, epoch: int) -> dict[str, Any]:
    """Return what a model file says of its training and its score."""
    scores = None if evaluation is None else evaluation.scores.jsonable()
    return {"config": to_mapping(run.config), "epoch": epoch, "scores": scores}


def save(run: Run) -> None:
    """Write all that resuming needs."""
    state = {
        **learner_state(run.learner),
        "metrics_lines": run.metrics.lines,
        "class_names": list(run.segmenter.class_names),
        "num_images": len(run.data.train),
        "origin": origin_of(run.learner.model.backbone),
    }
    save_state(run.folder / STATE, state)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a run back where `save` left it.

    Raises:
        UserError: the data set is not the one that the run began with.
    """
    require_same_data(run.folder, state, run.segmenter.class_names, len(run.data.train))
    restore_learner(run.learner, state)
