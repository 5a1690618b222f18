from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from effdense.tasks.detection import loss as module
from effdense.tasks.detection.assign import Targets
from effdense.tasks.detection.loss import DetectionLoss


def case(batch: int = 2, anchors: int = 50, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Targets]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, anchors, classes, generator=generator) * 4
    codes = torch.randn(batch, anchors, 4, generator=generator)
    labels = torch.randint(-2, classes, (batch, anchors), generator=generator)
    wanted = codes + torch.randn(codes.shape, generator=generator) * 0.2
    positive = labels >= 0
    return logits, codes, Targets(labels, wanted * positive.unsqueeze(-1), positive.sum(1))


def plain(
    logits: Tensor, codes: Tensor, targets: Targets, alpha: float, gamma: float, delta: float, smoothing: float
) -> dict[str, Tensor]:
    """The formula as written in the papers, with every intermediate."""
    normaliser = targets.num_positive.sum() + 1.0
    t = F.one_hot(targets.labels.clamp(min=0), logits.shape[2]) * (targets.labels >= 0).unsqueeze(-1)
    t = t.to(logits.dtype)
    p = logits.sigmoid()
    right = p * t + (1 - p) * (1 - t)
    weight = alpha * t + (1 - alpha) * (1 - t)
    smooth = t * (1 - smoothing) + 0.5 * smoothing
    cost = weight * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    cost = cost * (targets.labels != -2).unsqueeze(-1)
    error = (codes - targets.box_codes.to(codes)).abs()
    huber = torch.where(error < delta, 0.5 * error**2, delta * (error - 0.5 * delta))
    huber = huber * (targets.labels >= 0).unsqueeze(-1)
    return {"class": cost.sum() / normaliser, "box": huber.sum() / (4 * normaliser)}


@pytest.mark.parametrize(
    ("alpha", "gamma", "delta", "smoothing"),
    [(0.25, 1.5, 0.1, 0.0), (0.5, 2.0, 1.0, 0.0), (0.25, 1.5, 0.1, 0.1), (0.9, 0.0, 0.01, 0.0)],
    ids=["as published", "gamma 2", "smoothed labels", "gamma 0"],
)
@pytest.mark.parametrize("elements", [7, 1 << 17], ids=["in pieces", "at once"])
def test_values_and_gradients_are_the_formulas(
    alpha: float, gamma: float, delta: float, smoothing: float, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CPU_ELEMENTS", elements)
    logits, codes, targets = case()
    mine, theirs = [[one.clone().requires_grad_() for one in (logits, codes)] for _ in range(2)]
    got = DetectionLoss(alpha, gamma, delta, smoothing)(*mine, targets)
    expected = plain(*(one.double() for one in theirs), targets, alpha, gamma, delta, smoothing)
    for name in ("class", "box"):
        torch.testing.assert_close(got[name].double(), expected[name], rtol=1e-5, atol=1e-7)
    (got["class"] * 3 + got["box"] * 50).backward()
    (expected["class"] * 3 + expected["box"] * 50).backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("logit", [-200.0, -30.0, 30.0, 200.0])
def test_extreme_logits_stay_finite(logit: float) -> None:
    _, codes, targets = case()
    logits = torch.full((2, 50, 5), logit, requires_grad=True)
    loss = DetectionLoss()(logits, codes, targets)["class"]
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_batch_without_positives_has_a_finite_class_loss_and_no_box_loss() -> None:
    logits, codes, _ = case()
    logits.requires_grad_()
    codes.requires_grad_()
    targets = Targets(torch.full((2, 50), -1), torch.zeros(2, 50, 4), torch.zeros(2, dtype=torch.int64))
    losses = DetectionLoss()(logits, codes, targets)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert losses["class"] > 0
    assert losses["box"] == 0
    assert codes.grad is not None
    assert codes.grad.eq(0).all()


def test_ignored_anchors_cost_nothing_and_teach_nothing() -> None:
    logits, codes, targets = case()
    logits.requires_grad_()
    ignored = targets.labels == -2
    before = DetectionLoss()(logits, codes, targets)
    sum(before.values()).backward()  # type: ignore[union-attr]
    assert logits.grad is not None
    assert logits.grad[ignored].eq(0).all()
    after = DetectionLoss()(torch.where(ignored.unsqueeze(-1), 9.0, logits), codes, targets)
    assert torch.equal(before["class"], after["class"])


def test_a_code_that_should_be_exactly_zero_counts_where_effdet_leaves_it_out() -> None:
    codes = torch.full((1, 1, 4), 1.0)
    targets = Targets(torch.tensor([[0]]), torch.zeros(1, 1, 4), torch.tensor([1]))
    box = DetectionLoss()(torch.zeros(1, 1, 1), codes, targets)["box"]
    assert box.item() == pytest.approx(4 * 0.1 * (1 - 0.05) / (4 * 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, codes, targets = case()
    half = logits.to(dtype).requires_grad_()
    whole = half.detach().float().requires_grad_()
    got, expected = DetectionLoss()(half, codes.to(dtype), targets), DetectionLoss()(whole, codes.to(dtype), targets)
    assert got["class"].dtype == got["box"].dtype == torch.float32
    assert torch.equal(got["class"], expected["class"])
    scale = 2.0**16  # as a gradient scaler's
    (got["class"] * scale).backward()
    (expected["class"] * scale).backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), whole.grad, rtol=1e-2, atol=1e-3)


def test_the_backward_pass_keeps_no_more_than_one_tensor_of_the_logits_size() -> None:
    logits, codes, targets = case(anchors=400, classes=30)
    logits.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        DetectionLoss()(logits, codes, targets)
    assert sum(one.numel() for one in kept) <= logits.numel() + codes.numel()


def test_an_evaluation_without_gradients_keeps_nothing() -> None:
    logits, codes, targets = case()
    with torch.no_grad():
        assert not DetectionLoss()(logits, codes, targets)["class"].requires_grad


def test_constants_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        DetectionLoss(alpha=1.5)
