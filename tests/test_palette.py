"""VOC's colour map: known colours, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from effdense.palette import voc_indices, voc_palette


@pytest.mark.parametrize(
    ("index", "color"),
    [
        pytest.param(0, (0, 0, 0), id="background"),
        pytest.param(1, (128, 0, 0), id="aeroplane"),
        pytest.param(2, (0, 128, 0), id="bicycle"),
        pytest.param(4, (0, 0, 128), id="boat"),
        pytest.param(7, (128, 128, 128), id="car"),
        pytest.param(15, (192, 128, 128), id="person"),
        pytest.param(20, (0, 64, 128), id="tvmonitor"),
        pytest.param(64, (32, 0, 0), id="third-bit-of-red"),
        pytest.param(255, (224, 224, 192), id="void"),
    ],
)
def test_known_indices_have_the_colours_of_the_development_kit(index: int, color: tuple[int, int, int]) -> None:
    assert tuple(voc_palette()[index].tolist()) == color


def test_no_two_indices_share_a_colour_and_every_colour_leads_back() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == 256
    indices, known = voc_indices(palette[None].copy())
    assert indices.dtype == np.uint8
    assert indices[0].tolist() == list(range(256))
    assert known.all()


def test_every_other_colour_is_said_to_be_none() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 3)] * 3), axis=-1).reshape(1, -1, 3).astype(np.uint8)
    _, known = voc_indices(grid)
    colors = {tuple(color) for color in voc_palette().tolist()}
    assert known[0].tolist() == [tuple(color) in colors for color in grid[0].tolist()]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (7, 1), (3, 5)], ids=str)
def test_any_size_of_image_comes_back_in_its_size(size_hw: tuple[int, int]) -> None:
    truth = np.random.default_rng(0).integers(0, 256, size_hw, dtype=np.uint8)
    indices, known = voc_indices(voc_palette()[truth])
    assert np.array_equal(indices, truth)
    assert known.shape == size_hw


def test_the_shared_palette_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        voc_palette()[0] = 1
