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

from effdense.runtime.session import CONTENTS, IMAGES
from effdense.transforms.geometry import AREA_BELOW

OPSET = 18
"""Of the whole file: that of ``torch.onnx``'s own operators."""

IR_VERSION = 10


def fitting(side: int, fill: Sequence[int]) -> onnx.ModelProto:
    """Return the piece that fits images into a square, as `effdense.transforms.eval_transform` does.

    Sizes are computed in float64 and cut, as there. INTER_AREA and INTER_LINEAR are two matrix products alike, with the
    share that each pixel before has of each pixel after, rounded to whole grey levels: as OpenCV does, halves to the
    even one, but upwards where an image is halved.

    Images that have their size already are to take no time, but ONNX's If is avoided: OpenVINO (2026.4) computes
    something else at a network's first run where one feeds it. So the batch is cut in two, the images to resize and
    those to keep, and one of the two is empty, as are the shares where there is nothing to resize.

    Args:
        side: S, of the square, in pixels.
        fill: colour of the padding, RGB in 0..255.

    Returns:
        A model from ``images`` to ``pixels``, float32 (batch, 3, S, S) in 0..255, ``size_hw``, int64 (2,), of the
        images, and ``fitted_hw``, int64 (2,), of their content in the square.
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    fitting (uint8[batch, height, width, 3] {IMAGES})
        => (float[batch, 3, {side}, {side}] pixels, int64[2] size_hw, int64[2] fitted_hw)
    {{
        shape = Shape ({IMAGES})
        size_hw = Slice (shape, one, three)
        size = Cast <to = {_DOUBLE}> (size_hw)
        ratios = Div (side, size)
        ratio = ReduceMin <keepdims = 0> (ratios)
        exact = Mul (size, ratio)
        cut = Floor (exact)
        whole = Cast <to = {_INT64}> (cut)
        fitted_hw = Max (whole, one)

        change = Sub (size_hw, fitted_hw)
        change_by = ReduceSumSquare <keepdims = 0> (change)
        fits = Equal (change_by, first)
        resizes = Where (fits, first, step)
        batch_size = Slice (shape, zero, one)
        to_resize = Where (fits, zero, batch_size)
        to_keep = Sub (batch_size, to_resize)
        planar = Transpose <perm = [0, 3, 1, 2]> ({IMAGES})

        fitted = Cast <to = {_DOUBLE}> (fitted_hw)
        factors = Div (fitted, size)
        factor = ReduceMin <keepdims = 0> (factors)
        shrinks = Less (factor, area_below)
        {_shares("rows", axis=0)}
        {_shares("columns", axis=1)}
        columns_turned = Transpose <perm = [1, 0]> (columns_share)
        given = Slice (planar, zero, to_resize, zero)
        levels = Cast <to = {_FLOAT}> (given)
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
        rounded = Clip (nearest, black, white)

        fitting_already = Slice (planar, to_resize, batch_size, zero)
        kept_levels = Cast <to = {_FLOAT}> (fitting_already)
        kept_shape = Concat <axis = 0> (to_keep, three, fitted_hw)
        kept = Reshape <allowzero = 1> (kept_levels, kept_shape)

        content = Concat <axis = 0> (rounded, kept)
        room = Sub (square_hw, fitted_hw)
        margins = Concat <axis = 0> (no_margins, room)
        centred = Sub (content, fill)
        grown = Pad (centred, margins)
        square = Add (grown, fill)
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
        "no_margins": np.zeros(6, np.int64),
        "area_below": np.float64(AREA_BELOW),
        "first": np.int64(0),
        "step": np.int64(1),
        "nothing": np.float64(0),
        "half": np.float64(0.5),
        "unit": np.float64(1),
        "little": np.float32(1e-2),
        "black": np.float32(0),
        "white": np.float32(255),
        "fill": np.array(fill, np.float32).reshape(1, 3, 1, 1),
    }
    return _model(text, constants)


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
        {name}_i = Cast <to = {_DOUBLE}> ({name}_column)
        {name}_others = Range (first, {name}_before, step)
        {name}_j = Cast <to = {_DOUBLE}> ({name}_others)
        {name}_float_before = Cast <to = {_DOUBLE}> ({name}_before)
        {name}_float_after = Cast <to = {_DOUBLE}> ({name}_after)
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
        {name}_share = Cast <to = {_FLOAT}> ({name}_positive)
    """


def contents() -> onnx.ModelProto:
    """Return the piece that says which part of each square holds an image, for boxes to be clipped to.

    Returns:
        A model from ``images``, ``size_hw``, ``fitted_hw`` and the optional ``contents_hw`` to ``limits``, float32
        (batch, 2), height and width of each content in the square, and ``originals``, float32 (batch, 2), those that
        it has in the images given.
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    contents (uint8[batch, height, width, 3] {IMAGES}, int64[2] size_hw, int64[2] fitted_hw, int64[n, 2] {CONTENTS})
        => (float[batch, 2] limits, float[batch, 2] originals)
    {{
        shape = Shape ({IMAGES})
        count = Slice (shape, zero, one)
        each = Concat <axis = 0> (count, two)
        given = Expand ({CONTENTS}, each)
        is_given = Greater (given, zero)
        stated = Where (is_given, given, size_hw)
        originals = Cast <to = {_FLOAT}> (stated)
        products = Mul (stated, fitted_hw)
        scaled = Div (products, size_hw)
        at_least = Max (scaled, one)
        limits = Cast <to = {_FLOAT}> (at_least)
    }}
    """
    constants = {
        CONTENTS: np.zeros((1, 2), np.int64),  # an input that has a value already is one that may be left out
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "two": np.full(1, 2, np.int64),
    }
    return _model(text, constants)


def suppression(
    candidates: int, classes: int, *, score_threshold: float, iou_threshold: float, max_detections: int
) -> onnx.ModelProto:
    """Return the piece that keeps one box for each object: hard NMS in each class, then the best of all classes.

    Args:
        candidates: C, boxes of an image that come in.
        classes: K.
        score_threshold: only what scores above it is kept.
        iou_threshold: a box that overlaps a better one of its class by more goes.
        max_detections: D, the most of an image.

    Returns:
        A model from ``candidate_boxes``, float32 (batch, C, 4), xyxy in pixels of the square, ``candidate_scores``,
        float32 (batch, K, C), ``limits`` and ``originals`` (see `contents`) to ``boxes``, ``scores``, ``labels`` and
        ``counts``.
    """
    spare = max(0, max_detections - classes * candidates)
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    suppression (
        float[batch, {candidates}, 4] candidate_boxes, float[batch, {classes}, {candidates}] candidate_scores,
        float[batch, 2] limits, float[batch, 2] originals
    ) => (
        float[batch, {max_detections}, 4] boxes, float[batch, {max_detections}] scores,
        int64[batch, {max_detections}] labels, int64[batch] counts
    )
    {{
        kept = NonMaxSuppression (candidate_boxes, candidate_scores, most, iou_threshold, score_threshold)
        kept_scores = GatherND (candidate_scores, kept)
        form = Shape (candidate_scores)
        nothing = ConstantOfShape (form)
        sparse = ScatterND (nothing, kept, kept_scores)
        flat = Reshape (sparse, rows)
        filled = Pad (flat, spare)
        scores, index = TopK (filled, most)
        label = Div (index, candidates)
        candidate = Mod (index, candidates)
        found = Greater (scores, no_score)
        labels = Where (found, label, absent)
        found_ones = Cast <to = {_INT64}> (found)
        counts = ReduceSum <keepdims = 0> (found_ones, one)
        place = Unsqueeze (candidate, two)
        own = GatherND <batch_dims = 1> (candidate_boxes, place)
        back = Div (originals, limits)
        back_xyxy = Gather <axis = 1> (back, corners)
        factors = Unsqueeze (back_xyxy, one)
        scaled = Mul (own, factors)
        edges_xyxy = Gather <axis = 1> (originals, corners)
        edges = Unsqueeze (edges_xyxy, one)
        inside = Min (scaled, edges)
        clipped = Max (inside, no_score)
        found_boxes = Unsqueeze (found, two)
        boxes = Where (found_boxes, clipped, no_score)
    }}
    """
    constants = {
        "most": np.full(1, max_detections, np.int64),
        "iou_threshold": np.full(1, iou_threshold, np.float32),
        "score_threshold": np.full(1, score_threshold, np.float32),
        "rows": np.array([0, -1], np.int64),
        "spare": np.array([0, 0, 0, spare], np.int64),
        "candidates": np.int64(candidates),
        "no_score": np.float32(0),
        "absent": np.int64(-1),
        "one": np.ones(1, np.int64),
        "two": np.full(1, 2, np.int64),
        "corners": np.array([1, 0, 1, 0], np.int64),
    }
    if not spare:
        text = text.replace("filled = Pad (flat, spare)", "filled = Identity (flat)")
        del constants["spare"]
    return _model(text, constants)


def labelling(classes: int, side: int) -> onnx.ModelProto:
    """Return the piece that enlarges the logits of the content to the image's size, and labels each pixel.

    Args:
        classes: K.
        side: S, of the square, in pixels.

    Returns:
        A model from ``mask_logits``, float32 (batch, K, S, S), ``size_hw`` and ``fitted_hw`` to ``label_map``, uint8
        (batch, height, width).
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    labelling (float[batch, {classes}, {side}, {side}] mask_logits, int64[2] size_hw, int64[2] fitted_hw)
        => (uint8[batch, height, width] label_map)
    {{
        content = Slice (mask_logits, corner, fitted_hw, axes)
        shape = Shape (mask_logits)
        batch_size = Slice (shape, zero, one)
        change = Sub (size_hw, fitted_hw)
        change_by = ReduceSumSquare <keepdims = 1> (change)
        fits = Equal (change_by, zero)
        to_enlarge = Where (fits, zero, batch_size)
        to_keep = Sub (batch_size, to_enlarge)

        given = Slice (content, zero, to_enlarge, zero)
        sizes = Concat <axis = 0> (to_enlarge, classes, size_hw)
        enlarged = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (given, , , sizes)
        best_enlarged = ArgMax <axis = 1, keepdims = 0> (enlarged)

        fitting_already = Slice (content, to_enlarge, batch_size, zero)
        best_kept = ArgMax <axis = 1, keepdims = 0> (fitting_already)
        kept_shape = Concat <axis = 0> (to_keep, size_hw)
        reshaped = Reshape <allowzero = 1> (best_kept, kept_shape)

        best = Concat <axis = 0> (best_enlarged, reshaped)
        label_map = Cast <to = {_UINT8}> (best)
    }}
    """
    constants = {
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "classes": np.full(1, classes, np.int64),
        "corner": np.zeros(2, np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    return _model(text, constants)


_FLOAT = onnx.TensorProto.FLOAT
_DOUBLE = onnx.TensorProto.DOUBLE
_INT64 = onnx.TensorProto.INT64
_UINT8 = onnx.TensorProto.UINT8


def _model(text: str, constants: Mapping[str, npt.NDArray[Any] | np.generic[Any]]) -> onnx.ModelProto:
    """Read a piece, and give it its constants."""
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model
