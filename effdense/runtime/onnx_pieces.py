"""What of an exported file is written in ONNX's own operations: fitting images before the network, and what follows it.

The network itself comes from ``torch.export``. Around it stand pieces in ONNX's textual syntax, since the sizes of
images, the branch that a size takes and the number of boxes that survive are known only when the file runs, and ONNX
has operators for all three. Each piece is a small model; `effdense.runtime.export` joins them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from effdense.runtime.session import IMAGES, ORIGINAL
from effdense.transforms.geometry import AREA_BELOW

OPSET = 18
"""Of the whole file: that of ``torch.onnx``'s own operators."""

IR_VERSION = 10

FLOAT = onnx.TensorProto.FLOAT
DOUBLE = onnx.TensorProto.DOUBLE
INT32 = onnx.TensorProto.INT32
INT64 = onnx.TensorProto.INT64
UINT8 = onnx.TensorProto.UINT8

_WHOLE = np.zeros(2, np.int64)
"""An input that has a value already is one that may be left out."""


def fitting(side: int, fill: Sequence[int], *, may_be_done: bool = False) -> onnx.ModelProto:
    """Return the piece that fits images into a square, as `effdense.transforms.eval_transform` does.

    Sizes are computed in float64 and cut, as there. INTER_AREA and INTER_LINEAR are two matrix products alike, with the
    share that each pixel before has of each pixel after, rounded to whole grey levels: as OpenCV does, halves to the
    even one, but upwards where an image is halved.

    Images that have their size already are to take no time, but ONNX's If is avoided: OpenVINO (2026.4) computes
    something else at a network's first run where one feeds it. So the batch is cut in two, the images to resize and
    those to keep, and one of the two is empty, as are the shares where there is nothing to resize. Levels stay uint8
    as long as they are whole, which is a quarter of the memory to move.

    Args:
        side: S, of the square, in pixels.
        fill: colour of the padding, RGB in 0..255.
        may_be_done: the optional input ``original_hw`` says that images are fitted already, and are to be padded alone.

    Returns:
        A model from ``images`` to ``pixels``, float32 (batch, 3, S, S) in 0..255, ``size_hw``, int64 (2,), of the
        images, and ``fitted_hw``, int64 (2,), of their content in the square.
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    fitting (uint8[batch, height, width, 3] {IMAGES}{f", int64[2] {ORIGINAL}" if may_be_done else ""})
        => (float[batch, 3, {side}, {side}] pixels, int64[2] size_hw, int64[2] fitted_hw)
    {{
        shape = Shape ({IMAGES})
        size_hw = Slice (shape, one, three)
        size = Cast <to = {DOUBLE}> (size_hw)
        ratios = Div (side, size)
        ratio = ReduceMin <keepdims = 0> (ratios)
        exact = Mul (size, ratio)
        cut = Floor (exact)
        whole = Cast <to = {INT64}> (cut)
        {"at_least = Max (whole, one)" if may_be_done else "fitted_hw = Max (whole, one)"}
        {f"is_done = Greater ({ORIGINAL}, zero)" if may_be_done else ""}
        {"fitted_hw = Where (is_done, size_hw, at_least)" if may_be_done else ""}

        change = Sub (size_hw, fitted_hw)
        change_by = ReduceSumSquare <keepdims = 0> (change)
        fits = Equal (change_by, first)
        resizes = Where (fits, first, step)
        batch_size = Slice (shape, zero, one)
        to_resize = Where (fits, zero, batch_size)
        to_keep = Sub (batch_size, to_resize)
        planar = Transpose <perm = [0, 3, 1, 2]> ({IMAGES})

        fitted = Cast <to = {DOUBLE}> (fitted_hw)
        factors = Div (fitted, size)
        factor = ReduceMin <keepdims = 0> (factors)
        shrinks = Less (factor, area_below)
        {_shares("rows", axis=0)}
        {_shares("columns", axis=1)}
        columns_turned = Transpose <perm = [1, 0]> (columns_share)
        given = Slice (planar, zero, to_resize, zero)
        levels = Cast <to = {FLOAT}> (given)
        narrowed = MatMul (levels, columns_turned)
        product = MatMul (rows_share, narrowed)
        resized_shape = Concat <axis = 0> (to_resize, three, fitted_hw)
        resized = Reshape <allowzero = 1> (product, resized_shape)
        doubled = Mul (fitted_hw, two)
        beyond = Sub (size_hw, doubled)
        beyond_by = ReduceSumSquare <keepdims = 0> (beyond)
        halved = Equal (beyond_by, first)
        upwards = Where (halved, little, black)
        moved = Add (resized, upwards)
        nearest = Round (moved)
        limited = Clip (nearest, black, white)
        rounded = Cast <to = {UINT8}> (limited)

        fitting_already = Slice (planar, to_resize, batch_size, zero)
        kept_shape = Concat <axis = 0> (to_keep, three, fitted_hw)
        kept = Reshape <allowzero = 1> (fitting_already, kept_shape)

        content = Concat <axis = 0> (rounded, kept)
        room_hw = Sub (square_hw, fitted_hw)
        fitted_h, fitted_w = Split <num_outputs = 2> (fitted_hw)
        room_h, room_w = Split <num_outputs = 2> (room_hw)
        right_shape = Concat <axis = 0> (batch_size, three, fitted_h, room_w)
        right = Expand (fill, right_shape)
        upper = Concat <axis = 3> (content, right)
        lower_shape = Concat <axis = 0> (batch_size, three, room_h, side_w)
        lower = Expand (fill, lower_shape)
        levels_of_square = Concat <axis = 2> (upper, lower)
        square = Cast <to = {FLOAT}> (levels_of_square)
        square_shape = Concat <axis = 0> (batch_size, three, square_hw)
        pixels = Reshape (square, square_shape)
    }}
    """
    constants = {
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "two": np.full(1, 2, np.int64),
        "three": np.full(1, 3, np.int64),
        "side": np.float64(side),
        "square_hw": np.full(2, side, np.int64),
        "side_w": np.full(1, side, np.int64),
        "area_below": np.float64(AREA_BELOW),
        "first": np.int64(0),
        "step": np.int64(1),
        "nothing": np.float64(0),
        "half": np.float64(0.5),
        "unit": np.float64(1),
        "little": np.float32(1e-2),
        "black": np.float32(0),
        "white": np.float32(255),
        "fill": np.array(fill, np.uint8).reshape(1, 3, 1, 1),
    }
    return piece(text, {**constants, ORIGINAL: _WHOLE} if may_be_done else constants)


def _shares(name: str, axis: int) -> str:
    """Return text that computes ``{name}_share``, float32 (after, before): what each pixel before gives to each after.

    With s pixels becoming one, pixel i after covers i * s to (i + 1) * s of those before. By INTER_AREA its share of
    pixel j is the length that it has in common with j to j + 1, divided by s. By INTER_LINEAR it is one minus the
    distance of the two centres, where that is positive; centres beyond the first and the last pixel's lie on these.
    """
    return f"""
        {name}_axis = Constant <value_int = {axis}> ()
        {name}_before = Gather (size_hw, {name}_axis)
        {name}_after = Gather (fitted_hw, {name}_axis)
        {name}_wanted = Mul ({name}_after, resizes)
        {name}_range = Range (first, {name}_wanted, step)
        {name}_column = Unsqueeze ({name}_range, one)
        {name}_i = Cast <to = {DOUBLE}> ({name}_column)
        {name}_others = Range (first, {name}_before, step)
        {name}_j = Cast <to = {DOUBLE}> ({name}_others)
        {name}_float_before = Cast <to = {DOUBLE}> ({name}_before)
        {name}_float_after = Cast <to = {DOUBLE}> ({name}_after)
        {name}_s = Div ({name}_float_before, {name}_float_after)
        {name}_start = Mul ({name}_i, {name}_s)
        {name}_end = Add ({name}_start, {name}_s)
        {name}_next = Add ({name}_j, unit)
        {name}_low = Max ({name}_start, {name}_j)
        {name}_high = Min ({name}_end, {name}_next)
        {name}_length = Sub ({name}_high, {name}_low)
        {name}_area = Div ({name}_length, {name}_s)

        {name}_middle = Add ({name}_i, half)
        {name}_there = Mul ({name}_middle, {name}_s)
        {name}_centre = Sub ({name}_there, half)
        {name}_last = Sub ({name}_float_before, unit)
        {name}_not_before = Max ({name}_centre, nothing)
        {name}_not_beyond = Min ({name}_not_before, {name}_last)
        {name}_apart = Sub ({name}_not_beyond, {name}_j)
        {name}_distance = Abs ({name}_apart)
        {name}_linear = Sub (unit, {name}_distance)

        {name}_either = Where (shrinks, {name}_area, {name}_linear)
        {name}_positive = Max ({name}_either, nothing)
        {name}_share = Cast <to = {FLOAT}> ({name}_positive)
    """


def labelling(classes: int, side: int) -> onnx.ModelProto:
    """Return the piece that enlarges the logits of the content to the image's size, and labels each pixel.

    Args:
        classes: K.
        side: S, of the square, in pixels.

    Returns:
        A model from ``mask_logits``, float32 (batch, K, S, S), ``size_hw``, ``fitted_hw`` and the optional
        ``original_hw`` to ``label_map``, uint8 (batch, height, width), of the latter size where it is given, else of
        the former.
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    labelling (
        float[batch, {classes}, {side}, {side}] mask_logits, int64[2] size_hw, int64[2] fitted_hw, int64[2] {ORIGINAL}
    ) => (uint8[batch, height, width] label_map)
    {{
        is_given = Greater ({ORIGINAL}, zero)
        wanted_hw = Where (is_given, {ORIGINAL}, size_hw)
        content = Slice (mask_logits, corner, fitted_hw, axes)
        shape = Shape (mask_logits)
        batch_size = Slice (shape, zero, one)
        change = Sub (wanted_hw, fitted_hw)
        change_by = ReduceSumSquare <keepdims = 1> (change)
        fits = Equal (change_by, zero)
        to_enlarge = Where (fits, zero, batch_size)
        to_keep = Sub (batch_size, to_enlarge)

        given = Slice (content, zero, to_enlarge, zero)
        sizes = Concat <axis = 0> (to_enlarge, classes, wanted_hw)
        enlarged = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (given, , , sizes)
        best_enlarged = ArgMax <axis = 1, keepdims = 0> (enlarged)

        fitting_already = Slice (content, to_enlarge, batch_size, zero)
        best_kept = ArgMax <axis = 1, keepdims = 0> (fitting_already)
        kept_shape = Concat <axis = 0> (to_keep, wanted_hw)
        reshaped = Reshape <allowzero = 1> (best_kept, kept_shape)

        best = Concat <axis = 0> (best_enlarged, reshaped)
        label_map = Cast <to = {UINT8}> (best)
    }}
    """
    constants = {
        ORIGINAL: _WHOLE,
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "classes": np.full(1, classes, np.int64),
        "corner": np.zeros(2, np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    return piece(text, constants)


def piece(text: str, constants: Mapping[str, npt.NDArray[Any] | np.generic[Any]]) -> onnx.ModelProto:
    """Read a piece, and give it its constants."""
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model
