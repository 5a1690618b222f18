"""Random weights whose activations are spread as a trained network's are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def settle_batchnorm(model: nn.Module, run: Callable[[Tensor], object], images: Tensor) -> None:
    """Give every BatchNorm the statistics of what it sees in these images, as a training does.

    With others the activations of a random network are all but constant over an image, and what differs between its
    places, multiplied until it looks like scores, is mostly rounding.

    Args:
        model: in evaluation mode, as it is left.
        run: passes images through it.
        images: normalised, (B, 3, H, W); they are seen as they are and mirrored, as BatchNorm needs more than a value.
    """
    import torch
    from torch import nn

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        run(torch.cat([images, images.flip(3)]))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()
