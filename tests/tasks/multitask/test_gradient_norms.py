"""The norm of each task's gradient on the backbone: right, and without a trace on the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effdense import create_backbone
from effdense.backbones.backbone import Backbone
from effdense.tasks.detection.assign import Targets
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.multitask.gradients import backbone_gradient_norms
from effdense.tasks.segmentation.loss import SegmentationLoss
from effdense.training.precision import Precision

K, S = 3, 4


class Both(nn.Module):
    """A backbone and two heads of one convolution; the second reads a finer level only."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone: Backbone = create_backbone("lite0", weights="none", drop_path_rate=0.2)
        fine, coarse = self.backbone.channels[-3], self.backbone.channels[-1]
        self.classes, self.boxes = nn.Conv2d(coarse, K, 1), nn.Conv2d(coarse, 4, 1)
        self.masks = nn.Conv2d(fine, S, 1)

    def losses(self, images: Tensor, targets: Targets, masks: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        classes, boxes = (head(features[-1]).flatten(2).mT for head in (self.classes, self.boxes))
        logits = F.interpolate(self.masks(features[-3]), size=masks.shape[-2:], mode="bilinear")
        terms = DetectionLoss()(classes, boxes, targets)
        segmentation = SegmentationLoss({"ce": 1.0, "dice": 1.0}, S)({"logits": logits}, masks)["total"]
        return {**terms, "detection": terms["class"] + 50 * terms["box"], "segmentation": segmentation}


def scene(seed: int = 1, count: int = 2, size: int = 64) -> tuple[Tensor, Targets, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8)
    labels = torch.randint(-1, K, (count, (size // 32) ** 2), generator=generator)
    codes = torch.randn(*labels.shape, 4, generator=generator) * (labels >= 0).unsqueeze(-1)
    masks = torch.randint(0, S, (count, size, size), generator=generator).to(torch.uint8)
    return images, Targets(labels, codes, (labels >= 0).sum(1)), masks


@pytest.fixture(scope="module")
def model() -> Both:
    return Both().eval()


def by_backward(model: Both, task: str) -> float:
    """The norm from a backward pass of the one task."""
    model.zero_grad(set_to_none=True)
    model.losses(*scene())[task].backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.double().flatten() for p in model.backbone.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(gradients).norm().item()


def test_norms_are_those_of_a_backward_pass_for_each_task(model: Both) -> None:
    got = backbone_gradient_norms(model.losses(*scene()), model.backbone.parameters())
    assert list(got) == ["detection", "segmentation"]
    for task, norm in got.items():
        assert norm == pytest.approx(by_backward(model, task), rel=1e-5)
        assert norm > 0


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_one_task_alone_has_the_norm_that_it_has_beside_the_other(model: Both, task: str) -> None:
    together = backbone_gradient_norms(model.losses(*scene()), model.backbone.parameters())
    alone = backbone_gradient_norms({task: model.losses(*scene())[task]}, model.backbone.parameters())
    assert alone == {task: together[task]}


def test_gradients_that_were_gathered_stay_as_they_are(model: Both) -> None:
    model.zero_grad(set_to_none=True)
    model.losses(*scene(seed=2))["detection"].backward()  # type: ignore[no-untyped-call]
    before = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    backbone_gradient_norms(model.losses(*scene()), model.backbone.parameters())
    for name, parameter in model.named_parameters():
        expected = before[name]
        assert (parameter.grad is None) == (expected is None), name
        assert expected is None or torch.equal(parameter.grad, expected), name  # type: ignore[arg-type]
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("amp", ["fp32", "bf16"])
def test_a_training_that_is_measured_is_to_the_bit_the_one_that_is_not(amp: str) -> None:
    precision = Precision(amp, "cpu")

    def trained(measured: bool) -> tuple[dict[str, Tensor], Tensor]:
        model = Both().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(3)
        for step in range(2):
            with precision.autocast():
                losses = model.losses(*scene(seed=step))
            if measured:
                norms = backbone_gradient_norms(losses, model.backbone.parameters(), precision.scaler)
                assert min(norms.values()) > 0
            precision.backward(losses["detection"] + losses["segmentation"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return model.state_dict(), torch.rand(1)

    (measured, drawn), (plain, drawn_plainly) = trained(True), trained(False)
    assert torch.equal(drawn, drawn_plainly)
    assert all(torch.equal(measured[name], value) for name, value in plain.items())


def frozen(model: Both, *, keep: int) -> list[nn.Parameter]:
    """All of the backbone's parameters, only the last ``keep`` of which learn."""
    parameters = list(model.backbone.parameters())
    for parameter in parameters[: len(parameters) - keep]:
        parameter.requires_grad_(False)
    return parameters


def test_of_a_frozen_backbone_there_is_no_norm() -> None:
    model = Both().eval()
    assert backbone_gradient_norms(model.losses(*scene()), frozen(model, keep=0)) == {}


def test_of_a_backbone_partly_frozen_what_learns_counts() -> None:
    model = Both().eval()
    parameters = frozen(model, keep=4)
    got = backbone_gradient_norms(model.losses(*scene()), parameters)
    assert got["detection"] == pytest.approx(by_backward(model, "detection"), rel=1e-5)
    assert got["segmentation"] == 0  # it reads a finer level, to which none of those contribute


w = nn.Parameter(torch.tensor([3.0, 4.0]))
DEGENERATE: list[Any] = [
    pytest.param({}, {}, id="no loss"),
    pytest.param({"class": w.sum()}, {}, id="no task"),
    pytest.param({"detection": torch.tensor(2.0)}, {}, id="a loss of frozen parts"),
    pytest.param(
        {"detection": 0 * w.sum(), "segmentation": w.sum()}, {"detection": 0.0, "segmentation": 2**0.5}, id="0"
    ),
    pytest.param({"segmentation": 1e30 * w.square().sum()}, {}, id="a gradient that overflows"),
    pytest.param({"segmentation": (w * float("nan")).sum()}, {}, id="NaN"),
    pytest.param({"detection": w.square().sum() / 2}, {"detection": 5.0}, id="3, 4, 5"),
]


@pytest.mark.parametrize(("losses", "expected"), DEGENERATE)
def test_degenerate_losses(losses: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert backbone_gradient_norms(losses, [w]) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**20])
def test_small_gradients_in_half_precision_are_seen_at_the_scalers_scale(scale: float) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    weight = nn.Parameter(torch.ones(4))

    def measured() -> dict[str, float]:
        half = weight.half()  # as autocast does: the gradient comes back through float16
        return backbone_gradient_norms({"detection": (half.float() * 1e-9).sum()}, [weight], scaler)

    got = measured()["detection"]
    assert got == pytest.approx(0.0 if scale == 1 else 2e-9, rel=1e-2)
    assert scaler.get_scale() == scale


def test_the_scaler_goes_on_as_if_nothing_had_been_measured() -> None:
    states = []
    for measure in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for factor in (1.0, float("inf"), 2.0):
            loss = (weight * factor).sum()
            if measure:
                norms = backbone_gradient_norms({"detection": loss}, [weight], scaler)
                assert ("detection" in norms) == (factor != float("inf"))
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        states.append((scaler.state_dict(), weight.tolist()))
    assert states[0] == states[1]
