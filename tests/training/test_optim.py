"""Learning rates, parameter groups and the schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from effdense.errors import UserError
from effdense.training.optim import build_optimizer, parameter_groups, scale_lr, schedule_factor, set_lr


@pytest.mark.parametrize(
    ("images", "optimizer", "expected"),
    [
        pytest.param(64, "sgd", 0.1, id="stated-for-64"),
        pytest.param(8, "sgd", 0.0125, id="sgd-linear"),
        pytest.param(4, "adamw", 0.025, id="adamw-root"),
        pytest.param(256, "adamw", 0.2, id="adamw-larger"),
    ],
)
def test_the_learning_rate_is_scaled_to_the_images_of_a_step(images: int, optimizer: str, expected: float) -> None:
    assert scale_lr(0.1, images, optimizer) == pytest.approx(expected)


def test_warm_up_rises_to_one_and_the_cosine_falls_to_the_end() -> None:
    factors = [schedule_factor("cosine", step, steps=100, warmup_steps=10) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] < 0.001


def test_a_run_without_warm_up_begins_at_the_full_rate() -> None:
    assert schedule_factor("cosine", 0, steps=1, warmup_steps=0) == 1.0


def _network() -> nn.Module:
    network = nn.Module()
    network.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.head = nn.Conv2d(4, 2, 1)
    network.fusion = nn.Parameter(torch.ones(3))
    return network


def test_biases_norms_and_vectors_are_not_decayed_and_the_backbone_has_its_factor() -> None:
    network = _network()
    groups = parameter_groups(
        network, weight_decay=0.1, backbone=network.get_submodule("backbone"), backbone_lr_factor=0.5
    )
    found = {
        id(parameter): (group["weight_decay"], group["lr_factor"])
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    expected = {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.0, 0.5),
        "backbone.1.weight": (0.0, 0.5),
        "backbone.1.bias": (0.0, 0.5),
        "head.weight": (0.1, 1.0),
        "head.bias": (0.0, 1.0),
        "fusion": (0.0, 1.0),
    }
    assert {name: found[id(parameter)] for name, parameter in network.named_parameters()} == expected


def test_the_factor_of_a_group_multiplies_its_rate() -> None:
    network = _network()
    groups = parameter_groups(
        network, weight_decay=0.1, backbone=network.get_submodule("backbone"), backbone_lr_factor=0.5
    )
    optimizer = build_optimizer("adamw", groups, lr=1.0)
    set_lr(optimizer, 0.2)
    assert {(group["lr_factor"], group["lr"]) for group in optimizer.param_groups} == {(0.5, 0.1), (1.0, 0.2)}


def test_frozen_parameters_are_left_out_and_all_frozen_is_an_error() -> None:
    network = _network()
    network.get_submodule("backbone").requires_grad_(False)
    groups = parameter_groups(network, weight_decay=0.1)
    assert sum(len(group["params"]) for group in groups) == 3  # type: ignore[arg-type]
    network.requires_grad_(False)
    with pytest.raises(UserError, match="nothing is left to train"):
        build_optimizer("adamw", parameter_groups(network, weight_decay=0.1), lr=1.0)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match="expected adamw or sgd"):
        build_optimizer("adam", parameter_groups(_network(), weight_decay=0.0), lr=1.0)


def test_poly_falls_faster_at_first_and_ends_at_nothing() -> None:
    factors = [schedule_factor("poly", step, steps=100, warmup_steps=10) for step in range(101)]
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5**0.9)
    assert factors[100] == 0.0


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="expected cosine or poly"):
        schedule_factor("linear", 0, steps=1, warmup_steps=0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_fused_step_is_the_plain_one_to_rounding_and_takes_over_its_state(name: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fused = copy.deepcopy(plain)
    optimizers = [build_optimizer(name, parameter_groups(model, weight_decay=0.1), lr=0.01) for model in (plain, fused)]
    for group in optimizers[0].param_groups:
        group["fused"] = False

    def step() -> None:
        gradients = [torch.randn_like(parameter) for parameter in plain.parameters()]
        for model, optimizer in zip((plain, fused), optimizers, strict=True):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

    step()
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for group in optimizers[1].param_groups:
        group["fused"] = True
    step()
