"""How much each task counts in the loss that is back-propagated: fixed numbers, or weights that follow the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from effdense.errors import UserError, nearest
from effdense.tasks.multitask.loss import TASKS

BALANCES = ("fixed", "uncertainty", "gradnorm")

_GRADNORM_STEP = 0.05
"""Most that one observation changes the logarithm of a weight: seven in a row double the proportion of two weights, and
a single odd one moves it by a tenth."""


class Balance(Protocol):
    """The weights of the tasks. None of its methods but `weights` and `state` makes a GPU wait."""

    @property
    def name(self) -> str:
        """One of ``BALANCES``."""

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar to back-propagate.

        Args:
            losses: by name; those of ``TASKS`` that are there are weighted and added, others passed over.

        Raises:
            ValueError: no task is there.
        """

    def weights(self) -> dict[str, float]:
        """Return what each task's loss is multiplied by, for the log."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer is to learn along with the model, without weight decay; often nothing."""

    def observe(self, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Follow a measurement.

        Args:
            norms: of each task's gradient on the backbone, not weighted; tasks may be missing.
            losses: of the same batch, not weighted.
        """

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, in plain numbers; the optimizer keeps its own state of `parameters`."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the same parameter objects."""

    def to(self, device: torch.device | str) -> Balance:
        """Move to where the losses are, and return itself; the optimizer is built after this."""


def build_balance(name: str, *, det_weight: float = 1.0, seg_weight: float = 1.0, alpha: float = 1.5) -> Balance:
    """Make a balance by name.

    Args:
        name: one of ``BALANCES``.
        det_weight: weight of the detection loss; where weights adapt, the first one.
        seg_weight: likewise of the segmentation loss.
        alpha: of gradnorm: how strongly the task that learns more slowly is favoured (1.5 is the paper's for NYUv2).

    Raises:
        UserError: the name is unknown, or a number out of range.
    """
    builders: dict[str, Callable[[dict[str, float]], Balance]] = {
        "fixed": FixedBalance,
        "uncertainty": UncertaintyBalance,
        "gradnorm": lambda weights: GradNormBalance(weights, alpha),
    }
    if name not in builders:
        raise UserError(f"there is no balance {name!r}, only {', '.join(BALANCES)}{nearest(name, BALANCES)}")
    if not all(0 < weight < math.inf for weight in (det_weight, seg_weight)):
        raise UserError(f"det_weight and seg_weight are {det_weight} and {seg_weight}, expected numbers above 0")
    if not 0 <= alpha < math.inf:
        raise UserError(f"GradNorm's alpha is {alpha}, expected a number of 0 or more")
    return builders[name](dict(zip(TASKS, (float(det_weight), float(seg_weight)), strict=True)))


class FixedBalance:
    """The weights that were given, for ever."""

    name = "fixed"

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum."""
        return _weighted_sum(self._weights, losses)

    def weights(self) -> dict[str, float]:
        """Return the weights."""
        return dict(self._weights)

    def parameters(self) -> list[nn.Parameter]:
        """Return nothing."""
        return []

    def observe(self, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Any]:
        """Return nothing: the weights are settings."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def to(self, device: torch.device | str) -> FixedBalance:
        """Return itself."""
        return self


class UncertaintyBalance:
    """Weights learned with the model, as the noise of each task (Kendall et al., arXiv 1705.07115).

    With s the logarithm of a task's variance, the task adds

        exp(-s) * loss + s / 2

    which is equation 10's term of a classification, loss / sigma^2 + log sigma; the detection loss has a classification
    and a regression in it, and the half that a regression's term has besides would only shift s by a constant. s / 2
    keeps the weight from going to 0: for a constant loss the best weight is 1 / (2 * loss). A task that is not in a
    batch adds neither term. The total can be negative.
    """

    name = "uncertainty"

    def __init__(self, weights: Mapping[str, float]) -> None:
        # A scalar each: the optimizer passes over one without gradient, that is, over a task that is not there.
        self._log_variances = {task: nn.Parameter(torch.tensor(-math.log(weights[task]))) for task in TASKS}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum with the regularisers of the tasks that are there."""
        terms = []
        for task in _there(losses):
            log_variance = self._log_variances[task]
            terms.append(torch.exp(-log_variance) * losses[task] + 0.5 * log_variance)
        return torch.stack(terms).sum()

    def weights(self) -> dict[str, float]:
        """Return exp(-s) of each task."""
        values = torch.stack([parameter.detach() for parameter in self._log_variances.values()])
        return dict(zip(self._log_variances, torch.exp(-values).tolist(), strict=True))

    def parameters(self) -> list[nn.Parameter]:
        """Return s of each task, scalars."""
        return list(self._log_variances.values())

    def observe(self, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Do nothing: the optimizer does."""

    def state(self) -> dict[str, Any]:
        """Return s of each task."""
        return {task: parameter.item() for task, parameter in self._log_variances.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Set s of each task."""
        for task, parameter in self._log_variances.items():
            parameter.fill_(state[task])

    def to(self, device: torch.device | str) -> UncertaintyBalance:
        """Move s, in the same parameter objects."""
        for parameter in self._log_variances.values():
            parameter.data = parameter.data.to(device)
        return self


class GradNormBalance:
    """Weights that keep the tasks' gradients on the backbone in balance (GradNorm, Chen et al., arXiv 1711.02257).

    With w a task's weight, n the norm of its loss's gradient, and L its loss, the weighted norms w * n of the tasks are
    to stand in the proportion of (equation 1)

        (L / first L) ** alpha

    so that the task which has come less far has the stronger gradient; with alpha 0 they are to be equal. The norm of a
    weighted gradient is w times the norm, so how to get there needs no second derivative. The paper's descent on the
    distance to that goal (equation 2) goes up or down by the sign of what is lacking; so does this, on log w and by a
    fixed length, but never past the goal: a batch with an odd gradient moves the weights no further than any other.
    Then all weights are multiplied by the number that brings their sum back, as in the paper. As that leaves nothing of
    a factor on all goals, the paper's, their mean norm, is left out.

    A measurement that lacks a task, or whose norm or loss is 0 or not finite, leaves the weights alone.
    """

    name = "gradnorm"

    def __init__(self, weights: Mapping[str, float], alpha: float, step: float = _GRADNORM_STEP) -> None:
        """Begin with the weights, whose sum is kept.

        Args:
            weights: of each task.
            alpha: how strongly the task that learns more slowly is favoured.
            step: most that one observation changes the logarithm of a weight.
        """
        self._weights, self._sum = dict(weights), math.fsum(weights.values())
        self._alpha, self._step = alpha, step
        self._first_losses: dict[str, float] = {}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum."""
        return _weighted_sum(self._weights, losses)

    def weights(self) -> dict[str, float]:
        """Return the weights."""
        return dict(self._weights)

    def parameters(self) -> list[nn.Parameter]:
        """Return nothing: `observe` moves the weights."""
        return []

    def observe(self, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Move the weights one step towards what the norms and losses call for."""
        usable = [task for task in TASKS if _positive(norms.get(task)) and _positive(losses.get(task))]
        for task in usable:
            self._first_losses.setdefault(task, losses[task])
        if len(usable) < len(TASKS):
            return
        excess = {task: self._log_norm(task, norms) - self._log_goal(task, losses) for task in TASKS}
        middle = math.fsum(excess.values()) / len(TASKS)
        for task, value in excess.items():
            self._weights[task] *= math.exp(-min(self._step, max(-self._step, value - middle)))
        factor = self._sum / math.fsum(self._weights.values())
        self._weights = {task: weight * factor for task, weight in self._weights.items()}

    def _log_norm(self, task: str, norms: Mapping[str, float]) -> float:
        """Return the logarithm of the weighted norm."""
        return math.log(self._weights[task]) + math.log(norms[task])

    def _log_goal(self, task: str, losses: Mapping[str, float]) -> float:
        """Return the logarithm of what the weighted norm is to be proportional to."""
        return self._alpha * (math.log(losses[task]) - math.log(self._first_losses[task]))

    def state(self) -> dict[str, Any]:
        """Return the weights and each task's first loss."""
        return {"weights": dict(self._weights), "first_losses": dict(self._first_losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the weights and the first losses."""
        self._weights, self._first_losses = dict(state["weights"]), dict(state["first_losses"])

    def to(self, device: torch.device | str) -> GradNormBalance:
        """Return itself: the weights are plain numbers."""
        return self


def _there(losses: Mapping[str, Tensor]) -> list[str]:
    """Return the tasks that there is a loss of."""
    there = [task for task in TASKS if task in losses]
    if not there:
        raise ValueError(f"expected the loss of {' or '.join(TASKS)}, got {', '.join(losses) or 'none'}")
    return there


def _weighted_sum(weights: Mapping[str, float], losses: Mapping[str, Tensor]) -> Tensor:
    """Add the losses of the tasks that are there, each times its weight."""
    return torch.stack([weights[task] * losses[task] for task in _there(losses)]).sum()


def _positive(value: float | None) -> bool:
    """Whether a number is there, finite and above 0."""
    return value is not None and 0 < value < math.inf
