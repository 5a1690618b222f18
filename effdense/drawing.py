"""Boxes, labels and masks drawn on a picture, legible at any size of it."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from effdense.palette import voc_palette
from effdense.types import IGNORE_INDEX, Detections, UInt8

Color = tuple[int, int, int]

CELL = 256
"""Side of a cell of a contact sheet, in pixels."""

_GOLDEN_TURN = 0.6180339887498949
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPITAL_HEIGHT = 22  # pixels of a capital letter of that font at scale 1
_LONGEST_TEXT = 40


@cache
def class_color(label: int) -> Color:
    """Return the RGB colour of a class of boxes: always the same, far from that of its neighbours.

    Hues go round the circle by the golden section, so that however many classes there are, no two that follow each
    other look alike; brightness and saturation change every few classes to tell near hues apart.
    """
    hue = (0.02 + label * _GOLDEN_TURN) % 1.0
    saturation = (0.85, 0.6, 1.0)[label // 7 % 3]
    value = (1.0, 0.75, 0.9)[label // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: UInt8, detections: Detections, *, show_scores: bool = True, colors: Sequence[Color] | None = None
) -> UInt8:
    """Return a copy of an image with detections drawn, the best on top.

    Args:
        image: RGB, (H, W, 3).
        detections: in pixels of ``image``, best first.
        show_scores: write the score, in per cent, behind the class name.
        colors: of each class; by default those of `class_color`.
    """
    names = [
        detections.class_names[label] if label < len(detections.class_names) else str(label)
        for label in detections.labels.tolist()
    ]
    if show_scores:
        names = [f"{name} {round(100 * score)}%" for name, score in zip(names, detections.scores.tolist(), strict=True)]
    return draw_boxes(image, detections.boxes_xyxy, detections.labels, names, colors=colors)


def draw_boxes(
    image: UInt8,
    boxes_xyxy: npt.ArrayLike,
    labels: Sequence[int] | npt.NDArray[np.int64],
    texts: Sequence[str],
    *,
    colors: Sequence[Color] | None = None,
) -> UInt8:
    """Return a copy of an image with boxes and a text at each; the first box is drawn last, on top.

    A text stands above its box, inside it where there is no room above, moves along to stay within the picture, and
    goes where it hides no earlier text if such a place is near. Boxes are drawn as far as they lie in the picture.

    Args:
        image: RGB, (H, W, 3).
        boxes_xyxy: (N, 4), pixels; any that is not finite is left out.
        labels: (N,), which colour.
        texts: (N,), "" for none.
        colors: of each label; by default those of `class_color`.
    """
    color_of = class_color if colors is None else colors.__getitem__
    canvas: UInt8 = np.array(image, np.uint8, order="C")
    height, width = canvas.shape[:2]
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    if not len(boxes) or not height or not width:
        return canvas
    thickness, scale = _line_thickness(height, width), _font_scale(height, width)
    placed: list[tuple[int, int, int, int]] = []
    visible = [row for row in range(len(boxes)) if np.isfinite(boxes[row]).all()]
    corners = {row: _pixel_corners(boxes[row], height, width) for row in visible}
    for row in reversed(visible):
        left, top, right, bottom = corners[row]
        cv2.rectangle(canvas, (left, top), (right, bottom), color_of(int(labels[row])), thickness)
    tags = [
        (row, _place_tag(corners[row], texts[row], (height, width), scale, placed)) for row in visible if texts[row]
    ]
    for row, tag in reversed(tags):
        _draw_tag(canvas, tag, texts[row], color_of(int(labels[row])), scale)
    return canvas


def draw_mask(
    image: UInt8, mask: UInt8, *, opacity: float = 0.5, background: int | None = 0, outlined: bool = False
) -> UInt8:
    """Return a copy of an image with class indices laid over it in the colours of `mask_color`.

    Args:
        image: RGB, (H, W, 3).
        mask: (H, W), class indices; 255 stays as it is.
        opacity: 0 shows the image, 1 the colours.
        background: a class that stays as it is, or None.
        outlined: draw the edge of each area in the full colour, which tells classes apart over any image.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"a mask of shape {mask.shape} does not cover an image of shape {image.shape}")
    colors = voc_palette()[mask]
    blended = cv2.addWeighted(colors, opacity, image, 1 - opacity, 0)
    if outlined:
        side = 2 * _line_thickness(*mask.shape) + 1
        around = np.ones((side, side), np.uint8)
        edge = cv2.dilate(mask, around) != cv2.erode(mask, around)  # another class is near
        blended[edge] = colors[edge]
    untouched = mask == IGNORE_INDEX
    if background is not None:
        untouched |= mask == background
    blended[untouched] = image[untouched]
    return np.asarray(blended, np.uint8)


def mask_color(label: int) -> Color:
    """Return the RGB colour of a class in masks: that of VOC's colour map, as in the palette of an index PNG."""
    red, green, blue = voc_palette()[label].tolist()
    return red, green, blue


def with_legend(image: UInt8, entries: Sequence[tuple[str, Color]]) -> UInt8:
    """Return an image with a legend below it: a square of each colour and its text, in as many rows as it takes.

    The image stays as it is, in the upper left corner; what is added is white. A text that is wider than the image
    widens the result, so that a legend is legible below the smallest image too.

    Args:
        image: RGB, (H, W, 3).
        entries: texts, cut after forty letters, and colours; none leaves the image without a legend.
    """
    if not entries:
        return image
    texts = [text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..." for text, _ in entries]
    scale = _font_scale(*image.shape[:2])
    sizes = [cv2.getTextSize(text, _FONT, scale, _stroke(scale)) for text in texts]
    square = max(height for (_, height), _ in sizes)
    pad = max(2, square // 2)
    widths = [square + pad + width + 2 * pad for (width, _), _ in sizes]
    line = square + max(baseline for _, baseline in sizes) + pad
    width = max(image.shape[1], pad + max(widths))
    places = _flow(widths, width - pad)
    height = image.shape[0] + pad + (places[-1][0] + 1) * line
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    for (row, left), text, (_, color) in zip(places, texts, entries, strict=True):
        x, y = pad + left, image.shape[0] + pad + row * line
        cv2.rectangle(canvas, (x, y), (x + square - 1, y + square - 1), color, cv2.FILLED)
        cv2.rectangle(canvas, (x, y), (x + square - 1, y + square - 1), (128, 128, 128), 1)
        at = (x + square + pad, y + square - 1)
        cv2.putText(canvas, text, at, _FONT, scale, (0, 0, 0), _stroke(scale), cv2.LINE_AA)
    return canvas


def _flow(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Return row and left edge of each of some widths, set one behind the other in rows no wider than ``room``."""
    places: list[tuple[int, int]] = []
    row = left = 0
    for width in widths:
        if left and left + width > room:
            row, left = row + 1, 0
        places.append((row, left))
        left += width
    return places


def fit_into_cell(image: UInt8, cell: int = CELL) -> UInt8:
    """Return an image (H, W, 3) scaled so that its longer side is ``cell``, as `contact_sheet` does with each.

    Whoever collects pictures for a sheet can hold them in this size: one that fits already is not changed again.
    """
    scale = cell / max(image.shape[:2])
    size_wh = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size_wh, interpolation=interpolation), np.uint8)


def contact_sheet(images: Sequence[UInt8], *, columns: int = 4, cell: int = CELL, gap: int = 4) -> UInt8:
    """Return images side by side in rows, each fitted into a square cell, on white.

    Args:
        images: RGB, (H, W, 3) each; at least one.
        columns: cells in a row, fewer where there are fewer images.
        cell: side of a cell, in pixels.
        gap: white pixels between cells and around them.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (cell + gap) + gap, columns * (cell + gap) + gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        fitted = fit_into_cell(image, cell)
        row, column = divmod(number, columns)
        top = gap + row * (cell + gap) + (cell - fitted.shape[0]) // 2
        left = gap + column * (cell + gap) + (cell - fitted.shape[1]) // 2
        sheet[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return sheet


def _line_thickness(height: int, width: int) -> int:
    return max(1, round(0.003 * min(max(height, width), 2 * min(height, width))))


def _font_scale(height: int, width: int) -> float:
    """Return the scale at which capitals are 1/50 of the picture high, and never under 7 pixels."""
    side = min(max(height, width), 2 * min(height, width))
    return max(7.0, side / 50) / _CAPITAL_HEIGHT


def _pixel_corners(box: npt.NDArray[np.float64], height: int, width: int) -> tuple[int, int, int, int]:
    """Return the first and last column and row of a box with an exclusive right edge, within the picture."""
    left, top = np.floor(box[:2] + 0.5)
    right, bottom = np.floor(box[2:] + 0.5) - 1
    columns = np.clip([left, max(left, right)], 0, width - 1).astype(int)
    rows = np.clip([top, max(top, bottom)], 0, height - 1).astype(int)
    return int(columns[0]), int(rows[0]), int(columns[1]), int(rows[1])


def _stroke(scale: float) -> int:
    return max(1, round(1.6 * scale))


def _place_tag(
    box: tuple[int, int, int, int],
    text: str,
    size_hw: tuple[int, int],
    scale: float,
    placed: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a text's ground, and note it in ``placed``."""
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, _stroke(scale))
    pad = max(1, round(4 * scale))
    tag_width, tag_height = text_width + 2 * pad, text_height + baseline + pad
    height, width = size_hw
    left = max(0, min(box[0], width - tag_width))
    last_top = max(0, height - tag_height)
    above, inside, below, foot = box[1] - tag_height, box[1], box[3] + 1, box[3] + 1 - tag_height
    tops = [above, inside, below, foot] if above >= 0 else [inside, foot, below]
    candidates = [(left, max(0, min(top, last_top))) for top in tops]
    best = min(candidates, key=lambda at: _hidden((*at, at[0] + tag_width, at[1] + tag_height), placed))
    tag = (best[0], best[1], best[0] + tag_width, best[1] + tag_height)
    placed.append(tag)
    return tag


def _hidden(tag: tuple[int, int, int, int], placed: list[tuple[int, int, int, int]]) -> int:
    """Return how many pixels of earlier texts a text would share."""
    return sum(
        max(0, min(tag[2], other[2]) - max(tag[0], other[0])) * max(0, min(tag[3], other[3]) - max(tag[1], other[1]))
        for other in placed
    )


def _draw_tag(canvas: UInt8, tag: tuple[int, int, int, int], text: str, color: Color, scale: float) -> None:
    _, baseline = cv2.getTextSize(text, _FONT, scale, _stroke(scale))
    pad = max(1, round(4 * scale))
    cv2.rectangle(canvas, (tag[0], tag[1]), (tag[2] - 1, tag[3] - 1), color, cv2.FILLED)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    at = (tag[0] + pad, tag[3] - baseline - pad // 2)
    cv2.putText(canvas, text, at, _FONT, scale, ink, _stroke(scale), cv2.LINE_AA)
