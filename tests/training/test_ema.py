"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from effdense.training.ema import ModelEma


def test_the_average_starts_as_the_model_and_shares_no_tensor_with_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEma(model, 0.9)
    for name, value in model.state_dict().items():
        assert torch.equal(value, ema.module.state_dict()[name])
        assert value.data_ptr() != ema.module.state_dict()[name].data_ptr()
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert not ema.module.training


def test_each_update_moves_by_one_minus_the_decay_which_rises_to_its_limit() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ModelEma(model, 0.5)
    nn.init.ones_(model.weight)
    expected = 0.0
    for update in range(1, 20):
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay)
        assert ema.module.weight.item() == pytest.approx(expected, abs=1e-6)


def test_batch_norm_statistics_are_averaged_and_its_counter_is_copied() -> None:
    model = nn.BatchNorm1d(1)
    ema = ModelEma(model, 1.0)
    model.running_mean.fill_(1.0)  # type: ignore[union-attr]
    model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    ema.update(model)
    assert ema.module.running_mean.item() == pytest.approx(1 - 2 / 11)  # type: ignore[union-attr]
    assert ema.module.num_batches_tracked.item() == 7  # type: ignore[union-attr]
