from __future__ import annotations

import pytest
import torch
from torch import nn

from effdense.tasks.detection.head import DetectionHead


def test_outputs_run_over_level_row_column_anchor() -> None:
    head = DetectionHead((8, 8), num_classes=3, anchors_per_cell=2, repeats=1).eval()
    pyramid = [torch.randn(1, 8, 4, 6), torch.randn(1, 8, 2, 3)]
    logits, codes = head(pyramid)
    assert logits.shape == (1, 2 * (24 + 6), 3)
    assert codes.shape == (1, 2 * (24 + 6), 4)
    row, column, anchor = 1, 2, 1
    second = head.classes(pyramid)[1]  # (1, 2 * 3, 2, 3)
    place = 2 * 24 + (row * 3 + column) * 2 + anchor
    torch.testing.assert_close(logits[0, place], second[0, anchor * 3 : anchor * 3 + 3, row, column])


def test_level_by_level_the_outputs_are_the_same() -> None:
    head = DetectionHead((8, 8), num_classes=3, anchors_per_cell=2, repeats=1).eval()
    pyramid = [torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)]
    for whole, levels in zip(head(pyramid), head.by_level(pyramid), strict=True):
        assert [level.shape[1] for level in levels] == [2 * 24, 2 * 6]
        assert torch.equal(torch.cat(levels, 1), whole)


def test_an_untrained_head_scores_everything_one_percent_and_moves_no_box() -> None:
    torch.manual_seed(0)
    head = DetectionHead((16,) * 5, num_classes=4).eval()
    assert head.classes.predict.pointwise.bias.sigmoid().tolist() == pytest.approx([0.01] * 36)
    assert head.boxes.predict.pointwise.bias.eq(0).all()


def test_convolutions_start_with_variance_one_over_fan_in_and_norms_as_identity() -> None:
    torch.manual_seed(0)
    head = DetectionHead((64,) * 2, num_classes=20, repeats=2)
    assert head.classes.convs[0].depthwise.weight.std().item() == pytest.approx(1 / 3, rel=0.1)
    assert head.classes.predict.pointwise.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    norms = [module for module in head.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2 * 2 * 2
    assert all(norm.weight.eq(1).all() and norm.bias.eq(0).all() and norm.eps == 1e-3 for norm in norms)


def test_levels_share_convolutions_but_not_statistics() -> None:
    head = DetectionHead((8, 8), num_classes=1, repeats=1).train()
    head([torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4) * 9])
    first, second = head.classes.norms[0]
    assert not torch.allclose(first.running_var, second.running_var, rtol=0.5)


@pytest.mark.parametrize(
    ("channels", "classes", "message"),
    [((8, 16), 2, "equal channels"), ((8, 8), 0, "at least one class")],
    ids=["unequal levels", "no class"],
)
def test_values_that_do_not_fit_are_named(channels: tuple[int, ...], classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionHead(channels, classes)
