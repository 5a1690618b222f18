"""The terms of the segmentation loss: values and gradients, and that an ignored pixel is ignored exactly."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from effdense.errors import UserError
from effdense.tasks.segmentation.loss import LOSS_TERMS, SegmentationLoss
from effdense.tasks.segmentation.loss_terms import parse_terms
from effdense.tasks.segmentation.losses import regions
from effdense.tasks.segmentation.losses.pixels import hard_pixels

K = 4
WEIGHTS = [0.5, 2.0, 1.0, 3.0]
ALL = dict.fromkeys(LOSS_TERMS, 1.0)

SETTINGS = [
    pytest.param({}, id="plain"),
    pytest.param({"class_weights": WEIGHTS}, id="class weights"),
    pytest.param({"label_smoothing": 0.1}, id="smoothed"),
    pytest.param({"label_smoothing": 0.2, "class_weights": [0.0, *WEIGHTS[1:]]}, id="smoothed and weighted"),
    pytest.param({"ohem_threshold": 0.2, "ohem_min_share": 0.5}, id="OHEM"),
    pytest.param({"ohem_threshold": 0.9, "class_weights": WEIGHTS, "label_smoothing": 0.1}, id="all together"),
]


def case(
    batch: int = 2, size_hw: tuple[int, int] = (6, 5), classes: int = K, ignored: float = 0.3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *size_hw, generator=generator) * 2
    masks = torch.randint(0, classes, (batch, *size_hw), generator=generator).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < ignored] = 255
    return logits, masks


def value_and_gradient(loss: SegmentationLoss, logits: Tensor, masks: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    logits = logits.clone().requires_grad_()
    losses = loss({"logits": logits}, masks)
    losses["total"].backward()
    assert logits.grad is not None
    return losses, logits.grad


# --- each term is what its name says


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS, [0.0, 1.0, 0.0, 2.0]], ids=["equal", "weighted", "zeros"])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_cross_entropy_is_pytorchs(smoothing: float, weights: list[float] | None, ignored: float) -> None:
    logits, masks = case(ignored=ignored)
    loss = SegmentationLoss({"ce": 1.0}, K, class_weights=weights, label_smoothing=smoothing)
    losses, gradient = value_and_gradient(loss, logits, masks)
    theirs = logits.clone().requires_grad_()
    tensor = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(theirs, masks.long(), tensor, ignore_index=255, label_smoothing=smoothing)
    expected.backward()
    torch.testing.assert_close(losses["ce"], expected.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, theirs.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_focal_is_cross_entropy_times_what_is_missing_to_the_power_of_gamma(
    gamma: float, weights: list[float] | None
) -> None:
    logits, masks = case()
    got, _ = value_and_gradient(
        SegmentationLoss({"focal": 1.0}, K, focal_gamma=gamma, class_weights=weights), logits, masks
    )
    counted = masks < 255
    labels = masks[counted].long()
    p = logits.double().softmax(1).movedim(1, -1)[counted].gather(1, labels[:, None])[:, 0]
    weight = torch.tensor(weights or [1.0] * K, dtype=torch.float64)[labels]
    expected = (weight * (1 - p) ** gamma * -p.log()).sum() / weight.sum()
    assert got["focal"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_focal_of_softmax_does_not_see_a_constant_on_all_logits() -> None:
    logits, masks = case()
    loss = SegmentationLoss({"focal": 1.0}, K)
    torch.testing.assert_close(loss({"logits": logits + 7}, masks), loss({"logits": logits}, masks))


def test_focal_is_finite_where_a_pixel_is_certain() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[:, 0] = 300.0
    losses, gradient = value_and_gradient(
        SegmentationLoss({"focal": 1.0}, 2, focal_gamma=0.5), logits, torch.tensor([[[0, 1]]], dtype=torch.uint8)
    )
    assert losses["focal"].item() == pytest.approx(150.0)
    assert gradient.isfinite().all()


def certain(decided: Tensor, classes: int = K) -> Tensor:
    """Logits that say a label map with certainty."""
    return F.one_hot(decided.long(), classes).movedim(-1, 1).float() * 200


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.5, 0.5), (1.0, 1.0), (0.3, 0.7), (1.0, 0.0)], ids=["Dice", "Jaccard", "paper", "precision"]
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_of_certain_predictions_the_region_terms_are_the_scores_that_they_are_named_after(
    alpha: float, beta: float, weights: list[float] | None
) -> None:
    _, masks = case(seed=1)
    decided = case(seed=2, ignored=0)[1]
    counted = masks < 255
    losses = {"dice": 0.0, "tversky": 0.0, "lovasz": 0.0}
    for label, weight in enumerate(weights or [1.0] * K):
        true, found = (masks == label) & counted, (decided == label) & counted
        hits, missed, invented = (int(one.sum()) for one in (true & found, true & ~found, found & ~true))
        share = weight / sum(weights or [1.0] * K)
        losses["dice"] += share * (1 - 2 * hits / (2 * hits + missed + invented))
        losses["tversky"] += share * (1 - hits / (hits + alpha * invented + beta * missed))
        losses["lovasz"] += share * (1 - hits / (hits + missed + invented))
    loss = SegmentationLoss(ALL, K, tversky_alpha=alpha, tversky_beta=beta, class_weights=weights)
    got = loss({"logits": certain(decided)}, masks)
    for name, expected in losses.items():
        assert got[name].item() == pytest.approx(expected, abs=1e-6), name


def test_tversky_of_two_halves_is_dice_and_its_defaults_weigh_misses_more() -> None:
    logits, masks = case()
    halves = SegmentationLoss({"dice": 1.0, "tversky": 1.0}, K, tversky_alpha=0.5, tversky_beta=0.5)
    losses = halves({"logits": logits}, masks)
    assert torch.equal(losses["dice"], losses["tversky"])
    truth = torch.tensor([[[0, 1, 1, 1]]], dtype=torch.uint8)
    missing, inventing = certain(torch.tensor([[[0, 0, 1, 1]]]), 2), certain(torch.tensor([[[1, 1, 1, 1]]]), 2)
    loss = SegmentationLoss({"tversky": 1.0}, 2, class_weights=[0, 1])
    assert loss({"logits": missing}, truth)["tversky"] > loss({"logits": inventing}, truth)["tversky"] > 0


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_is_the_extension_of_the_jaccard_loss_by_its_definition(seed: int) -> None:
    logits, masks = case(1, (3, 4), 3, seed=seed)
    counted = masks.flatten() < 255
    labels = masks.flatten()[counted]
    p = logits.double().softmax(1).movedim(1, -1).reshape(-1, 3)[counted]

    def jaccard_loss(wrong: set[int], true: set[int]) -> float:
        return len(wrong) / len(true | wrong) if true | wrong else 0.0

    expected = []
    for label in labels.unique().tolist():
        true = {index for index, one in enumerate(labels.tolist()) if one == label}
        errors = [(1 - p[i, label] if i in true else p[i, label]).item() for i in range(len(labels))]
        order = sorted(range(len(errors)), key=lambda index: -errors[index])
        sets = [set(order[:count]) for count in range(len(order) + 1)]
        steps = [jaccard_loss(more, true) - jaccard_loss(less, true) for less, more in itertools.pairwise(sets)]
        expected.append(sum(errors[index] * step for index, step in zip(order, steps, strict=True)))
    got = SegmentationLoss({"lovasz": 1.0}, 3)({"logits": logits}, masks)["lovasz"]
    assert got.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
def test_a_class_that_the_truth_does_not_have_leaves_the_mean_alone(name: str) -> None:
    logits, masks = case()
    more = torch.cat((logits, torch.full_like(logits[:, :2], -200.0)), 1)
    few, many = (SegmentationLoss({name: 1.0}, classes) for classes in (K, K + 2))
    torch.testing.assert_close(many({"logits": more}, masks)[name], few({"logits": logits}, masks)[name])


@pytest.mark.parametrize("name", LOSS_TERMS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_are_those_of_the_values(name: str, settings: dict[str, Any]) -> None:
    terms = {name: 1.0} if name == "ce" else {name: 1.0, "ce": 1e-9}
    loss = SegmentationLoss(terms, K, **settings)
    logits, masks = case(2, (3, 3))
    assert torch.autograd.gradcheck(
        lambda one: loss({"logits": one}, masks)[name], logits.double().requires_grad_(), atol=1e-6
    )


# --- what is ignored


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", LOSS_TERMS)
def test_ignored_pixels_change_no_value_and_get_a_gradient_of_exactly_zero(name: str, settings: dict[str, Any]) -> None:
    loss = SegmentationLoss({name: 1.0, "ce": 1e-30} if name != "ce" else {"ce": 1.0}, K, **settings)
    logits, masks = case()
    ignored = (masks == 255).unsqueeze(1).expand_as(logits)
    before, gradient = value_and_gradient(loss, logits, masks)
    assert gradient[ignored].eq(0).all()
    assert gradient[~ignored].ne(0).any()
    after, _ = value_and_gradient(loss, torch.where(ignored, logits.flip(1) * 9 - 5, logits), masks)
    assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("name", LOSS_TERMS)
def test_the_counted_pixels_alone_give_the_same(name: str) -> None:
    logits, masks = case(1, (5, 8), ignored=0.4)
    loss = SegmentationLoss({name: 1.0}, K)
    counted = masks[0] < 255
    alone = loss({"logits": logits[0][:, counted].view(1, K, 1, -1)}, masks[0][counted].view(1, 1, -1))
    torch.testing.assert_close(loss({"logits": logits}, masks)[name], alone[name])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_of_ignored_pixels_costs_zero_with_zero_gradients(settings: dict[str, Any], dtype: torch.dtype) -> None:
    logits, masks = case()
    logits = logits.to(dtype).requires_grad_()
    losses = SegmentationLoss(ALL, K, **settings)(
        {"logits": logits, "auxiliary": logits * 2}, torch.full_like(masks, 255)
    )
    assert set(losses) == {*LOSS_TERMS, "auxiliary", "total"}
    assert all(value.item() == 0 for value in losses.values())
    losses["total"].backward()
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_of_classes_with_weight_zero_costs_zero(smoothing: float) -> None:
    logits, masks = case()
    loss = SegmentationLoss(ALL, K, class_weights=[0, 1, 1, 1], label_smoothing=smoothing)
    losses, gradient = value_and_gradient(loss, logits, torch.where(masks == 255, masks, 0))
    assert all(value.item() == 0 for value in losses.values())
    assert gradient.eq(0).all()


@pytest.mark.parametrize("label", [0, 1, 255])
def test_a_single_pixel_passes(label: int) -> None:
    masks = torch.full((1, 1, 1), label, dtype=torch.uint8)
    losses, gradient = value_and_gradient(
        SegmentationLoss(ALL, 2, ohem_threshold=0.7), torch.tensor([1.0, -1.0]).view(1, 2, 1, 1), masks
    )
    assert all(value.isfinite() for value in losses.values())
    assert gradient.isfinite().all()
    assert (losses["total"] > 0) == (label != 255)


def test_a_mask_value_that_is_no_class_is_not_passed_over() -> None:
    logits, masks = case()
    masks[0, 0, 0] = K
    with pytest.raises(IndexError, match="4"):
        SegmentationLoss({"dice": 1.0}, K)({"logits": logits}, masks)


# --- precision, memory, device


def test_float16_does_not_overflow_on_two_million_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 1024, 2048, generator=generator).half().requires_grad_()
    masks = torch.randint(0, 2, (1, 1024, 2048), generator=generator).to(torch.uint8)
    assert masks.sum() > torch.finfo(torch.float16).max
    losses = SegmentationLoss(ALL, 2)({"logits": logits}, masks)
    p = logits.detach().double().softmax(1)
    own = p.gather(1, masks.long()[:, None])
    dice = [
        2 * (p[:, label] * true).sum() / (p[:, label].sum() + true.sum())
        for label, true in enumerate((masks == 0, masks == 1))
    ]
    expected = {
        "ce": -own.log().mean(),
        "focal": ((1 - own) ** 2 * -own.log()).mean(),
        "dice": 1 - sum(dice) / 2,
    }
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    (losses["total"] * 2.0**16).backward()  # as a gradient scaler's
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.ne(0).float().mean() > 0.9


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    logits, masks = case(size_hw=(20, 20))
    loss = SegmentationLoss(ALL, K, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        half, half_gradient = value_and_gradient(loss, logits.to(dtype), masks)
    whole, gradient = value_and_gradient(loss, logits.to(dtype).float(), masks)
    for name, value in whole.items():
        assert half[name].dtype == torch.float32
        assert torch.equal(half[name], value), name
    assert half_gradient.dtype == dtype
    torch.testing.assert_close(half_gradient.float(), gradient, rtol=1e-2, atol=1e-6)


def test_memory_order_changes_nothing() -> None:
    logits, masks = case(size_hw=(16, 16))
    loss = SegmentationLoss(ALL, K)
    there, gradient = value_and_gradient(loss, logits, masks)
    last, last_gradient = value_and_gradient(loss, logits.contiguous(memory_format=torch.channels_last), masks)
    torch.testing.assert_close(last, there)
    torch.testing.assert_close(last_gradient, gradient)


@pytest.mark.parametrize(("name", "tensors"), [("ce", 1), ("focal", 1), ("dice", 2), ("lovasz", 3)])
def test_the_backward_pass_keeps_few_tensors_of_the_logits_size(name: str, tensors: int) -> None:
    logits, masks = case(classes=40, size_hw=(32, 32))
    logits = logits.bfloat16().requires_grad_()
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: kept.update({one.data_ptr(): one.numel() * one.element_size()}) or one, lambda one: one
    ):
        SegmentationLoss({name: 1.0}, 40)({"logits": logits}, masks)
    assert sum(kept.values()) <= (tensors + 0.3) * logits.numel() * 4


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_step_depends_on_a_value_that_a_gpu_would_have_to_hand_over(settings: dict[str, Any]) -> None:
    logits, masks = (one.to("meta") for one in case())  # has shapes and no values: to ask for one is an error
    logits.requires_grad_()
    losses = SegmentationLoss(ALL, K, **settings)({"logits": logits, "auxiliary": logits}, masks)
    losses["total"].backward()
    assert logits.grad is not None
    assert losses["total"].shape == ()


@pytest.mark.parametrize("present", [[], [1], [0, 2]], ids=["no class", "one", "two"])
def test_what_a_gpu_computes_for_absent_classes_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, present: list[int]
) -> None:
    logits, masks = case()
    masks[~torch.isin(masks, torch.tensor(present, dtype=torch.uint8))] = 255
    loss = SegmentationLoss({"lovasz": 1.0}, K)
    losses, gradient = value_and_gradient(loss, logits, masks)
    monkeypatch.setattr(regions, "_worth_sorting", lambda true_pixels: list(range(len(true_pixels))))
    on_gpu, gradient_there = value_and_gradient(loss, logits, masks)
    assert torch.equal(on_gpu["lovasz"], losses["lovasz"])
    assert torch.equal(gradient_there, gradient)


def test_an_evaluation_without_gradients_keeps_nothing() -> None:
    logits, masks = case()
    with torch.no_grad():
        assert not SegmentationLoss(ALL, K)({"logits": logits.requires_grad_()}, masks)["total"].requires_grad


# --- OHEM


def by_hand(own_p: list[float], ignored: list[int], threshold: float, min_share: float) -> set[int]:
    counted = [index for index in range(len(own_p)) if index not in ignored]
    ranked = sorted(counted, key=lambda index: own_p[index])
    least = -int(-len(counted) * min_share // 1)
    return {index for index in counted if own_p[index] < threshold} | set(ranked[:least])


@pytest.mark.parametrize(
    ("threshold", "min_share", "ignored", "kept"),
    [
        pytest.param(0.55, 0.0, [], {0, 1, 2, 3, 4}, id="below the threshold"),
        pytest.param(0.55, 0.2, [], {0, 1, 2, 3, 4}, id="threshold keeps more than the share"),
        pytest.param(0.15, 0.4, [], {0, 1, 2, 3}, id="share keeps more than the threshold"),
        pytest.param(0.15, 0.35, [], {0, 1, 2, 3}, id="a share is rounded up"),
        pytest.param(0.05, 0.0, [], set(), id="nothing is hard"),
        pytest.param(0.05, 1.0, [], set(range(9)), id="all of them"),
        pytest.param(0.25, 0.5, [0, 1, 2], {3, 4, 5}, id="the share is of the counted pixels"),
        pytest.param(1.0, 0.0, [3], {0, 1, 2, 4, 5, 6, 7, 8}, id="threshold 1"),
    ],
)
def test_ohem_keeps_exactly_the_pixels_that_it_says(
    threshold: float, min_share: float, ignored: list[int], kept: set[int]
) -> None:
    own_p = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert by_hand(own_p, ignored, threshold, min_share) == kept
    shuffle = [4, 8, 0, 3, 7, 1, 5, 2, 6]
    p = torch.tensor([own_p[index] for index in shuffle])
    masks = torch.zeros(1, 1, 9, dtype=torch.uint8)
    masks[0, 0, [shuffle.index(index) for index in ignored]] = 255
    logits = torch.stack((p.log(), (1 - p).log())).view(1, 2, 1, 9)
    loss = SegmentationLoss({"ce": 1.0}, 2, ohem_threshold=threshold, ohem_min_share=min_share)
    losses, gradient = value_and_gradient(loss, logits, masks)
    taught = {shuffle[index] for index in gradient[0, 0, 0].nonzero().flatten().tolist()}
    assert taught == kept
    expected = -torch.tensor([own_p[index] for index in kept]).log().mean() if kept else torch.tensor(0.0)
    torch.testing.assert_close(losses["ce"].detach(), expected)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("min_share", [0.0, 0.1, 1.0])
def test_an_ignored_pixel_is_never_hard(threshold: float, min_share: float) -> None:
    cost = torch.tensor([0.0, 0.0, 0.0])  # as it is where ignored, and where certain
    for counted in ([False] * 3, [False, True, True]):
        hard = hard_pixels(cost, torch.tensor(counted), threshold, min_share)
        assert not hard[0]
        assert not hard.any() or min_share > 0


def test_ohem_keeps_all_that_are_as_hard_as_the_last() -> None:
    logits = torch.zeros(1, 2, 2, 5)
    losses, gradient = value_and_gradient(
        SegmentationLoss({"ce": 1.0}, 2, ohem_threshold=0.1, ohem_min_share=0.3),
        logits,
        torch.zeros(1, 2, 5, dtype=torch.uint8),
    )
    assert gradient.ne(0).all()
    assert losses["ce"].item() == pytest.approx(0.693147, abs=1e-5)


def test_ohem_leaves_the_other_terms_alone() -> None:
    logits, masks = case()
    plain, mined = (SegmentationLoss(ALL, K, ohem_threshold=value)({"logits": logits}, masks) for value in (0.0, 0.3))
    assert mined["ce"] > plain["ce"]
    assert all(torch.equal(mined[name], plain[name]) for name in LOSS_TERMS if name != "ce")


# --- the sum


def test_the_total_is_the_weighted_sum_and_the_terms_are_not_weighted() -> None:
    logits, masks = case()
    auxiliary, _ = case(seed=5)
    terms = {"dice": 0.5, "ce": 2.0}
    losses = SegmentationLoss(terms, K, auxiliary_weight=0.25)({"logits": logits, "auxiliary": auxiliary}, masks)
    assert list(losses) == ["dice", "ce", "auxiliary", "total"]
    for name in terms:
        alone = SegmentationLoss({name: 1.0}, K)({"logits": logits}, masks)
        assert list(alone) == [name, "total"]
        assert torch.equal(losses[name], alone[name])
        assert torch.equal(alone["total"], alone[name])
    other = SegmentationLoss(terms, K)({"logits": auxiliary}, masks)["total"]
    assert torch.equal(losses["auxiliary"], other)
    torch.testing.assert_close(losses["total"], 0.5 * losses["dice"] + 2 * losses["ce"] + 0.25 * other)


def test_an_auxiliary_output_without_weight_is_left_out() -> None:
    logits, masks = case()
    outputs = {"logits": logits, "auxiliary": logits}
    assert list(SegmentationLoss({"ce": 1.0}, K, auxiliary_weight=0.0)(outputs, masks)) == ["ce", "total"]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        pytest.param("ce", {"ce": 1.0}, id="one"),
        pytest.param("ce+0.5*dice", {"ce": 1.0, "dice": 0.5}, id="two"),
        pytest.param(" 2 * lovasz + 1e-1*ce ", {"lovasz": 2.0, "ce": 0.1}, id="spaces and exponents"),
        pytest.param("+".join(LOSS_TERMS), ALL, id="all"),
    ],
)
def test_sums_of_terms_are_read(text: str, terms: dict[str, float]) -> None:
    assert parse_terms(text) == terms
    assert list(parse_terms(text)) == list(terms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "a term is missing", id="empty"),
        pytest.param("ce+", "a term is missing", id="ends in a plus"),
        pytest.param("0.5*", "a term is missing", id="weight alone"),
        pytest.param("ce+dise", "no loss 'dise'; did you mean 'dice'", id="unknown"),
        pytest.param("cross", "no loss 'cross'.*there are ce, dice", id="far from all"),
        pytest.param("CE", "no loss 'CE'", id="capitals"),
        pytest.param("ce+2*ce", "ce comes twice", id="twice"),
        pytest.param("-1*ce", "weight of ce is -1", id="negative"),
        pytest.param("ce+0*dice", "weight of dice is 0", id="zero"),
        pytest.param("nan*ce", "weight of ce is nan", id="not a number"),
        pytest.param("inf*ce", "weight of ce is inf", id="infinite"),
        pytest.param("half*ce", "'half' is no number", id="word for weight"),
        pytest.param("ce*0.5", "'ce' is no number", id="weight behind"),
        pytest.param("2*3*ce", "'2.3' is no number", id="two weights"),
        pytest.param("ce,dice", "no loss 'ce,dice'", id="comma"),
    ],
)
def test_sums_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_terms(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"terms": {}}, "at least one term", id="no term"),
        pytest.param({"terms": {"cee": 1.0}}, "did you mean 'ce'", id="unknown term"),
        pytest.param({"terms": {"ce": -1.0}}, "weight of ce", id="negative weight"),
        pytest.param({"num_classes": 1}, "2 to 255 classes, got 1", id="one class"),
        pytest.param({"num_classes": 256}, "2 to 255 classes, got 256", id="ignore would be a class"),
        pytest.param({"class_weights": [1.0]}, "1 class weights for 4 classes", id="too few weights"),
        pytest.param({"class_weights": [1, 1, -1, 1]}, "0 or more", id="weight below zero"),
        pytest.param({"class_weights": [1, 1, float("nan"), 1]}, "0 or more", id="weight not a number"),
        pytest.param({"class_weights": [0, 0, 0, 0]}, "not all 0", id="no weight"),
        pytest.param({"label_smoothing": 1.0}, "label_smoothing is 1.0", id="smoothing of one"),
        pytest.param({"ohem_threshold": 1.5}, "ohem_threshold is 1.5", id="threshold above one"),
        pytest.param({"ohem_min_share": -0.1}, "ohem_min_share is -0.1", id="share below zero"),
        pytest.param({"focal_gamma": -1.0}, "focal_gamma", id="gamma below zero"),
        pytest.param({"tversky_alpha": 0.0, "tversky_beta": 0.0}, "not both", id="no weight of errors"),
        pytest.param({"auxiliary_weight": -0.1}, "auxiliary_weight is -0.1", id="auxiliary below zero"),
        pytest.param({"terms": {"dice": 1.0}, "ohem_threshold": 0.7}, "OHEM belongs to the term ce", id="OHEM, no ce"),
        pytest.param({"terms": {"dice": 1.0}, "label_smoothing": 0.1}, "smoothing belongs to the term ce", id="no ce"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SegmentationLoss(**{"terms": {"ce": 1.0}, "num_classes": K, **settings})


@pytest.mark.parametrize("size_hw", [(3, 5), (6, 6)], ids=str)
def test_logits_of_another_size_than_the_masks_are_refused(size_hw: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected \(2, 4, 6, 5\)"):
        SegmentationLoss({"ce": 1.0}, K)({"logits": case(size_hw=size_hw)[0]}, case()[1])
