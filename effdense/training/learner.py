"""What learns: a model with its optimizer, schedule, precision and moving average, and how far it has come.

The loops stay with their tasks; here is the step that they share, and what of it a run's state must keep.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from effdense.allocator import keep_freed_memory
from effdense.training.ema import ModelEma
from effdense.training.optim import (
    build_optimizer,
    clip_gradients,
    parameter_groups,
    scale_lr,
    schedule_factor,
    set_lr,
)
from effdense.training.precision import Precision, choose_precision
from effdense.training.randomness import random_state, restore_random_state
from effdense.training.settings import TrainingSettings

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


@dataclass
class Progress:
    """Where a run is; saved with every state.

    Attributes:
        epoch: epochs finished.
        step: optimizer steps taken.
        batches: batches done of the epoch under way; 0 between epochs.
        best: best score so far, -1 before the first evaluation.
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

    def note_score(self, score: float) -> bool:
        """Remember the score of the epoch under way, and return whether it is the best so far."""
        if score > self.best:
            self.best, self.best_epoch, self.stale = score, self.epoch + 1, 0
            return True
        self.stale += 1
        return False


@dataclass
class Learner(Generic[M]):
    """A model and all that an optimizer step touches.

    Attributes:
        settings: of the run.
        model: the network that learns.
        optimizer: over its trainable parameters.
        precision: autocast, and the scaler of fp16.
        ema: the moving average, where one is kept.
        batches_per_epoch: forward passes an epoch.
        progress: how far it has come.
    """

    settings: TrainingSettings
    model: M
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: ModelEma[M] | None
    batches_per_epoch: int
    progress: Progress = field(default_factory=Progress)

    @property
    def averaged(self) -> M:
        """The network that is evaluated and saved: the moving average, where one is kept."""
        return self.model if self.ema is None else self.ema.module

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last may hold fewer batches than ``accumulate``."""
        return -(-self.batches_per_epoch // self.settings.accumulate)

    @property
    def batches_of_step(self) -> int:
        """How many batches the optimizer step under way gathers."""
        accumulate = self.settings.accumulate
        first = self.progress.batches // accumulate * accumulate
        return min(accumulate, self.batches_per_epoch - first)


def build_learner(
    settings: TrainingSettings,
    model: M,
    backbone: nn.Module,
    *,
    batches_per_epoch: int,
    device: torch.device,
    more_parameters: Sequence[nn.Parameter] = (),
) -> Learner[M]:
    """Build optimizer, precision and moving average of a model, as the settings say; logs the learning rate.

    Args:
        settings: resolved.
        model: the whole network, where it is to run.
        backbone: the part of it that ``backbone_lr_factor`` is for.
        batches_per_epoch: forward passes an epoch.
        device: where the model is.
        more_parameters: learnt beside the model's, without weight decay; where they are kept is the caller's affair.

    Raises:
        UserError: nothing is left to train, or a precision that the device has not.
    """
    if device.type == "cpu":
        keep_freed_memory()
    groups = parameter_groups(
        model,
        weight_decay=settings.weight_decay,
        backbone=backbone,
        backbone_lr_factor=settings.backbone_lr_factor,
    )
    if more_parameters:
        groups.append({"params": list(more_parameters), "weight_decay": 0.0, "lr_factor": 1.0})
    lr = peak_lr(settings)
    images = settings.batch_size * settings.accumulate
    log.info("learning rate %g for 64 images is %.3g for steps of %d (%s)", settings.lr, lr, images, settings.optimizer)
    return Learner(
        settings=settings,
        model=model,
        optimizer=build_optimizer(settings.optimizer, groups, lr=lr, momentum=settings.momentum),
        precision=choose_precision(settings.amp, device),
        ema=ModelEma(model, settings.ema_decay) if settings.ema else None,
        batches_per_epoch=batches_per_epoch,
    )


def peak_lr(settings: TrainingSettings) -> float:
    """Return the learning rate after the warm-up, scaled to the images of a step."""
    return scale_lr(settings.lr, settings.batch_size * settings.accumulate, settings.optimizer)


def lr_at(learner: Learner[Any], step: int) -> float:
    """Return the learning rate of a step."""
    settings = learner.settings
    factor = schedule_factor(
        settings.schedule,
        step,
        steps=settings.epochs * learner.steps_per_epoch,
        warmup_steps=round(settings.warmup_epochs * learner.steps_per_epoch),
    )
    return peak_lr(settings) * factor


def backward(learner: Learner[Any], loss: torch.Tensor) -> bool:
    """Back-propagate the loss of a batch; step where a group of ``accumulate`` batches is complete.

    Returns:
        Whether a step was taken.
    """
    progress = learner.progress
    learner.precision.backward(loss / learner.batches_of_step)
    progress.batches += 1
    if progress.batches % learner.settings.accumulate and progress.batches < learner.batches_per_epoch:
        return False
    optimizer_step(learner)
    return True


def optimizer_step(learner: Learner[Any]) -> None:
    """Clip, step, and let the moving average follow."""
    optimizer = learner.optimizer
    set_lr(optimizer, lr_at(learner, learner.progress.step))
    learner.precision.unscale(optimizer)
    clip_gradients((p for group in optimizer.param_groups for p in group["params"]), learner.settings.clip_norm)
    learner.precision.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    learner.progress.step += 1
    if learner.ema is not None:
        learner.ema.update(learner.model)


def evaluation_due(learner: Learner[Any]) -> bool:
    """Whether the epoch that just ended is to be evaluated."""
    ended = learner.progress.epoch + 1
    return ended % learner.settings.eval_every == 0 or ended == learner.settings.epochs


def stopped_early(learner: Learner[Any], score: str) -> bool:
    """Whether the score, called so in the log, has not improved for ``early_stop`` evaluations."""
    progress, limit = learner.progress, learner.settings.early_stop
    if limit and progress.stale >= limit:
        log.info("stopped early: no better %s than %.4f in %d evaluations", score, progress.best, progress.stale)
        return True
    return False


def learner_state(learner: Learner[Any]) -> dict[str, Any]:
    """Return all that `restore_learner` needs, the states of the random generators included."""
    ema, scaler = learner.ema, learner.precision.scaler
    return {
        "progress": dict(vars(learner.progress)),
        "model": learner.model.state_dict(),
        "ema": None if ema is None else ema.module.state_dict(),
        "ema_updates": 0 if ema is None else ema.updates,
        "optimizer": learner.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": random_state(),
    }


def restore_learner(learner: Learner[Any], state: dict[str, Any]) -> None:
    """Put a learner, and the random generators, back where `learner_state` left them."""
    learner.progress = Progress(**state["progress"])
    learner.model.load_state_dict(state["model"])
    if learner.ema is not None:
        learner.ema.module.load_state_dict(state["ema"])
        learner.ema.updates = state["ema_updates"]
    learner.optimizer.load_state_dict(state["optimizer"])
    if learner.precision.scaler is not None and state["scaler"]:
        learner.precision.scaler.load_state_dict(state["scaler"])
    restore_random_state(state["random"])
