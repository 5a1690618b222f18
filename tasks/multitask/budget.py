"""The budget of the runs that a multitask run is compared with: as many labelled images in as many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effdense.training.settings import TrainingSettings

RULE = (
    "A task trained alone sees as many labelled images as the shared run planned to show it, in batches of as many as "
    "one of the shared run's held on average, so in as many steps, as far as whole epochs allow, and in one epoch at "
    "least; learning rate of a step, shares of the run for warm-up and between evaluations, and everything else are "
    "the same."
)


@dataclass(frozen=True)
class Budget:
    """How long a task is trained alone.

    Attributes:
        batch_size: images in a forward pass.
        epochs: passes over the images with this label.
        images_per_epoch: those of a pass; what does not fill a last batch is left out of it.
    """

    batch_size: int
    epochs: int
    images_per_epoch: int

    @property
    def images(self) -> int:
        """Images seen in the whole run."""
        return self.epochs * self.images_per_epoch


def budget_alone(seen_per_epoch: float, batches_per_epoch: int, epochs: int, num_images: int) -> Budget:
    """Return the budget that is nearest to what a task has in the shared run.

    Args:
        seen_per_epoch: images with this task's label that an epoch of the shared run shows.
        batches_per_epoch: of the shared run.
        epochs: of the shared run.
        num_images: with this label, in the training split.
    """
    batch_size = max(1, round(seen_per_epoch / batches_per_epoch))
    per_epoch = num_images // batch_size * batch_size or num_images  # fewer than a batch make one: see train_loader
    return Budget(batch_size, max(1, round(epochs * seen_per_epoch / per_epoch)), per_epoch)


def settings_alone(shared: TrainingSettings, budget: Budget) -> dict[str, Any]:
    """Return the settings in which a run of this budget differs from the shared run.

    Warm-up and evaluations keep their share of the run. A smaller batch would get a smaller learning rate by the rule
    that scales it; here it is a comparison that counts, so that each step keeps the shared run's.
    """
    stretch = budget.epochs / shared.epochs
    smaller = shared.batch_size / budget.batch_size
    return {
        "batch_size": budget.batch_size,
        "epochs": budget.epochs,
        "lr": shared.lr * (smaller if shared.optimizer == "sgd" else smaller**0.5),
        "warmup_epochs": shared.warmup_epochs * stretch,
        "eval_every": max(1, round(shared.eval_every * stretch)),
    }


def images_seen(records: Sequence[dict[str, Any]], name: str) -> int:
    """Return how many images with a label, counted as ``name`` in each epoch's record, a run has seen."""
    return sum(int(record[name]) for record in records)
