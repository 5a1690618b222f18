from __future__ import annotations

import pytest
import torch

from effdense.ops import boxes as ops

DEGENERATE = torch.tensor([[5.0, 5, 5, 9], [9.0, 9, 5, 5], [0.0, 0, 0, 0]])


def test_conversions_undo_each_other() -> None:
    boxes = torch.tensor([[1.0, 2, 4, 8], [0, 0, 0, 0]])
    assert ops.xywh_from_xyxy(boxes).tolist() == [[1, 2, 3, 6], [0, 0, 0, 0]]
    assert torch.equal(ops.xyxy_from_xywh(ops.xywh_from_xyxy(boxes)), boxes)


def test_a_box_without_width_or_height_has_no_area_and_overlaps_nothing() -> None:
    assert ops.areas(DEGENERATE).tolist() == [0, 0, 0]
    assert ops.pairwise_iou(DEGENERATE, torch.cat((DEGENERATE, torch.tensor([[0.0, 0, 10, 10]])))).eq(0).all()


@pytest.mark.parametrize(
    ("one", "other", "iou"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (2, 2, 7, 7), 0.25),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (11, 11, 12, 12), 0.0),
    ],
    ids=["same", "shifted", "inside", "touching", "apart"],
)
def test_iou(one: tuple[float, ...], other: tuple[float, ...], iou: float) -> None:
    table = ops.pairwise_iou(torch.tensor([one], dtype=torch.float32), torch.tensor([other], dtype=torch.float32))
    assert table.item() == pytest.approx(iou)


def test_iou_of_no_boxes_is_an_empty_table() -> None:
    assert ops.pairwise_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_clip_takes_the_size_of_each_image() -> None:
    boxes = torch.tensor([[-5.0, -5, 50, 50]]).expand(2, 1, 4)
    clipped = ops.clip(boxes, torch.tensor([[20, 30], [60, 10]]))
    assert clipped.tolist() == [[[0, 0, 30, 20]], [[0, 0, 10, 50]]]


def test_scale_has_a_factor_for_each_axis_and_is_undone_by_its_inverse() -> None:
    boxes = torch.tensor([[[1.0, 2, 3, 4]]])
    small, large = torch.tensor([[10, 20]]), torch.tensor([[20, 80]])
    scaled = ops.scale(boxes, small, large)
    assert scaled.tolist() == [[[4, 4, 12, 8]]]
    assert torch.equal(ops.scale(scaled, large, small), boxes)
