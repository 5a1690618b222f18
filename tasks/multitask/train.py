"""The multitask training loop, written out: data, model, epochs, evaluation, files, resume."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effdense.backbones.origin import origin_of
from effdense.config import to_mapping
from effdense.datasets.loading import BatchLoader
from effdense.json_files import jsonable
from effdense.plots import save_figure
from effdense.tasks.multitask.balance import Balance, build_balance
from effdense.tasks.multitask.compare import check_single_runs, compare
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.multitask.evaluate import MultitaskEvaluation, evaluate
from effdense.tasks.multitask.gradients import backbone_gradient_norms
from effdense.tasks.multitask.loss import TASKS, MultitaskLoss
from effdense.tasks.multitask.model import MultitaskModel
from effdense.tasks.multitask.plots import plot_training
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.multitask.setup import Data, build_loss, build_multitask, open_data, training_loader
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
    """All that one training run works with.

    Attributes:
        shared: the parameters of the backbone that are learnt; empty where it is frozen whole.
        labels_seen: images with boxes and images with masks, of the epoch under way.
    """

    config: MultitaskConfig
    folder: Path
    data: Data
    multitask: Multitask
    loader: BatchLoader
    learner: Learner[MultitaskModel]
    loss: MultitaskLoss
    balance: Balance
    metrics: MetricsFile
    shared: list[torch.nn.Parameter]
    labels_seen: dict[str, int]

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.learner.progress

    def evaluated(self) -> Multitask:
        """Return what is evaluated and saved: the moving average, where one is kept."""
        return self.multitask.with_model(self.learner.averaged)


def train(config: MultitaskConfig, folder: Path, *, resume: bool = False) -> Path:
    """Train both tasks on one backbone, evaluate as they learn, and leave the files in a folder.

    Args:
        config: resolved settings (see `effdense.tasks.multitask.run.resolve`).
        folder: where the run's files go; made once settings, data and weights are known to be usable.
        resume: go on from the folder's state; on a CPU the result is that of a run never stopped, on a GPU up to the
            order of additions.

    Returns:
        The path of the best model, by the mean of mAP and mIoU.

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
            while progress.epoch < config.epochs and not stopped_early(learner, "mean of mAP and mIoU"):
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
    if config.compare:
        compare(config, folder / BEST, run.data, len(run.loader))
    return folder / BEST


def start(config: MultitaskConfig, folder: Path, *, resume: bool) -> Run:
    """Build everything a run needs, and put it back where it was when resuming."""
    state = load_state(folder / STATE) if resume else None
    if config.compile:
        check_compiler(config.device)
    if config.compare:
        check_single_runs(config, folder)
    seed_everything(config.seed)
    data = open_data(config)
    multitask = build_multitask(config, data, state)
    model, loss = multitask.model, build_loss(config, data)
    loader = training_loader(config, data, multitask)
    balance = build_balance(
        config.balance, det_weight=config.det_weight, seg_weight=config.seg_weight, alpha=config.gradnorm_alpha
    ).to(multitask.device)
    learner = build_learner(
        config,
        model,
        model.backbone,
        batches_per_epoch=len(loader),
        device=multitask.device,
        more_parameters=balance.parameters(),
    )
    if config.compile:
        parts = [*model.backbone.parts(), *model.detection.values(), *model.segmentation.values()]
        compile_parts(parts, measures_gradients=config.gradients_every > 0)
    if state is None:
        make_run_folder(folder, config, state_bytes(model))
    run = Run(
        config=config,
        folder=folder,
        data=data,
        multitask=multitask,
        loader=loader,
        learner=learner,
        loss=loss,
        balance=balance,
        metrics=MetricsFile(folder / METRICS, lines=state["metrics_lines"] if state else 0),
        shared=[parameter for parameter in model.backbone.parameters() if parameter.requires_grad],
        labels_seen=dict.fromkeys(TASKS, 0),
    )
    if state is None:
        save(run)
    else:
        restore(run, state)
    return run


def train_one_epoch(run: Run, watch: InterruptWatch) -> tuple[dict[str, float], float]:
    """Train on one epoch's images.

    Returns:
        The mean of each loss term and of each measured gradient norm; and images a second.

    Raises:
        NonFiniteLossError: naming step, images and terms.
        KeyboardInterrupt: after Ctrl-C, with the state saved.
    """
    learner, progress, device = run.learner, run.progress, run.multitask.device
    learner.model.train()
    run.loader.set_epoch(progress.epoch, start=progress.batches * run.config.batch_size)
    meter = LossMeter(every=1 if device.type == "cpu" else 20, path_of=run.data.train.path_of)
    if progress.batches:
        meter.restore(progress.meter)
    else:
        run.labels_seen = dict.fromkeys(TASKS, 0)
    bar = EpochBar(f"epoch {progress.epoch + 1}/{run.config.epochs}", len(run.loader), done=progress.batches)
    with bar:
        for batch in run.loader:
            count_labels(run, batch)
            losses = losses_of(run, learner.model, batch)
            meter.add(progress.step, batch.image_ids, losses)
            stepped = backward(learner, losses["total"])
            bar.advance(len(batch.image_ids), meter.known_means())
            if watch.requested and stepped and progress.batches < len(run.loader):
                progress.meter = meter.state()
                save(run)
                watch.stop(f"Stopped within epoch {progress.epoch + 1}; go on with: --resume {run.folder}")
    progress.batches, progress.meter = 0, {}
    return meter.means(), bar.images_per_second()


def count_labels(run: Run, batch: Batch) -> None:
    """Count the images that carry each label; a batch still on the host costs no waiting."""
    for task, there in zip(TASKS, (batch.with_boxes, batch.with_masks), strict=True):
        run.labels_seen[task] += int(there.sum())


def losses_of(run: Run, model: MultitaskModel, batch: Batch) -> dict[str, Tensor]:
    """Return each loss term of a batch, the weighted sum of both tasks as ``total``, and gradient norms when due.

    Which images carry which label is read from the batch as it lies on the host: asked on a GPU, it would wait.
    """
    there = batch.to(run.multitask.device, non_blocking=True)
    with run.learner.precision.autocast():
        outputs = model.training_outputs(there.images, batch.with_boxes, batch.with_masks)
    losses = run.loss(outputs, model.anchors((there.images.shape[-2], there.images.shape[-1])), there)
    norms: dict[str, float] = {}
    if run.shared and gradients_due(run):
        tasks = {task: losses[task] for task in TASKS if task in losses}
        norms = backbone_gradient_norms(tasks, run.shared, run.learner.precision.scaler)
        run.balance.observe(norms, {task: float(loss.detach()) for task, loss in tasks.items()})
    total = run.balance.total({task: losses[task] for task in run.config.active if task in losses})
    measured = {f"gradient_{task}": total.new_tensor(norm) for task, norm in norms.items()}
    return {**losses, "total": total, **measured}


def gradients_due(run: Run) -> bool:
    """Whether the gradient of each task is measured in the batch under way: the first of a step that is due."""
    every, progress = run.config.gradients_every, run.progress
    return every > 0 and progress.step % every == 0 and progress.batches % run.config.accumulate == 0


def evaluate_epoch(run: Run) -> MultitaskEvaluation:
    """Evaluate on the validation split and remember the best."""
    multitask, data = run.evaluated(), run.data
    evaluation = evaluate(
        multitask,
        None if data.detection is None else data.detection.val,
        None if data.segmentation is None else data.segmentation.val,
        batch_size=run.config.batch_size,
        workers=run.config.workers,
        evaluator=run.config.evaluator,
    )
    multitask.header = header_of(run, evaluation, run.progress.epoch + 1)
    if run.progress.note_score(evaluation.score):
        multitask.save(run.folder / BEST)
    return evaluation


def finish_epoch(
    run: Run,
    record: dict[str, Any],
    losses: list[str],
    evaluation: MultitaskEvaluation | None,
    board: Board,
) -> None:
    """Write the epoch's files; the state comes last, so that a crash at any point repeats the epoch and no more."""
    progress = run.progress
    progress.epoch += 1
    multitask = run.evaluated()
    multitask.header = header_of(run, evaluation, progress.epoch)
    multitask.save(run.folder / LAST)
    record |= {f"weight_{task}": weight for task, weight in run.balance.weights().items()}
    record |= {"images_with_boxes": run.labels_seen[TASKS[0]], "images_with_masks": run.labels_seen[TASKS[1]]}
    if evaluation is not None:
        record.update(evaluation.summary())
    terms = [name for name in losses if not name.startswith("gradient_")]
    write_record(record, terms, metrics=run.metrics, board=board, step=progress.step)
    save(run)
    log.info("%s", epoch_line(run, record, evaluation))


def epoch_line(run: Run, record: dict[str, Any], evaluation: MultitaskEvaluation | None) -> str:
    """Return what an epoch's line in the log says: of each task its loss, weight and gradient norm; then the scores."""
    parts = [f"epoch {run.progress.epoch}/{run.config.epochs}"]
    for task in TASKS:
        if task not in record:
            continue
        gradient = record.get(f"gradient_{task}")
        norm = "" if gradient is None else f" |g| {gradient:.3g}"
        parts.append(f"{task} {record[task]:.4f} x{record[f'weight_{task}']:.3g}{norm}")
    if evaluation is not None:
        parts.append(evaluation.line())
    if run.progress.best_epoch == run.progress.epoch:
        parts.append("best")
    return "  ".join([*parts, f"{record['images_per_second']:.1f} img/s"])


def header_of(run: Run, evaluation: MultitaskEvaluation | None, epoch: int) -> dict[str, Any]:
    """Return what a model file says of its training and its score."""
    scores: dict[str, Any] | None = None
    if evaluation is not None:
        boxes, masks = evaluation.detection, evaluation.segmentation
        scores = {
            "detection": None if boxes is None else jsonable(boxes.coco.metrics),
            "segmentation": None if masks is None else masks.scores.summary(),
        }
    return {"config": to_mapping(run.config), "epoch": epoch, "scores": scores}


def save(run: Run) -> None:
    """Write all that resuming needs."""
    multitask = run.multitask
    state = {
        **learner_state(run.learner),
        "balance": run.balance.state(),
        "labels_seen": dict(run.labels_seen),
        "metrics_lines": run.metrics.lines,
        "class_names": {
            "detection": list(multitask.class_names),
            "segmentation": list(multitask.seg_class_names),
        },
        "category_ids": list(multitask.detector.category_ids),
        "num_images": len(run.data.train),
        "origin": origin_of(run.learner.model.backbone),
    }
    save_state(run.folder / STATE, state)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a run back where `save` left it.

    Raises:
        UserError: the data set is not the one that the run began with.
    """
    multitask, kept = run.multitask, state["class_names"]
    require_same_data(
        run.folder,
        {"class_names": [*kept["detection"], *kept["segmentation"]], "num_images": state["num_images"]},
        (*multitask.class_names, *multitask.seg_class_names),
        len(run.data.train),
    )
    run.balance.restore(state["balance"])
    run.labels_seen = dict(state["labels_seen"])
    restore_learner(run.learner, state)
