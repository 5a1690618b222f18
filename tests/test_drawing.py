from __future__ import annotations

import itertools

import numpy as np
import pytest

from effdense.drawing import (
    class_color,
    contact_sheet,
    draw_boxes,
    draw_detections,
    draw_mask,
    fit_into_cell,
    mask_color,
    with_legend,
)
from effdense.types import Detections


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    mask: np.ndarray = (before != after).any(2)
    return mask


def detections(*boxes: tuple[float, ...]) -> Detections:
    count = len(boxes)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.5, count).astype(np.float32)
    return Detections(array, scores, np.arange(count, dtype=np.int64) % 3, ("cat", "dog"))


def test_the_colours_of_eighty_classes_are_all_different_and_stay() -> None:
    colors = [class_color(label) for label in range(80)]
    assert len(set(colors)) == 80
    assert colors[:2] == [class_color(0), class_color(1)]
    for first, second in itertools.pairwise(colors):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 120, "neighbours look alike"


@pytest.mark.parametrize("size_hw", [(1, 1), (8, 8), (40, 60), (480, 640), (30, 1200), (1500, 2000)], ids=str)
def test_every_size_is_drawn_on_and_none_fails(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    image = grey(height, width)
    drawn = draw_detections(image, detections((0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height)))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert changed(image, drawn).any()
    assert (image == 128).all(), "the image handed in was drawn on"


@pytest.mark.parametrize("height", [240, 600, 2400])
def test_texts_grow_with_the_picture(height: int) -> None:
    image = grey(height, height)
    box = [[0, height // 2, height, height]]
    plain, named = (draw_boxes(image, box, [0], [text]) for text in ("", "cat"))
    rows = np.flatnonzero(changed(plain, named).any(1))
    assert 7 <= len(rows) <= max(20, height // 15)


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((-50, -50, 10, 10), id="over the top left"),
        pytest.param((90, 90, 500, 500), id="over the bottom right"),
        pytest.param((200, 200, 300, 300), id="outside"),
        pytest.param((50, 50, 50, 50), id="no area"),
        pytest.param((60, 60, 40, 40), id="turned around"),
        pytest.param((0, 0, 1e9, 1e9), id="huge"),
    ],
)
def test_odd_boxes_are_drawn_as_far_as_they_can_be(box: tuple[float, ...]) -> None:
    drawn = draw_detections(grey(100, 100), detections(box))
    assert drawn.shape == (100, 100, 3)


def test_boxes_that_are_not_finite_are_left_out() -> None:
    image = grey(50, 50)
    nothing = draw_detections(image, detections((float("nan"), 0, 10, 10), (0, 0, float("inf"), 5)))
    np.testing.assert_array_equal(nothing, image)
    assert draw_detections(image, detections()) is not image


def test_the_edges_of_a_box_are_its_outermost_pixels() -> None:
    image = grey(100, 100)
    drawn = draw_boxes(image, [[20, 30, 60, 80]], [1], [""])
    rows, columns = np.nonzero(changed(image, drawn))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 59, 79)
    assert tuple(drawn[30, 20]) == class_color(1)


def test_boxes_and_the_ground_of_their_texts_have_the_colours_that_are_given() -> None:
    image, colors = grey(200, 200), [(255, 0, 255), (0, 255, 255)]
    drawn = draw_detections(image, detections((20, 60, 90, 150), (110, 60, 190, 150)), colors=colors)
    shown = {tuple(color) for color in drawn.reshape(-1, 3).tolist()}
    assert set(colors) <= shown
    assert not {class_color(0), class_color(1)} & shown


def test_texts_stay_in_the_picture_and_apart_where_there_is_room() -> None:
    image = grey(400, 400)
    box = [[350, 2, 399, 398]]
    plain = draw_boxes(image, box * 2, [0, 0], ["", ""])
    one, two = (
        draw_boxes(image, box * 2, [0, 0], texts) for texts in (["a long class name", ""], ["a long class name"] * 2)
    )
    first, both = changed(plain, one).sum(), changed(plain, two).sum()
    assert first > 0
    assert both > 1.7 * first, "the second text hides the first"


def test_labels_without_a_name_are_numbered() -> None:
    unnamed = detections((5, 5, 90, 90), (5, 5, 90, 90), (5, 5, 90, 90))
    assert draw_detections(grey(100, 100), unnamed).shape == (100, 100, 3)


def test_pictures_in_any_memory_layout_are_drawn_on() -> None:
    flipped = np.ascontiguousarray(grey(64, 64))[::-1, ::-1]
    flipped.setflags(write=False)
    assert changed(flipped, draw_detections(flipped, detections((5, 5, 60, 60)))).any()


def test_a_mask_colours_its_classes_and_leaves_background_and_ignored_alone() -> None:
    image = grey(4, 4)
    mask = np.zeros((4, 4), np.uint8)
    mask[0], mask[1] = 3, 255
    drawn = draw_mask(image, mask)
    np.testing.assert_array_equal(drawn[1:], image[1:])
    np.testing.assert_array_equal(drawn[0, 0], np.rint(0.5 * 128 + 0.5 * np.array(mask_color(3))))
    assert (draw_mask(image, mask, background=None)[2] != 128).any()
    with pytest.raises(ValueError, match="does not cover"):
        draw_mask(image, mask[:2])


def test_the_outline_of_an_area_has_its_full_colour_and_lies_within_it() -> None:
    image = grey(40, 40)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30], mask[10:30, 20:30] = 15, 3
    drawn = draw_mask(image, mask, opacity=0.0, outlined=True)
    for (row, column), color in {
        (10, 15): mask_color(15),
        (20, 19): mask_color(15),
        (20, 20): mask_color(3),
        (29, 25): mask_color(3),
        (15, 15): (128, 128, 128),
        (9, 15): (128, 128, 128),
    }.items():
        assert tuple(drawn[row, column]) == color
    whole = draw_mask(image, np.full((40, 40), 15, np.uint8), opacity=0.0, outlined=True)
    np.testing.assert_array_equal(whole, image)  # the edge of the image is no edge of an area


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_the_opacity_lies_between_image_and_colour(opacity: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 5, 3), np.uint8)
    drawn = draw_mask(image, np.full((9, 5), 15, np.uint8), opacity=opacity)
    expected = (1 - opacity) * image + opacity * np.array([192, 128, 128])
    np.testing.assert_allclose(drawn, expected, atol=0.51)


@pytest.mark.parametrize("size_hw", [(1, 1), (20, 30), (375, 500), (60, 900), (900, 60), (2400, 3200)], ids=str)
def test_a_legend_stands_below_an_image_of_any_size_in_legible_letters(size_hw: tuple[int, int]) -> None:
    image = grey(*size_hw)
    entries = [
        (f"class number {i}", mask_color(i)) for i in range(1, 7)
    ]  # the seventh is grey, as are the edges of letters
    drawn = with_legend(image, entries)
    np.testing.assert_array_equal(drawn[: size_hw[0], : size_hw[1]], image)
    below = drawn[size_hw[0] :]
    for _, color in entries:
        square = (below == color).all(2)
        rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
        assert len(rows) >= max(5, min(size_hw) // 80), "the square of a class is too small"
        assert len(columns) == len(rows)
    assert (drawn[:, -1][size_hw[0] :] == 255).all(), "a text touches the edge"


def test_no_entry_is_no_legend_and_a_text_without_end_is_cut() -> None:
    image = grey(40, 60)
    assert with_legend(image, []) is image
    assert with_legend(image, [("a" * 10_000, (1, 2, 3))]).shape[1] < 600


@pytest.mark.parametrize(
    ("count", "columns", "shape"),
    [
        pytest.param(1, 4, (24, 24), id="single"),
        pytest.param(3, 4, (24, 64), id="one-row"),
        pytest.param(5, 2, (64, 44), id="rows"),
    ],
)
def test_a_contact_sheet_has_a_cell_for_every_image_and_no_empty_column(
    count: int, columns: int, shape: tuple[int, int]
) -> None:
    images = [np.full((8, 16, 3), 10 * number, np.uint8) for number in range(count)]
    sheet = contact_sheet(images, columns=columns, cell=16, gap=4)
    assert sheet.shape == (*shape, 3)
    for number in range(count):
        row, column = divmod(number, min(columns, count))
        assert (sheet[4 + 20 * row + 8, 4 + 20 * column + 8] == 10 * number).all()


@pytest.mark.parametrize("size_hw", [(480, 640), (256, 100), (1, 900), (5, 3)], ids=str)
def test_pictures_held_in_the_size_of_a_cell_give_the_same_sheet(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    small = fit_into_cell(image)
    assert max(small.shape) == 256
    np.testing.assert_array_equal(contact_sheet([small]), contact_sheet([image]))
