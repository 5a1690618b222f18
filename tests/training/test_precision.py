"""--amp: what each value means where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from effdense.errors import UserError
from effdense.training import precision as module
from effdense.training.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amp", "fast", "expected"),
    [
        pytest.param("off", True, "fp32", id="off"),
        pytest.param("auto", True, "bf16", id="auto-with-amx"),
        pytest.param("auto", False, "fp32", id="auto-without-amx"),
        pytest.param("bf16", False, "bf16", id="bf16-asked-for"),
    ],
)
def test_a_cpu_uses_bf16_where_it_pays_or_is_asked_for(
    amp: str, fast: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cpu_has_fast_bf16", lambda: fast)
    assert choose_precision(amp, CPU).name == expected


@pytest.mark.parametrize(("amp", "says"), [("fp16", "needs a CUDA device"), ("bf17", "expected auto, off")])
def test_what_cannot_be_is_refused(amp: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        choose_precision(amp, CPU)


def test_bf16_computes_convolutions_in_bf16_and_weights_stay_float32() -> None:
    conv = nn.Conv2d(3, 4, 3)
    precision = choose_precision("bf16", CPU)
    with precision.autocast():
        y = conv(torch.randn(1, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    precision.backward(y.float().sum())
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


def test_fp16_scales_the_loss_and_leaves_an_overflown_step_out() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.25)
    scaled = module.Precision("fp16", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    scaled.backward(weight.sum())
    assert weight.grad is not None
    assert weight.grad.item() == 8.0
    scaled.unscale(optimizer)
    assert weight.grad.item() == 1.0
    scaled.step(optimizer)
    assert weight.item() == 0.75
    optimizer.zero_grad()
    scaled.backward((weight * float("inf")).sum())
    scaled.unscale(optimizer)
    scaled.step(optimizer)
    assert weight.item() == 0.75


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_on_a_gpu_is_bf16_where_the_hardware_has_it() -> None:
    expected = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    assert choose_precision("auto", torch.device("cuda")).name == expected
