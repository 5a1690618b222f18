"""What a batch's label maps cost: a weighted sum of named terms, with the pixels of value 255 left out exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from effdense.errors import UserError
from effdense.tasks.segmentation.class_weights import class_weights_from_counts
from effdense.tasks.segmentation.loss_terms import LOSS_TERMS, check_terms, parse_terms
from effdense.tasks.segmentation.losses.pixels import (
    cross_entropy,
    focal,
    hard_pixels,
    smoothed_cross_entropy,
    spread_cost,
)
from effdense.tasks.segmentation.losses.regions import count_true_pixels, lovasz_softmax, mean_over_present, tversky
from effdense.types import IGNORE_INDEX

__all__ = ["LOSS_TERMS", "SegmentationLoss", "class_weights_from_counts", "parse_terms"]


class SegmentationLoss:
    """The terms of a batch, each by name, and their weighted sum.

    Every term is over the counted pixels of the batch. An ignored pixel (255) changes no value and its logits get a
    gradient of exactly zero; a batch of nothing but such pixels costs 0. With p the softmax, y a pixel's class and w
    the class weights, all 1 by default:

        ce       sum of w_y * -log p_y / sum of w_y
        focal    sum of w_y * (1 - p_y)^gamma * -log p_y / sum of w_y
        dice     sum of w_c * (1 - dice_c) / sum of w_c, over the classes c that the batch's truth has
        tversky  likewise
        lovasz   likewise, also over the whole batch and not image by image

    Half-precision logits are computed in float32. On a GPU nothing waits for a result.
    """

    def __init__(
        self,
        terms: Mapping[str, float],
        num_classes: int,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        ohem_threshold: float = 0.0,
        ohem_min_share: float = 0.0625,
        auxiliary_weight: float = 0.4,
    ) -> None:
        """Check the settings.

        Args:
            terms: weight of each term, of ``LOSS_TERMS``.
            num_classes: K, 2 to 255.
            class_weights: K weights; see the class for what each term does with them.
            label_smoothing: share of a pixel's target that ce spreads evenly over all classes.
            focal_gamma: how strongly focal discounts easy pixels.
            tversky_alpha: weight of false positives in tversky.
            tversky_beta: weight of false negatives; the defaults are the paper's best.
            ohem_threshold: ce counts only pixels whose own class has a probability below this; 0 counts all.
            ohem_min_share: at least this share of the counted pixels, the hardest, whatever the threshold.
            auxiliary_weight: weight of the same sum of terms on the auxiliary output (PSPNet's 0.4);
                0 leaves that output out.

        Raises:
            UserError: a term that does not exist, a value out of range, or one that no term has a use for.
        """
        check_terms(terms)
        _check(num_classes, class_weights, label_smoothing, ohem_threshold, ohem_min_share, auxiliary_weight)
        if "ce" not in terms and (label_smoothing > 0 or ohem_threshold > 0):
            name = "label smoothing" if label_smoothing > 0 else "OHEM"
            raise UserError(f"{name} belongs to the term ce, and the loss is {'+'.join(terms)}: add ce or leave it out")
        if focal_gamma < 0 or tversky_alpha < 0 or tversky_beta < 0 or tversky_alpha + tversky_beta == 0:
            raise UserError(
                f"expected focal_gamma, tversky_alpha and tversky_beta of 0 or more, and not both of the last 0; got "
                f"{focal_gamma}, {tversky_alpha} and {tversky_beta}"
            )
        self.terms = dict(terms)
        self.num_classes = num_classes
        self.class_weights = None if class_weights is None else tuple(float(weight) for weight in class_weights)
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.tversky_alpha, self.tversky_beta = tversky_alpha, tversky_beta
        self.ohem_threshold, self.ohem_min_share = ohem_threshold, ohem_min_share
        self.auxiliary_weight = auxiliary_weight
        self._carried: dict[torch.device, Tensor] = {}

    def __call__(self, outputs: Mapping[str, Tensor], masks: Tensor) -> dict[str, Tensor]:
        """Return scalars: each term by its name and not yet weighted, ``"auxiliary"`` where there is one, ``"total"``.

        Args:
            outputs: ``"logits"`` (B, K, H, W), and perhaps ``"auxiliary"`` of the same shape; any float type.
            masks: uint8, (B, H, W), class indices with 255 = ignore.

        Raises:
            ValueError: shapes that do not fit.
            IndexError: on a CPU, a mask value that is no class (a GPU stops with an assertion).
        """
        losses = self._terms(outputs["logits"], masks)
        total = self._weighted(losses)
        if "auxiliary" in outputs and self.auxiliary_weight > 0:
            losses["auxiliary"] = self._weighted(self._terms(outputs["auxiliary"], masks))
            total = total + self.auxiliary_weight * losses["auxiliary"]
        return {**losses, "total": total}

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Add the terms up."""
        return torch.stack([weight * losses[name] for name, weight in self.terms.items()]).sum()

    def _terms(self, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Return every term of one output."""
        expected = (len(masks), self.num_classes, *masks.shape[1:])
        if logits.shape != expected:
            raise ValueError(f"logits are {tuple(logits.shape)}, expected {expected} for masks {tuple(masks.shape)}")
        compute: dict[str, Callable[[_Scene], Tensor]] = {
            "ce": self._cross_entropy,
            "dice": lambda scene: self._tversky(scene, 0.5, 0.5),
            "lovasz": self._lovasz,
            "focal": lambda scene: focal(scene.cost, scene.weight, self.focal_gamma),
            "tversky": lambda scene: self._tversky(scene, self.tversky_alpha, self.tversky_beta),
        }
        scene = _Scene.of(logits, masks, self._class_weights_on(logits.device))
        return {name: compute[name](scene) for name in self.terms}

    def _class_weights_on(self, device: torch.device) -> Tensor | None:
        """Return the class weights there, float64; carried over once, for that makes a GPU wait."""
        if self.class_weights is None:
            return None
        if device not in self._carried:
            self._carried[device] = torch.tensor(self.class_weights, dtype=torch.float64, device=device)
        return self._carried[device]

    def _cross_entropy(self, scene: _Scene) -> Tensor:
        weight, chosen = scene.weight, scene.counted
        if self.ohem_threshold > 0:
            chosen = hard_pixels(scene.cost, scene.counted, self.ohem_threshold, self.ohem_min_share)
            weight = weight * chosen
        if self.label_smoothing == 0:
            return cross_entropy(scene.cost, weight)
        spread = spread_cost(scene.log_p, chosen, scene.class_weights)
        return smoothed_cross_entropy(scene.cost, weight, spread, self.label_smoothing)

    def _tversky(self, scene: _Scene, alpha: float, beta: float) -> Tensor:
        own_p = torch.exp(-scene.cost)
        losses = tversky(scene.p, own_p, scene.labels, scene.counted, scene.true_pixels, alpha, beta)
        return mean_over_present(losses, scene.true_pixels, scene.class_weights)

    def _lovasz(self, scene: _Scene) -> Tensor:
        losses = lovasz_softmax(scene.p, scene.labels, scene.counted, scene.true_pixels)
        return mean_over_present(losses, scene.true_pixels, scene.class_weights)


@dataclass(frozen=True, eq=False)
class _Scene:
    """What the terms share of one output and the truth.

    Attributes:
        log_p: log-probabilities, (B, K, H, W), at least float32.
        cost: minus the log-probability of each pixel's own class, 0 where ignored, (B, H, W).
        labels: int64, (B, H, W).
        counted: bool, (B, H, W), False where ignored.
        class_weights: (K,), or None for equal ones.
    """

    log_p: Tensor
    cost: Tensor
    labels: Tensor
    counted: Tensor
    class_weights: Tensor | None

    @classmethod
    def of(cls, logits: Tensor, masks: Tensor, class_weights: Tensor | None) -> _Scene:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_p = F.log_softmax(logits, 1, dtype=dtype)
        labels = masks.long()
        cost = F.nll_loss(log_p, labels, ignore_index=IGNORE_INDEX, reduction="none")
        weights = None if class_weights is None else class_weights.to(dtype)
        return cls(log_p, cost, labels, masks != IGNORE_INDEX, weights)

    @cached_property
    def weight(self) -> Tensor:
        """What each pixel counts in a mean over pixels, 0 where ignored, (B, H, W)."""
        if self.class_weights is None:
            return self.counted.to(self.cost.dtype)
        table = F.pad(self.class_weights, (0, IGNORE_INDEX + 1 - len(self.class_weights)))
        return table.index_select(0, self.labels.flatten()).view(self.labels.shape)

    @cached_property
    def p(self) -> Tensor:
        """Probabilities, (B, K, H, W)."""
        return self.log_p.exp()

    @cached_property
    def true_pixels(self) -> Tensor:
        """Pixels of each class in the truth, float64, (K,)."""
        return count_true_pixels(self.labels, self.log_p.shape[1])


def _check(
    num_classes: int,
    class_weights: Sequence[float] | None,
    label_smoothing: float,
    ohem_threshold: float,
    ohem_min_share: float,
    auxiliary_weight: float,
) -> None:
    """Refuse values out of range."""
    if not 2 <= num_classes <= IGNORE_INDEX:
        raise UserError(f"a label map has 2 to {IGNORE_INDEX} classes, got {num_classes}; background is a class too")
    shares = {"label_smoothing": label_smoothing, "ohem_threshold": ohem_threshold, "ohem_min_share": ohem_min_share}
    for name, value in shares.items():
        if not 0 <= value <= 1 or (name == "label_smoothing" and value == 1):
            raise UserError(f"{name} is {value}, expected a share between 0 and 1")
    if not 0 <= auxiliary_weight < float("inf"):
        raise UserError(f"auxiliary_weight is {auxiliary_weight}, expected a number of 0 or more")
    if class_weights is None:
        return
    if len(class_weights) != num_classes:
        raise UserError(f"there are {len(class_weights)} class weights for {num_classes} classes: give one a class")
    if not all(0 <= weight < float("inf") for weight in class_weights) or not any(class_weights):
        raise UserError(f"class weights are numbers of 0 or more and not all 0, got {list(class_weights)}")
