"""Label maps of images larger than the network's, by OpenVINO: an exported file's own rule, computed where it matters.

A file enlarges the logits of every class to the image's size, and takes each pixel's greatest. But enlarging is
averaging: where the four logits' places around a pixel have the same class, the pixel has it too. Only at the borders
between classes is there something to compute, a few percent of an image that has areas. It takes a quarter of the time,
and less; an image that is all border takes as long as by the file's own operations, or half as long again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from effdense.runtime.onnx_pieces import FLOAT, INT32, INT64, IR_VERSION, OPSET, UINT8, piece
from effdense.types import Float32, Int32, Int64, UInt8

LABEL_MAP = "label_map"
"""What a file calls its label maps."""

_BAND = 1 << 22
"""Logits, pixels times classes, that are enlarged in one go at most; where borders are everywhere, in under 0.5 GiB."""


def agreement(side: int, classes: int) -> onnx.ModelProto:
    """Return the model that says where neighbours agree.

    Args:
        side: S, of the square, in pixels.
        classes: K.

    Returns:
        A model from ``mask_logits``, float32 (1, K, S, S), to ``agreed``, int32 (S, S): of each place, with those to
        its right, below, and below to the right, the class that all four have, or -1; and to ``own``, uint8 (1, S, S),
        the class of each place itself.
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    agreement (float[1, {classes}, {side}, {side}] mask_logits)
        => (int32[{side}, {side}] agreed, uint8[1, {side}, {side}] own)
    {{
        greatest = ArgMax <axis = 1, keepdims = 0> (mask_logits)
        own = Cast <to = {UINT8}> (greatest)
        of_image = Squeeze (greatest, zero)
        here = Cast <to = {INT32}> (of_image)
        right = Gather <axis = 1> (here, next)
        below = Gather <axis = 0> (here, next)
        across = Gather <axis = 0> (right, next)
        least = Min (here, right, below, across)
        most = Max (here, right, below, across)
        alike = Equal (least, most)
        agreed = Where (alike, here, none)
    }}
    """
    constants = {
        "zero": np.zeros(1, np.int64),
        "next": np.minimum(np.arange(1, side + 1), side - 1),
        "none": np.int32(-1),
    }
    return piece(text, constants)


def enlarging(side: int, classes: int) -> onnx.ModelProto:
    """Return the model that labels some rows of an image: as the neighbours agree, else by their logits' average.

    Args:
        side: S, of the square, in pixels.
        classes: K.

    Returns:
        A model from ``mask_logits``, float32 (1, K, S, S), ``agreed`` (see `agreement`), ``size_hw``, int64 (2,), of
        the image, ``fitted_hw``, int64 (2,), of its content in the square, and ``rows``, int64 (2,), the first and the
        one after the last, to ``band``, uint8 (rows, width).
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    enlarging (
        float[1, {classes}, {side}, {side}] mask_logits, int32[{side}, {side}] agreed,
        int64[2] size_hw, int64[2] fitted_hw, int64[2] rows
    ) => (uint8[height, width] band)
    {{
        size = Cast <to = {FLOAT}> (size_hw)
        fitted = Cast <to = {FLOAT}> (fitted_hw)
        last_hw = Sub (fitted_hw, one)
        step_hw = Div (fitted, size)
        {_places("y", axis=0, first="Gather (rows, first)", stop="Gather (rows, second)")}
        {_places("x", axis=1, first="Identity (first)", stop="Gather (size_hw, second)")}

        agreed_rows = Gather <axis = 0> (agreed, y_low)
        known = Gather <axis = 1> (agreed_rows, x_low)
        is_open = Equal (known, none)
        open = NonZero (is_open)
        open_y, open_x = Split <axis = 0, num_outputs = 2> (open)
        row = Squeeze (open_y, zero)
        column = Squeeze (open_x, zero)
        left = Gather (x_low, column)
        right = Gather (x_high, column)
        to_right = Gather (x_share, column)
        to_left = Sub (unit, to_right)
        upper_row = Gather (y_low, row)
        upper = Mul (upper_row, side)
        lower_row = Gather (y_high, row)
        lower = Mul (lower_row, side)
        downwards = Gather (y_share, row)
        upwards = Sub (unit, downwards)

        flat = Reshape (mask_logits, flat_shape)
        {_corner("upper", "left")}
        {_corner("upper", "right")}
        {_corner("lower", "left")}
        {_corner("lower", "right")}
        in_upper = Add (upper_left_part, upper_right_part)
        in_lower = Add (lower_left_part, lower_right_part)
        upper_part = Mul (in_upper, upwards)
        lower_part = Mul (in_lower, downwards)
        logits = Add (upper_part, lower_part)
        greatest = ArgMax <axis = 0, keepdims = 0> (logits)
        found = Cast <to = {INT32}> (greatest)
        where = Transpose <perm = [1, 0]> (open)
        labels = ScatterND (known, where, found)
        band = Cast <to = {UINT8}> (labels)
    }}
    """
    constants = {
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "first": np.int64(0),
        "second": np.int64(1),
        "side": np.int64(side),
        "flat_shape": np.array([classes, side * side]),
        "none": np.int32(-1),
        "nothing": np.float32(0),
        "half": np.float32(0.5),
        "unit": np.float32(1),
    }
    return piece(text, constants)


def _places(name: str, axis: int, first: str, stop: str) -> str:
    """Return text that finds, along an axis, the places in the square on both sides of each pixel, and its share.

    It computes ``{name}_low`` and ``{name}_high``, int64, and ``{name}_share``, float32: of the higher one's value.
    Pixels are mapped by their centres, as ``half_pixel`` does.
    """
    return f"""
        {name}_axis = Constant <value_int = {axis}> ()
        {name}_step = Gather (step_hw, {name}_axis)
        {name}_last = Gather (last_hw, {name}_axis)
        {name}_first = {first}
        {name}_stop = {stop}
        {name}_range = Range ({name}_first, {name}_stop, second)
        {name}_pixel = Cast <to = {FLOAT}> ({name}_range)
        {name}_middle = Add ({name}_pixel, half)
        {name}_there = Mul ({name}_middle, {name}_step)
        {name}_centre = Sub ({name}_there, half)
        {name}_inside = Max ({name}_centre, nothing)
        {name}_floor = Floor ({name}_inside)
        {name}_share = Sub ({name}_inside, {name}_floor)
        {name}_whole = Cast <to = {INT64}> ({name}_floor)
        {name}_low = Min ({name}_whole, {name}_last)
        {name}_next = Add ({name}_low, second)
        {name}_high = Min ({name}_next, {name}_last)
    """


def _corner(row: str, column: str) -> str:
    """Return text that computes what a row's logits at one side give to open pixels, (K, N)."""
    return f"""
        {row}_{column}_place = Add ({row}, {column})
        {row}_{column}_logits = Gather <axis = 1> (flat, {row}_{column}_place)
        {row}_{column}_part = Mul ({row}_{column}_logits, to_{column})
    """


class Labelling:
    """Both models, compiled; does for one image what the piece ``labelling`` of an exported file does."""

    def __init__(self, core: Any, settings: dict[str, Any], classes: int, side: int) -> None:
        """Compile them.

        Args:
            core: OpenVINO's.
            settings: for compiling.
            classes: K.
            side: S, of the square, in pixels.
        """

        def request(model: onnx.ModelProto) -> Any:
            read = core.read_model(model.SerializeToString())
            return core.compile_model(read, "CPU", settings).create_infer_request()

        self._agreement, self._enlarging = request(agreement(side, classes)), request(enlarging(side, classes))
        self._classes = classes

    def label_map(self, mask_logits: Float32, size_hw: Int64, fitted_hw: Int64) -> UInt8:
        """Return the class of every pixel, (1, height, width).

        Args:
            mask_logits: (1, K, S, S).
            size_hw: of the image.
            fitted_hw: of its content in the square.
        """
        neighbours = self._agreement.infer([mask_logits], share_inputs=True, share_outputs=True)
        height, width = (int(size) for size in size_hw)
        if np.array_equal(size_hw, fitted_hw):  # there is nothing to enlarge
            own: UInt8 = neighbours[1]
            return np.copy(own[:, :height, :width])
        agreed: Int32 = neighbours[0]
        labels = np.empty((1, height, width), np.uint8)
        step = max(1, _BAND // (width * self._classes))
        for first in range(0, height, step):
            rows = np.array([first, min(first + step, height)])
            given = [mask_logits, agreed, size_hw, fitted_hw, rows]
            found = self._enlarging.infer(given, share_inputs=True, share_outputs=True)
            labels[0, rows[0] : rows[1]] = found[0]
        return labels
