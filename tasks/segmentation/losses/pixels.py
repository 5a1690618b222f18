"""Terms that are a mean over pixels: cross entropy, focal loss, and which pixels are hard (OHEM).

All take ``cost``, minus the log-probability of each pixel's own class, with 0 where the pixel is ignored, and
``weight``, what the pixel counts in the mean, likewise; both (B, H, W). Nothing here makes a GPU wait.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_mean(cost: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of ``cost`` over the sum of ``weight``, or 0 with zero gradients where nothing counts.

    Args:
        cost: (B, H, W), already multiplied by the weight.
        weight: (B, H, W).
    """
    total = weight.sum()
    return cost.sum() * torch.where(total > 0, 1.0 / total, 0.0)


def cross_entropy(cost: Tensor, weight: Tensor) -> Tensor:
    """Return the mean cross entropy, as ``torch.nn.functional.cross_entropy`` takes it."""
    return weighted_mean(cost * weight, weight)


def smoothed_cross_entropy(cost: Tensor, weight: Tensor, spread: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross entropy with a share of every target spread evenly over all classes, as PyTorch's.

    This is Szegedy et al. 2016 (arXiv 1512.00567, section 7); with class weights, the spread share costs each class its
    own, and the sum of both is divided by the weights of the pixels' own classes.

    Args:
        cost: (B, H, W).
        weight: (B, H, W).
        spread: what a target spread over all classes costs, (B, H, W); see ``spread_cost``.
        smoothing: the share, 0..1.
    """
    return weighted_mean((1.0 - smoothing) * cost * weight + smoothing * spread, weight)


def spread_cost(log_p: Tensor, chosen: Tensor, class_weights: Tensor | None) -> Tensor:
    """Return the (weighted) mean of -log p over the classes, (B, H, W); 0 where a pixel is not chosen.

    Args:
        log_p: log-probabilities, (B, K, H, W).
        chosen: bool, (B, H, W).
        class_weights: (K,), or None for equal ones.
    """
    weighted = log_p if class_weights is None else log_p * class_weights.view(1, -1, 1, 1)
    return torch.where(chosen, -weighted.mean(1), 0.0)


def focal(cost: Tensor, weight: Tensor, gamma: float) -> Tensor:
    """Return the mean of (1 - p)^gamma times the cross entropy, p being the softmax probability of the own class.

    This is the loss of Lin et al. 2017 (arXiv 1708.02002, equation 4) with the softmax that a label map calls for,
    in place of one sigmoid a class.
    """
    # 1 - p without cancellation; above 0, where a power below 1 has no gradient.
    wrong = (-torch.expm1(-cost)).clamp(min=torch.finfo(cost.dtype).tiny)
    return weighted_mean(wrong**gamma * cost * weight, weight)


@torch.no_grad()
def hard_pixels(cost: Tensor, counted: Tensor, threshold: float, min_share: float) -> Tensor:
    """Choose the pixels that online hard example mining keeps (Shrivastava et al. 2016, arXiv 1604.03540).

    Those whose own class has a probability below the threshold; where they are fewer than ``min_share`` of the counted
    pixels, the hardest up to that share (and all that are exactly as hard as the last of them).

    Args:
        cost: (B, H, W).
        counted: bool, (B, H, W).
        threshold: probability, 0..1.
        min_share: 0..1, of the counted pixels of the whole batch.

    Returns:
        bool, (B, H, W).
    """
    own_p = torch.exp(-cost)  # 1 where ignored: none is easier, so these come last
    hard = own_p < threshold
    if min_share > 0:
        wanted = (counted.sum().double() * min_share).ceil().long()
        ranked, _ = torch.sort(sort_keys(own_p.flatten()))
        last = ranked.index_select(0, (wanted - 1).clamp(min=0).view(1))
        hard = hard | (sort_keys(own_p) <= last)
    return hard & counted


def sort_keys(values: Tensor) -> Tensor:
    """Return integers in the order of non-negative floats: their bits. A CPU sorts integers four times as fast."""
    return values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
