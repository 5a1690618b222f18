"""Optimizers, parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from effdense.errors import UserError

IMAGES_PER_LR = 64
"""The batch that a stated learning rate belongs to."""

POLY_POWER = 0.9

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def scale_lr(lr_per_64: float, images_per_step: int, optimizer: str) -> float:
    """Scale a learning rate stated for 64 images to the images of one optimizer step.

    SGD scales linearly (Goyal et al., arXiv 1706.02677, section 2.1), AdamW with the square root (Malladi et al.,
    arXiv 2205.10287, section 4).

    Args:
        lr_per_64: learning rate for 64 images a step.
        images_per_step: batch size times accumulation.
        optimizer: ``adamw`` or ``sgd``.
    """
    ratio = images_per_step / IMAGES_PER_LR
    return lr_per_64 * (ratio if optimizer == "sgd" else math.sqrt(ratio))


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    backbone: nn.Module | None = None,
    backbone_lr_factor: float = 1.0,
) -> list[dict[str, object]]:
    """Sort the trainable parameters into groups with their weight decay and learning-rate factor.

    Biases, norms and one-dimensional weights (BiFPN's fusion weights) are not decayed.

    Args:
        model: the whole network.
        weight_decay: for all other weights.
        backbone: the part of ``model`` whose learning rate is multiplied by ``backbone_lr_factor``.
        backbone_lr_factor: 1 trains the backbone as fast as the rest.

    Returns:
        Groups with the keys params, weight_decay and lr_factor; empty groups are left out.
    """
    in_backbone = {id(p) for p in backbone.parameters()} if backbone is not None else set()
    undecayed = {
        id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or id(parameter) in undecayed else weight_decay
        factor = backbone_lr_factor if id(parameter) in in_backbone else 1.0
        groups.setdefault((decay, factor), []).append(parameter)
    return [{"params": p, "weight_decay": decay, "lr_factor": factor} for (decay, factor), p in groups.items()]


def build_optimizer(
    name: str, groups: list[dict[str, object]], *, lr: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Build AdamW or SGD over parameter groups.

    Args:
        name: ``adamw`` or ``sgd``.
        groups: from `parameter_groups`.
        lr: learning rate of one step, already scaled to the batch.
        momentum: SGD's momentum, AdamW's first beta.

    Raises:
        UserError: the name is unknown, or nothing is left to train.
    """
    if not groups:
        raise UserError("every parameter is frozen: nothing is left to train")
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=_can_fuse(groups))
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=_can_fuse(groups))
    raise UserError(f"optimizer is {name!r}, expected adamw or sgd")


def _can_fuse(groups: list[dict[str, object]]) -> bool:
    """Whether one kernel can make a whole step: several times faster, and fp16's scaler then makes no GPU wait."""
    parameters = [parameter for group in groups for parameter in cast("list[nn.Parameter]", group["params"])]
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)


def schedule_factor(schedule: str, step: int, *, steps: int, warmup_steps: int) -> float:
    """Return the factor on the learning rate at a step: linear warm-up, then down to 0.

    Args:
        schedule: ``cosine``, half a cosine (arXiv 1608.03983, Eq. 5), or ``poly``, (1 - t) to the power of 0.9
            (DeepLab, arXiv 1606.00915, section 4.1).
        step: 0-based optimizer step.
        steps: of the whole run.
        warmup_steps: over which the factor rises to 1.

    Raises:
        UserError: the schedule is unknown.
    """
    if schedule not in ("cosine", "poly"):
        raise UserError(f"schedule is {schedule!r}, expected cosine or poly")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    if schedule == "poly":
        return float((1 - progress) ** POLY_POWER)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor | None:
    """Clip the global gradient norm in place; 0 leaves the gradients alone.

    Returns:
        The norm before clipping, a scalar, or None.
    """
    if max_norm <= 0:
        return None
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
