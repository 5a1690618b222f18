"""Losses agree with segmentation_models_pytorch's where those are right; where not, the difference is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch
import torch
import torch.nn.functional as F
from segmentation_models_pytorch import losses as smp
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torch import Tensor

from effdense.tasks.segmentation.loss import SegmentationLoss

pytestmark = pytest.mark.parity
K = 5
WEIGHTS = [0.5, 2.0, 1.0, 3.0, 0.7]

shown_for_the_version_looked_at = pytest.mark.skipif(
    not segmentation_models_pytorch.__version__.startswith("0.6"), reason="shows faults of smp 0.6"
)


def case(ignored: float, size_hw: tuple[int, int] = (16, 16)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, *size_hw, generator=generator) * 3
    masks = torch.randint(0, K, (2, *size_hw), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < ignored] = 255
    return logits, masks


def value_and_gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = function(logits)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def ours(name: str, masks: Tensor, classes: int = K, **settings: Any) -> Callable[[Tensor], Tensor]:
    loss = SegmentationLoss({name: 1.0}, classes, **settings)
    return lambda logits: loss({"logits": logits}, masks.to(torch.uint8))["total"]


SAME = [
    pytest.param("dice", {}, smp.DiceLoss, {}, id="Dice"),
    pytest.param("dice", {"class_weights": WEIGHTS}, smp.DiceLoss, {"class_weights": WEIGHTS}, id="Dice, weighted"),
    pytest.param("tversky", {}, smp.TverskyLoss, {"alpha": 0.3, "beta": 0.7}, id="Tversky"),
    pytest.param(
        "tversky",
        {"tversky_alpha": 0.9, "tversky_beta": 0.0, "class_weights": WEIGHTS},
        smp.TverskyLoss,
        {"alpha": 0.9, "beta": 0.0, "class_weights": WEIGHTS},
        id="Tversky, weighted",
    ),
    pytest.param("lovasz", {}, smp.LovaszLoss, {}, id="Lovasz"),
]


@pytest.mark.parametrize(("name", "settings", "kind", "theirs"), SAME)
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("spread", [1.0, 10.0], ids=["moderate logits", "extreme logits"])
def test_region_losses_agree_where_every_class_occurs(
    name: str, settings: dict[str, Any], kind: Any, theirs: dict[str, Any], ignored: float, spread: float
) -> None:
    logits, masks = case(ignored)
    loss = kind("multiclass", ignore_index=255, **theirs)
    got, gradient = value_and_gradient(ours(name, masks, **settings), logits * spread)
    wanted, expected = value_and_gradient(lambda one: loss(one, masks), logits * spread)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_agrees_where_nothing_is_ignored(smoothing: float) -> None:
    logits, masks = case(0.0)
    loss = smp.SoftCrossEntropyLoss(smooth_factor=smoothing)
    got, gradient = value_and_gradient(ours("ce", masks, label_smoothing=smoothing), logits)
    wanted, expected = value_and_gradient(lambda one: loss(one, masks), logits)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_agrees_with_the_softmax_function_that_smp_has_and_its_loss_does_not_call(gamma: float) -> None:
    logits, masks = case(0.0)
    got, gradient = value_and_gradient(ours("focal", masks, focal_gamma=gamma), logits)
    wanted, expected = value_and_gradient(lambda one: softmax_focal_loss_with_logits(one, masks, gamma), logits)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


# --- where smp 0.6 is not right


@shown_for_the_version_looked_at
def test_smp_cross_entropy_fails_with_its_own_defaults() -> None:
    logits, masks = case(0.0)
    with pytest.raises(TypeError, match="NoneType"):
        smp.SoftCrossEntropyLoss()(logits, masks)
    torch.testing.assert_close(ours("ce", masks)(logits), F.cross_entropy(logits, masks))


@shown_for_the_version_looked_at
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smp_cross_entropy_divides_by_ignored_pixels_too(smoothing: float) -> None:
    logits, masks = case(0.0)
    masks[:, :12] = 255  # three quarters
    loss = smp.SoftCrossEntropyLoss(smooth_factor=smoothing, ignore_index=255)
    right = F.cross_entropy(logits, masks, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, masks), right / 4)
    torch.testing.assert_close(ours("ce", masks, label_smoothing=smoothing)(logits), right)


@shown_for_the_version_looked_at
def test_smp_focal_is_a_sigmoid_loss_of_each_class() -> None:
    logits, masks = case(0.0)
    loss = smp.FocalLoss("multiclass", gamma=2.0)
    one_hot = F.one_hot(masks, K).movedim(-1, 1).float()
    p = torch.where(one_hot > 0, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(loss(logits, masks), ((1 - p) ** 2 * -p.log()).mean(), rtol=1e-4, atol=1e-5)
    # What softmax does not see, a constant on all logits of a pixel, multiplies it.
    assert loss(logits + 10, masks) > 5 * loss(logits, masks)
    torch.testing.assert_close(ours("focal", masks)(logits + 10), ours("focal", masks)(logits))


@shown_for_the_version_looked_at
def test_smp_focal_of_a_batch_of_ignored_pixels_is_no_number() -> None:
    logits, masks = case(1.0)
    assert smp.FocalLoss("multiclass", ignore_index=255)(logits, masks).isnan()
    assert ours("focal", masks)(logits) == 0


@shown_for_the_version_looked_at
@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_smp_dice_and_tversky_divide_by_classes_that_do_not_occur(name: str) -> None:
    logits, masks = case(0.2)
    masks[(masks > 1) & (masks < 255)] = 255  # two of five classes are left
    kind, settings = {"dice": (smp.DiceLoss, {}), "tversky": (smp.TverskyLoss, {"alpha": 0.3, "beta": 0.7})}[name]
    theirs = kind("multiclass", ignore_index=255, **settings)(logits, masks)
    torch.testing.assert_close(ours(name, masks)(logits), theirs * 5 / 2)


@pytest.fixture(scope="module")
def two_million() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 2, 1024, 2048, generator=generator), torch.randint(0, 2, (1, 1024, 2048), generator=generator)


@shown_for_the_version_looked_at
@pytest.mark.parametrize(("name", "kind"), [("dice", smp.DiceLoss), ("tversky", smp.TverskyLoss)])
def test_smp_dice_and_tversky_overflow_in_float16(name: str, kind: Any, two_million: tuple[Tensor, Tensor]) -> None:
    logits, masks = two_million
    assert kind("multiclass", ignore_index=255)(logits.half(), masks).isnan()
    value = ours(name, masks, classes=2)(logits.half())
    torch.testing.assert_close(value, ours(name, masks, classes=2)(logits), rtol=1e-4, atol=1e-6)


@shown_for_the_version_looked_at
def test_smp_lovasz_of_a_batch_of_ignored_pixels_is_no_scalar() -> None:
    logits, masks = case(1.0)
    assert smp.LovaszLoss("multiclass", ignore_index=255)(logits, masks).shape == (0, K)
    assert ours("lovasz", masks)(logits).shape == ()


@shown_for_the_version_looked_at
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_smp_lovasz_takes_float32_alone(dtype: torch.dtype) -> None:
    logits, masks = case(0.2)
    with pytest.raises(RuntimeError, match="same dtype"):
        smp.LovaszLoss("multiclass", ignore_index=255)(logits.to(dtype), masks)
    assert ours("lovasz", masks)(logits.to(dtype)) > 0


@shown_for_the_version_looked_at
def test_smp_lovasz_loses_digits_of_the_gradient_on_two_million_pixels(two_million: tuple[Tensor, Tensor]) -> None:
    logits, masks = two_million
    _, right = value_and_gradient(ours("lovasz", masks, classes=2), logits.double())
    _, theirs = value_and_gradient(lambda one: smp.LovaszLoss("multiclass", ignore_index=255)(one, masks), logits)
    _, mine = value_and_gradient(ours("lovasz", masks, classes=2), logits)
    assert ((theirs - right).norm() / right.norm()).item() > 0.01
    assert ((mine - right).norm() / right.norm()).item() < 1e-5
