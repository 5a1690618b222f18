"""Focal loss over the classes and Huber loss over the boxes, with the constants that EfficientDet was trained with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effdense.tasks.detection.assign import IGNORED, Targets

BOX_WEIGHT = 50.0
"""Weight of the box loss in the published sum (google/automl hparams, ``box_loss_weight``)."""

_CPU_ELEMENTS = 1 << 15
_DEVICE_ELEMENTS = 1 << 24
"""Logits handled at a time. On a processor few enough for its cache, and for one thread: waiting for a second costs
more than it does where data loaders keep the cores busy."""


class DetectionLoss:
    """What a batch's outputs cost, apart for classes and boxes; the caller weighs and adds (``BOX_WEIGHT``).

    With z the logit, t 1 for the anchor's class and 0 for all others, and p the probability that the model gives to
    what is right (arXiv 1708.02002, equation 5), each class of each anchor that is not ignored costs

        p = sigmoid(z) if t else 1 - sigmoid(z)
        (alpha if t else 1 - alpha) * (1 - p) ** gamma * binary_cross_entropy(z, t)

    and all of it is divided by the batch's positive anchors plus one. Each of the four codes of a positive anchor costs
    Huber's loss, divided by four times the same number. Both are computed in float32.
    """

    def __init__(
        self, alpha: float = 0.25, gamma: float = 1.5, delta: float = 0.1, label_smoothing: float = 0.0
    ) -> None:
        """Set the constants; the defaults are google/automl's for every configuration.

        Args:
            alpha: weight of positives; negatives have 1 - alpha.
            gamma: how much less the easy examples count.
            delta: box code error at which Huber's loss turns from quadratic to linear.
            label_smoothing: how far the targets of the cross-entropy move from 0 and 1 towards one half.

        Raises:
            ValueError: if a constant is out of its range.
        """
        if not (0 < alpha < 1 and gamma >= 0 and delta > 0 and 0 <= label_smoothing < 1):
            raise ValueError(
                "expected 0 < alpha < 1, gamma >= 0, delta > 0 and 0 <= label_smoothing < 1; got "
                f"{alpha}, {gamma}, {delta} and {label_smoothing}"
            )
        self.alpha, self.gamma, self.delta, self.label_smoothing = alpha, gamma, delta, label_smoothing

    def __call__(self, class_logits: Tensor, box_codes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the scalars ``{"class": ..., "box": ...}``.

        Args:
            class_logits: (B, A, K).
            box_codes: (B, A, 4).
            targets: of the same batch.
        """
        normaliser = targets.num_positive.sum().float() + 1.0
        focal = _Focal.apply(class_logits, targets.labels, normaliser, self.alpha, self.gamma, self.label_smoothing)
        return {"class": focal, "box": self._box(box_codes, targets) / (4.0 * normaliser)}

    def _box(self, box_codes: Tensor, targets: Targets) -> Tensor:
        """Huber's loss, summed over the codes of the positive anchors."""
        positive = targets.labels >= 0  # (B, A)
        if box_codes.device.type == "cpu":
            chosen = positive.nonzero(as_tuple=True)
            predicted, wanted = box_codes[chosen].float(), targets.box_codes[chosen]
            return F.huber_loss(predicted, wanted, reduction="sum", delta=self.delta)
        # Indexing by a mask would make the device wait.
        cost = F.huber_loss(box_codes.float(), targets.box_codes, reduction="none", delta=self.delta)
        return torch.where(positive.unsqueeze(-1), cost, 0.0).sum()


class _Focal(torch.autograd.Function):
    """Focal loss that computes its gradient on the way forward, piece by piece.

    So the backward pass keeps one tensor of the logits' size instead of every intermediate of the formula, and the
    exponentials are computed once. Almost every target is 0: all are first taken as such, then the positives corrected.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, normaliser: Tensor, alpha: float, gamma: float, smoothing: float
    ) -> Tensor:
        """Return the scalar for logits (B, A, K), labels (B, A) and the number to divide by."""
        rows = logits.detach().reshape(-1, logits.shape[-1])  # (R, K)
        classes = labels.reshape(-1)
        # A gradient in float16 would underflow before the scaler has multiplied it.
        kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        wanted = logits.requires_grad
        gradient = torch.empty(rows.shape, dtype=kept, device=rows.device) if wanted else None
        step = max(1, (_CPU_ELEMENTS if rows.device.type == "cpu" else _DEVICE_ELEMENTS) // rows.shape[1])
        sums = []
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            weight = (classes[part] != IGNORED).float().mul_(1.0 - alpha).div_(normaliser)  # (r,)
            cost, slope = _terms(rows[part].float(), gamma, 0.5 * smoothing, positive=False)
            sums.append(cost.sum(1) @ weight)
            if gradient is not None:
                torch.mul(slope, weight.unsqueeze(1), out=slope)
                gradient[part] = slope
        sums.append(_correct_positives(rows, classes, normaliser, gradient, alpha, gamma, smoothing))
        ctx.save_for_backward(gradient if gradient is None else gradient.view(logits.shape))
        ctx.dtype = logits.dtype
        return torch.stack(sums).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Scale the gradient computed on the way forward."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0].to(gradient.dtype)).to(ctx.dtype), None, None, None, None, None


def _terms(z: Tensor, gamma: float, target: float, *, positive: bool) -> tuple[Tensor, Tensor]:
    """Focal cost of each logit, without its alpha, and the cost's derivative.

    Args:
        z: float32 logits, any shape.
        gamma: the exponent.
        target: of the cross-entropy; apart from 0 and 1 only with label smoothing.
        positive: whether the modulating factor is the positives'.
    """
    # With s the probability of what is wrong, s = sigmoid(+-z), log s = -softplus(-+z), which never overflows.
    log_one_minus = F.softplus(z)  # -log(1 - sigmoid(z))
    log_s = -log_one_minus if positive else z - log_one_minus
    probability = torch.sigmoid(z)
    modulator = torch.exp(gamma * log_s)
    cross_entropy = log_one_minus.sub_(z, alpha=target) if target else log_one_minus
    # d modulator / dz = gamma * modulator * d log s / dz, and d log s / dz is -p for positives, 1 - p for the others.
    rate = -probability if positive else 1.0 - probability
    slope = rate.mul_(gamma).mul_(cross_entropy).add_(probability).sub_(target).mul_(modulator)
    return cross_entropy.mul_(modulator), slope


def _correct_positives(
    rows: Tensor,
    classes: Tensor,
    normaliser: Tensor,
    gradient: Tensor | None,
    alpha: float,
    gamma: float,
    smoothing: float,
) -> Tensor:
    """Return what the positives cost more than they would as negatives; put their own gradient in place."""
    if rows.device.type == "cpu":
        where = (classes >= 0).nonzero().squeeze(1)
        share = torch.ones(len(where))
    else:  # all anchors, most with a share of 0: picking them out would make the device wait
        where = torch.arange(len(classes), device=classes.device)
        share = (classes >= 0).float()
    chosen = classes[where].clamp(min=0)
    z = rows[where, chosen].float()
    cost, slope = _terms(z, gamma, 1.0 - 0.5 * smoothing, positive=True)
    wrong_cost, _ = _terms(z, gamma, 0.5 * smoothing, positive=False)
    share = share / normaliser
    if gradient is not None:  # written anew rather than corrected: in bfloat16 a difference would be rounded twice
        right_slope = (alpha * slope * share).to(gradient.dtype)
        gradient[where, chosen] = torch.where(share > 0, right_slope, gradient[where, chosen])
    return (alpha * cost - (1.0 - alpha) * wrong_cost) @ share
