"""How the tasks are weighted: by numbers, by learned uncertainty, by the norms of their gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from effdense.errors import UserError
from effdense.tasks.multitask.balance import BALANCES, Balance, GradNormBalance, build_balance
from effdense.training.checkpoint import load_state, save_state


def losses(detection: float | None = 2.0, segmentation: float | None = 0.5) -> dict[str, Tensor]:
    values = {"class": 9.0, "detection": detection, "ce": 9.0, "segmentation": segmentation}
    return {name: torch.tensor(value) for name, value in values.items() if value is not None}


# --- what all have in common


@pytest.mark.parametrize("name", BALANCES)
@pytest.mark.parametrize(("det_weight", "seg_weight"), [(1.0, 1.0), (0.5, 2.0), (1e-3, 40.0)])
def test_the_first_weights_are_the_ones_given(name: str, det_weight: float, seg_weight: float) -> None:
    balance = build_balance(name, det_weight=det_weight, seg_weight=seg_weight)
    assert balance.name == name
    assert balance.weights() == pytest.approx({"detection": det_weight, "segmentation": seg_weight}, rel=1e-5)


@pytest.mark.parametrize("name", ["fixed", "gradnorm"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param((2.0, 0.5), 3 * 2.0 + 4 * 0.5, id="both"),
        pytest.param((2.0, None), 6.0, id="detection only"),
        pytest.param((None, 0.5), 2.0, id="segmentation only"),
        pytest.param((0.0, 0.0), 0.0, id="both zero"),
    ],
)
def test_the_total_is_the_weighted_sum_of_the_tasks_that_are_there(
    name: str, values: tuple[float | None, float | None], expected: float
) -> None:
    balance = build_balance(name, det_weight=3.0, seg_weight=4.0)
    total = balance.total(losses(*values))
    assert total.shape == ()
    assert total.item() == expected


@pytest.mark.parametrize("name", BALANCES)
def test_a_total_of_no_task_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="expected the loss of detection or segmentation, got class, ce"):
        build_balance(name).total(losses(None, None))


@pytest.mark.parametrize("name", BALANCES)
def test_the_total_reads_no_value_from_the_device(name: str) -> None:
    with torch.device("meta"):  # a device that has no values to read
        balance = build_balance(name)
    total = balance.total({name: value.to("meta") for name, value in losses().items()})
    assert total.device.type == "meta"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"name": "gradnrom"}, "no balance 'gradnrom'.*did you mean 'gradnorm'", id="unknown"),
        pytest.param({"det_weight": 0.0}, "det_weight and seg_weight are 0.0 and 1.0", id="a weight of 0"),
        pytest.param({"seg_weight": -1.0}, "expected numbers above 0", id="a negative weight"),
        pytest.param({"seg_weight": math.nan}, "expected numbers above 0", id="no number"),
        pytest.param({"alpha": -0.1}, "alpha is -0.1", id="alpha below 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_balance(**({"name": "gradnorm"} | changes))


@pytest.mark.parametrize("name", BALANCES)
def test_a_restored_balance_goes_on_as_the_one_that_was_never_stopped(name: str, tmp_path: Path) -> None:
    def steps(balance: Balance, optimizer: torch.optim.Optimizer | None, first: int, last: int) -> list[float]:
        totals = []
        for step in range(first, last):
            there = losses(2.0 / (1 + step), None if step % 3 == 1 else 0.7)
            total = balance.total(there)
            totals.append(total.item())
            if optimizer is not None:
                total.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            balance.observe({"detection": 3.0 + step, "segmentation": 0.2}, {k: v.item() for k, v in there.items()})
        return totals

    def build() -> tuple[Balance, torch.optim.Optimizer | None]:
        balance = build_balance(name, det_weight=0.3, seg_weight=2.0)
        parameters = balance.parameters()
        return balance, torch.optim.AdamW(parameters, lr=0.01) if parameters else None

    whole, whole_optimizer = build()
    expected = steps(whole, whole_optimizer, 0, 20)
    stopped, optimizer = build()
    got = steps(stopped, optimizer, 0, 11)
    state = {"balance": stopped.state(), "optimizer": optimizer and optimizer.state_dict()}
    save_state(tmp_path / "state.pt", state)
    state = load_state(tmp_path / "state.pt")
    resumed, optimizer = build()
    resumed.restore(state["balance"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    got += steps(resumed, optimizer, 11, 20)
    assert got == expected
    assert resumed.weights() == whole.weights()
    assert resumed.state() == whole.state()


# --- fixed


def test_fixed_weights_stay_whatever_is_observed() -> None:
    balance = build_balance("fixed", det_weight=3.0, seg_weight=4.0)
    balance.observe({"detection": 100.0, "segmentation": 1.0}, {"detection": 1.0, "segmentation": 9.0})
    assert balance.weights() == {"detection": 3.0, "segmentation": 4.0}
    assert balance.parameters() == []


# --- uncertainty


@pytest.mark.parametrize(
    "there", [("detection", "segmentation"), ("detection",), ("segmentation",)], ids=["both", "det", "seg"]
)
def test_uncertainty_is_the_formula_and_its_gradient(there: tuple[str, ...]) -> None:
    weights, values = {"detection": 0.5, "segmentation": 4.0}, {"detection": 3.0, "segmentation": 0.25}
    balance = build_balance("uncertainty", det_weight=0.5, seg_weight=4.0)
    given = {task: torch.tensor(values[task], requires_grad=True) for task in there}
    total = balance.total(given)
    total.backward()  # type: ignore[no-untyped-call]
    sigmas = {task: weights[task] ** -0.5 for task in there}  # the paper's: loss / sigma^2 + log sigma
    expected = sum(values[task] / sigmas[task] ** 2 + math.log(sigmas[task]) for task in there)
    assert total.item() == pytest.approx(expected, rel=1e-6)
    for task, parameter in zip(weights, balance.parameters(), strict=True):
        if task in there:
            assert given[task].grad == pytest.approx(weights[task], rel=1e-6)
            assert parameter.grad == pytest.approx(-values[task] * weights[task] + 0.5, rel=1e-6)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("values", [(2.0, 0.5), (30.0, 0.01), (0.2, 0.2)])
def test_uncertainty_settles_where_each_task_costs_one_half(values: tuple[float, float]) -> None:
    balance = build_balance("uncertainty")
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.5)
    for _ in range(2000):
        optimizer.zero_grad()
        balance.total(losses(*values)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(balance.parameters(), 1.0)
        optimizer.step()
    expected = {"detection": 1 / (2 * values[0]), "segmentation": 1 / (2 * values[1])}
    assert balance.weights() == pytest.approx(expected, rel=1e-3)


def test_uncertainty_of_a_task_that_is_missing_stands_still_even_under_momentum() -> None:
    balance = build_balance("uncertainty")
    optimizer = torch.optim.AdamW(balance.parameters(), lr=0.1)
    for step in range(6):
        optimizer.zero_grad(set_to_none=True)
        balance.total(losses(2.0, 3.0 if step < 3 else None)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step == 2:
            before = balance.weights()
    after = balance.weights()
    assert after["segmentation"] == before["segmentation"]
    assert after["detection"] < before["detection"]


def test_moving_keeps_the_parameters_that_an_optimizer_knows() -> None:
    balance = build_balance("uncertainty")
    before = balance.parameters()
    balance.to("cpu").restore({"detection": 1.0, "segmentation": -1.0})
    assert all(one is other for one, other in zip(before, balance.parameters(), strict=True))
    assert [parameter.item() for parameter in before] == [1.0, -1.0]


# --- GradNorm


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
@pytest.mark.parametrize(
    ("norms", "progress"),
    [
        pytest.param((5.0, 0.2), (0.5, 0.5), id="norms apart"),
        pytest.param((1.0, 1.0), (0.3, 0.9), id="segmentation slower"),
        pytest.param((0.01, 40.0), (0.9, 0.4), id="detection slower, norms far apart"),
    ],
)
def test_gradnorm_brings_the_weighted_norms_to_the_proportion_that_alpha_says(
    alpha: float, norms: tuple[float, float], progress: tuple[float, float]
) -> None:
    balance = build_balance("gradnorm", det_weight=0.5, seg_weight=1.5, alpha=alpha)
    n = dict(zip(("detection", "segmentation"), norms, strict=True))
    balance.observe(n, {"detection": 7.0, "segmentation": 2.0})
    for _ in range(200):
        balance.observe(n, {"detection": 7.0 * progress[0], "segmentation": 2.0 * progress[1]})
        assert sum(balance.weights().values()) == pytest.approx(2.0, abs=1e-12)
    w = balance.weights()
    # equation 1, written out: G_i = mean(G) * r_i ** alpha
    proportion = (w["detection"] * n["detection"]) / (w["segmentation"] * n["segmentation"])
    mean = sum(progress) / 2
    assert proportion == pytest.approx((progress[0] / mean) ** alpha / (progress[1] / mean) ** alpha, rel=1e-9)


def test_gradnorm_goes_the_way_that_the_papers_loss_falls() -> None:
    norms, start = {"detection": 4.0, "segmentation": 1.0}, {"detection": 1.0, "segmentation": 1.0}
    weights = {task: torch.tensor(value, requires_grad=True) for task, value in start.items()}
    weighted = torch.stack([weights[task] * norms[task] for task in norms])
    (weighted - weighted.mean().detach()).abs().sum().backward()  # equation 2 with equal training rates
    balance = GradNormBalance(start, alpha=1.5)
    balance.observe(norms, {"detection": 3.0, "segmentation": 3.0})
    for task, value in balance.weights().items():
        gradient = weights[task].grad
        assert gradient is not None
        assert math.copysign(1, start[task] - value) == torch.sign(gradient).item()


def test_gradnorm_on_a_network_evens_out_gradients_that_are_a_thousandfold_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    shared = torch.randn(8, 4, generator=generator).requires_grad_()
    truth = {"detection": 30 * x @ torch.randn(8, 4, generator=generator), "segmentation": x[:, :4]}
    balance = build_balance("gradnorm", alpha=0.0)
    proportions = []
    for _ in range(150):
        hidden = torch.tanh(x @ shared)
        scale = {"detection": 30.0, "segmentation": 1.0}
        costs = {task: (scale[task] * hidden - truth[task]).square().mean() for task in truth}
        gradients = {task: torch.autograd.grad(costs[task], shared, retain_graph=True)[0] for task in costs}
        norms = {task: gradient.norm().item() for task, gradient in gradients.items()}
        w = balance.weights()
        proportions.append(w["detection"] * norms["detection"] / (w["segmentation"] * norms["segmentation"]))
        balance.observe(norms, {task: cost.item() for task, cost in costs.items()})
        (step,) = torch.autograd.grad(balance.total(costs), shared)
        shared.data -= 0.1 * step / step.norm()
    assert proportions[0] > 300
    assert all(0.5 < proportion < 2 for proportion in proportions[-30:])


def test_one_odd_batch_moves_gradnorm_no_further_than_any_other() -> None:
    balance = build_balance("gradnorm")
    balance.observe({"detection": 1e30, "segmentation": 1e-30}, {"detection": 1.0, "segmentation": 1.0})
    w = balance.weights()
    assert math.log(w["segmentation"] / w["detection"]) == pytest.approx(0.1)


NOTHING_TO_GO_BY = [
    pytest.param({}, {}, id="nothing measured"),
    pytest.param({"detection": 2.0}, {"detection": 1.0}, id="one task"),
    pytest.param({"detection": 2.0}, {"detection": 1.0, "segmentation": 1.0}, id="one norm"),
    pytest.param({"detection": 2.0, "segmentation": 0.0}, {"detection": 1.0, "segmentation": 1.0}, id="a norm of 0"),
    pytest.param({"detection": 2.0, "segmentation": 3.0}, {"detection": 1.0, "segmentation": 0.0}, id="a loss of 0"),
    pytest.param({"detection": 0.0, "segmentation": 0.0}, {"detection": 0.0, "segmentation": 0.0}, id="all 0"),
    pytest.param({"detection": math.inf, "segmentation": 1.0}, {"detection": 1.0, "segmentation": 1.0}, id="infinite"),
    pytest.param({"detection": 2.0, "segmentation": 1.0}, {"detection": math.nan, "segmentation": 1.0}, id="NaN"),
]


@pytest.mark.parametrize(("norms", "values"), NOTHING_TO_GO_BY)
@pytest.mark.parametrize("begun", [False, True], ids=["at first", "later"])
def test_gradnorm_leaves_its_weights_alone_where_there_is_nothing_to_go_by(
    norms: dict[str, float], values: dict[str, float], begun: bool
) -> None:
    balance = build_balance("gradnorm", det_weight=0.5, seg_weight=1.5)
    if begun:
        balance.observe({"detection": 2.0, "segmentation": 5.0}, {"detection": 4.0, "segmentation": 1.0})
    before = balance.weights()
    balance.observe(norms, values)
    assert balance.weights() == before
    assert all(0 < loss < math.inf for loss in balance.state()["first_losses"].values())
    balance.observe({"detection": 2.0, "segmentation": 5.0}, {"detection": 4.0, "segmentation": 1.0})
    assert all(math.isfinite(weight) for weight in balance.weights().values())
    assert balance.weights() != before


def test_gradnorm_remembers_the_loss_that_each_task_began_with() -> None:
    balance = build_balance("gradnorm")
    balance.observe({"detection": 1.0}, {"detection": 5.0})
    balance.observe({"segmentation": 1.0}, {"segmentation": 3.0})
    balance.observe({"detection": 1.0, "segmentation": 1.0}, {"detection": 2.0, "segmentation": 2.0})
    assert balance.state()["first_losses"] == {"detection": 5.0, "segmentation": 3.0}


# --- nothing where something was


@pytest.mark.parametrize("name", BALANCES)
def test_a_loss_of_zero_gives_finite_numbers(name: str) -> None:
    balance = build_balance(name)
    zero = {task: torch.tensor(0.0, requires_grad=True) for task in ("detection", "segmentation")}
    total = balance.total(zero)
    total.backward()  # type: ignore[no-untyped-call]
    assert total.isfinite()
    gradients = [tensor.grad for tensor in (*zero.values(), *balance.parameters())]
    assert all(gradient is not None and gradient.isfinite() for gradient in gradients)
