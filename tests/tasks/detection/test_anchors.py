from __future__ import annotations

import pytest
import torch

from effdense.tasks.detection.anchors import Anchors, decode, encode


def test_the_first_cell_of_a_level_by_hand() -> None:
    anchors = Anchors(3, 3, num_scales=1, anchor_scale=4.0)((16, 24))
    assert anchors.shape == (2 * 3 * 3, 4)
    torch.testing.assert_close(
        anchors[:4],
        torch.tensor(
            [
                [4 - 16.0, 4 - 16, 4 + 16, 4 + 16],
                [4 - 22.4, 4 - 11.2, 4 + 22.4, 4 + 11.2],  # 1.4 wide, 0.7 high
                [4 - 11.2, 4 - 22.4, 4 + 11.2, 4 + 22.4],
                [12 - 16.0, 4 - 16, 12 + 16, 4 + 16],  # the next column, same row
            ]
        ),
    )


@pytest.mark.parametrize("size_hw", [(128, 128), (97, 131), (320, 64), (1, 1)], ids=str)
def test_there_are_as_many_as_cells_times_shapes(size_hw: tuple[int, int]) -> None:
    maker = Anchors()
    anchors = maker(size_hw)
    assert len(anchors) == sum(rows * columns for rows, columns in maker.feature_sizes(size_hw)) * maker.per_cell
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert (centres > 0).all()
    assert (centres < torch.tensor([size_hw[1], size_hw[0]])).all()


def test_a_size_is_made_once_and_old_ones_are_forgotten() -> None:
    maker = Anchors()
    assert maker((64, 64)) is maker((64, 64))
    for size in range(8, 60):
        maker((size, size))
    assert len(maker._cache) <= 16


def test_decoding_undoes_encoding() -> None:
    anchors = Anchors()((64, 64))
    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(len(anchors), 2, generator=generator) * 50, torch.rand(len(anchors), 2) * 30 + 1
    boxes = torch.cat((corner, corner + size), 1)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, rtol=1e-4, atol=1e-3)


def test_codes_are_y_before_x_and_zero_on_the_anchor_itself() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 20]])
    assert encode(anchor, anchor).abs().max() < 1e-6
    ty, tx, th, tw = encode(torch.tensor([[5.0, 0, 25, 20]]), anchor)[0].tolist()
    assert (ty, tx) == pytest.approx((0.0, 1.0), abs=1e-5)
    assert (th, tw) == pytest.approx((0.0, 0.6931472), abs=1e-5)


def test_a_box_without_size_gives_finite_codes() -> None:
    assert encode(torch.tensor([[3.0, 3, 3, 3]]), torch.tensor([[0.0, 0, 10, 20]])).isfinite().all()
