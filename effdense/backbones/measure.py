"""Measure a network: parameters and multiply-adds, as the papers count them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns (BatchNorm's statistics are not among them)."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(module: nn.Module, size_hw: tuple[int, int]) -> int:
    """Return the multiply-adds of convolutions and linear layers for one RGB image.

    The papers' FLOPs are these: normalisation, activations, pooling and sums are left out.

    Args:
        module: takes a (1, 3, H, W) tensor; a module on the meta device is measured without computing anything.
        size_hw: of the image.
    """
    total = 0

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += output.numel() * weight[0].numel()

    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    training = module.training
    try:
        with torch.no_grad():
            device = next(module.parameters()).device
            module.eval()(torch.zeros(1, 3, *size_hw, device=device))
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return total
