"""How hard each task pulls at the backbone: the norm of its loss's gradient there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from effdense.tasks.multitask.loss import TASKS


def backbone_gradient_norms(
    losses: Mapping[str, Tensor], shared: Iterable[nn.Parameter], scaler: torch.amp.GradScaler | None = None
) -> dict[str, float]:
    """Measure the Euclidean norm of each task's gradient on the shared parameters, all of them taken as one vector.

    To be called after the forward pass and before the backward pass, whose results it leaves as they are: no ``.grad``
    is touched and no random number drawn. It costs somewhat less than a backward pass for each task, and makes a GPU
    wait once.

    Args:
        losses: the losses by name, not weighted; those of ``TASKS`` are measured, others passed over.
        shared: the backbone's parameters; those that are frozen do not count.
        scaler: of fp16. The gradients are computed at its scale, below which small ones are lost, and the norms then
            brought back to their true size.

    Returns:
        The norm of each task that has one. A task has none where nothing shared is left to train, where its loss comes
        from frozen parts alone, or where its gradient overflows (fp16's scaler then leaves the step out as well).
    """
    learning = [parameter for parameter in shared if parameter.requires_grad]
    pulling = {task: losses[task] for task in TASKS if task in losses and losses[task].requires_grad}
    if not learning or not pulling:
        return {}
    norms = torch.stack([_norm(loss if scaler is None else scaler.scale(loss), learning) for loss in pulling.values()])
    scale = 1.0 if scaler is None else scaler.get_scale()
    found = {task: norm / scale for task, norm in zip(pulling, norms.tolist(), strict=True)}
    return {task: norm for task, norm in found.items() if math.isfinite(norm)}


def _norm(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of a scalar's gradient, a float32 scalar; 0 where the loss does not depend on the parameters."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    reached = [gradient for gradient in gradients if gradient is not None]
    if not reached:
        return loss.new_zeros((), dtype=torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(reached)), dtype=torch.float32)
    return norm
