"""Terms that measure how well regions overlap: Dice, Tversky and Lovasz-softmax.

Each gives a loss for each class over the whole batch, and ``mean_over_present`` the mean of those that the batch's
truth has: a class without a true pixel has an overlap of 0 however little of it is predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from effdense.tasks.segmentation.losses.pixels import sort_keys

_LEAST_DENOMINATOR = 1e-7
_BINS = 256
"""Values that a mask can have: counting them all lets 255 fall where it is not looked at."""


def mean_over_present(losses: Tensor, true_pixels: Tensor, class_weights: Tensor | None) -> Tensor:
    """Return the (weighted) mean over the classes that occur, or 0 with zero gradients where none does.

    Args:
        losses: (K,), finite for absent classes too.
        true_pixels: (K,).
        class_weights: (K,), or None for equal ones.
    """
    weight = (true_pixels > 0).to(losses.dtype)
    if class_weights is not None:
        weight = weight * class_weights
    total = weight.sum()
    return (losses * weight).sum() * torch.where(total > 0, 1.0 / total, 0.0)


def count_true_pixels(labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each class, float64, (K,), exact and without a GPU waiting.

    Args:
        labels: int64, (B, H, W), 255 where ignored.
        num_classes: K.
    """
    flat = labels.flatten()
    ones = torch.ones((), dtype=torch.float64, device=labels.device).expand_as(flat)
    return torch.zeros(_BINS, dtype=torch.float64, device=labels.device).index_add(0, flat, ones)[:num_classes]


def tversky(
    p: Tensor, own_p: Tensor, labels: Tensor, counted: Tensor, true_pixels: Tensor, alpha: float, beta: float
) -> Tensor:
    """Return 1 - TP / (TP + alpha FP + beta FN) of each class, (K,).

    The sums are over the counted pixels of the whole batch, of probabilities in place of decisions (Salehi et al. 2017,
    arXiv 1706.05721, equation 3). With alpha = beta = 0.5 it is the Dice loss, 1 - 2 TP / (2 TP + FP + FN) (Milletari
    et al. 2016, arXiv 1606.04797, without its squares). Nothing is added to smooth it.

    Args:
        p: probabilities, (B, K, H, W).
        own_p: those of each pixel's own class, (B, H, W); what stands where a pixel is ignored does not matter.
        labels: int64, (B, H, W), 255 where ignored.
        counted: bool, (B, H, W).
        true_pixels: float64, (K,).
        alpha: weight of false positives.
        beta: weight of false negatives.
    """
    # In float64: one after the other, two million float32 would not add up.
    bins = torch.zeros(_BINS, dtype=torch.float64, device=p.device)
    hits = bins.index_add(0, labels.flatten(), own_p.flatten().double())[: p.shape[1]].to(p.dtype)  # (K,)
    predicted = (p * counted.unsqueeze(1)).sum((0, 2, 3))  # (K,)
    missed = true_pixels.to(p.dtype) - hits
    denominator = hits + alpha * (predicted - hits) + beta * missed
    return 1.0 - hits / denominator.clamp(min=_LEAST_DENOMINATOR)


def lovasz_softmax(p: Tensor, labels: Tensor, counted: Tensor, true_pixels: Tensor) -> Tensor:
    """Return the Lovasz extension of the Jaccard loss of each class, (K,) (Berman et al. 2018, arXiv 1705.08790).

    A pixel's error for a class is how far its probability is from 1, or from 0 where the class is another. With the
    errors sorted, greatest first, each costs itself times what it adds to the Jaccard loss of all before it.

    Args:
        p: probabilities, (B, K, H, W).
        labels: int64, (B, H, W), 255 where ignored.
        counted: bool, (B, H, W).
        true_pixels: float64, (K,).
    """
    # The factors are constants of the gradient, so the loss is linear in p: one tensor of p's size is all that is kept.
    factors = torch.zeros_like(p)
    constants = torch.zeros(p.shape[1], dtype=p.dtype, device=p.device)
    with torch.no_grad():
        for index in _worth_sorting(true_pixels):
            own = labels == index
            weights = _lovasz_weights(p[:, index], own, counted)
            factors[:, index] = torch.where(own, -weights, weights)
            constants[index] = torch.where(own, weights, 0.0).sum()
    return (p * factors).sum((0, 2, 3)) + constants


def _worth_sorting(true_pixels: Tensor) -> list[int]:
    """Return the classes that occur; on a GPU all, for asking would make it wait."""
    if true_pixels.device.type != "cpu":
        return list(range(len(true_pixels)))
    return [index for index, count in enumerate(true_pixels.tolist()) if count > 0]


def _lovasz_weights(p: Tensor, own: Tensor, counted: Tensor) -> Tensor:
    """Return what each pixel's error adds to the Jaccard loss of those before it, (B, H, W); 0 where ignored.

    With G true pixels of which c are among the first i, and n = i - c others, the Jaccard loss of the first i is
    1 - (G - c) / (G + n). It is the difference to the one before, in closed form: subtracted, neighbours that are equal
    to seven digits would leave one or none.
    """
    errors = torch.where(own, 1.0 - p, p).clamp_(min=0.0)
    # Ascending and of integers is what a CPU sorts fast. Ignored pixels come last, where nothing is left to add.
    keys = torch.where(counted, -sort_keys(errors), 1).flatten()
    order = torch.sort(keys).indices
    true = own.flatten().index_select(0, order)
    so_far = true.cumsum(0, dtype=torch.int32)  # c, (P,)
    total = so_far[-1]  # G
    union = torch.arange(1, len(order) + 1, dtype=torch.int32, device=p.device).sub_(so_far).add_(total)  # G + n
    of_true = union.to(p.dtype).reciprocal_()
    of_other = (total - so_far).to(p.dtype).mul_(of_true).div_((union - 1).clamp_(min=1))
    weights = torch.where(true, of_true, of_other)
    return torch.empty_like(weights).index_copy_(0, order, weights).view(p.shape)
