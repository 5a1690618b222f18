"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModelEma(Generic[M]):
    """A copy of a model that follows it slowly; evaluated and saved in its place.

    The decay after n updates is ``min(decay, (1 + n) / (10 + n))``, so that a short run is not held back by its random
    start (the rule of TensorFlow's ExponentialMovingAverage with num_updates).

    Attributes:
        module: the averaged model, in evaluation mode.
        updates: how often `update` was called.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.module: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Move the average towards ``model``: floating tensors are averaged, counters copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, current = [], []
        for mean, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                averaged.append(mean)
                current.append(value)
            else:
                mean.copy_(value)
        torch._foreach_lerp_(averaged, current, 1 - decay)
