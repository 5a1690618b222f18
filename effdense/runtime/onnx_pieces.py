"""What of an exported file is written in ONNX's own operations: fitting images before the network, and what follows it.

The network itself comes from ``torch.export``. Around it stand pieces in ONNX's textual syntax, since the sizes of
images, the branch that a size takes and the number of boxes that survive are known only when the file runs, and ONNX
has operators for all three. Each piece is a small model; `effdense.runtime.export` joins them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from effdense.transforms.geometry import AREA_BELOW

OPSET = 18
"""Of the whole file: that of ``torch.onnx``'s own operators."""

IR_VERSION = 10

IMAGES = "images"
"""The input: uint8 (batch, height, width, 3), RGB."""

CONTENTS = "contents_hw"
"""An optional input of files that detect: int64 (batch, 2), the height and width that images really have where they
are padded at the bottom and the right to one size; 0, 0, which it is by default, stands for the whole image."""


def fitting(side: int, fill: Sequence[int]) -> onnx.ModelProto:
    """Return the piece that fits images into a square, as `effdense.transforms.eval_transform` does.

    Sizes are computed in float64 and cut, as there. INTER_AREA is two matrix products with the share that each pixel
    before has of each pixel after; INTER_LINEAR is ONNX's Resize. Both round to whole grey levels: as OpenCV does,
    halves to the even one, but upwards where an image is halved. An image that has the size already takes neither, and
    one of the square's size is not padded.

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
        planar = Transpose <perm = [0, 3, 1, 2]> ({IMAGES})
        off = Sub (size_hw, square_hw)
        off_by = ReduceSumSquare <keepdims = 0> (off)
        is_square = Equal (off_by, zero)
        pixels = If (is_square) <
            then_branch = as_it_is () => (float[batch, 3, {side}, {side}] square) {{
                square = Cast <to = {_FLOAT}> (planar)
            }},
            else_branch = fit () => (float[batch, 3, {side}, {side}] padded) {{
                change = Sub (size_hw, fitted_hw)
                change_by = ReduceSumSquare <keepdims = 0> (change)
                fits = Equal (change_by, zero)
                resized = If (fits) <
                    then_branch = keep () => (float[batch, 3, h, w] kept) {{ kept = Cast <to = {_FLOAT}> (planar) }},
                    else_branch = resize () => (float[batch, 3, h, w] rounded) {{
                        levels = Cast <to = {_FLOAT}> (planar)
                        fitted = Cast <to = {_DOUBLE}> (fitted_hw)
                        factors = Div (fitted, size)
                        factor = ReduceMin <keepdims = 0> (factors)
                        shrinks = Less (factor, area_below)
                        scaled = If (shrinks) <
                            then_branch = area () => (float[batch, 3, h, w] averaged) {{
                                {_shares("rows", axis=0)}
                                {_shares("columns", axis=1)}
                                columns_turned = Transpose <perm = [1, 0]> (columns_share)
                                narrowed = MatMul (levels, columns_turned)
                                mean = MatMul (rows_share, narrowed)
                                doubled = Mul (fitted_hw, factor_two)
                                beyond = Sub (size_hw, doubled)
                                beyond_by = ReduceSumSquare <keepdims = 0> (beyond)
                                halves = Equal (beyond_by, zero)
                                upwards = Where (halves, little, black)
                                averaged = Add (mean, upwards)
                            }},
                            else_branch = linear () => (float[batch, 3, h, w] mixed) {{
                                batch_and_channels = Gather (shape, outer)
                                sizes = Concat <axis = 0> (batch_and_channels, fitted_hw)
                                mixed = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
                                    (levels, , , sizes)
                            }}
                        >
                        nearest = Round (scaled)
                        rounded = Clip (nearest, black, white)
                    }}
                >
                room = Sub (square_hw, fitted_hw)
                margins = Concat <axis = 0> (no_margins, room)
                centred = Sub (resized, fill)
                grown = Pad (centred, margins)
                padded = Add (grown, fill)
            }}
        >
    }}
    """
    constants = {
        "zero": np.int64(0),
        "one": np.ones(1, np.int64),
        "three": np.full(1, 3, np.int64),
        "outer": np.array([0, 3], np.int64),
        "side": np.float64(side),
        "square_hw": np.full(2, side, np.int64),
        "no_margins": np.zeros(6, np.int64),
        "area_below": np.float64(AREA_BELOW),
        "first": np.int64(0),
        "step": np.int64(1),
        "no_share": np.float32(0),
        "factor_two": np.int64(2),
        "little": np.float32(1e-2),
        "black": np.float32(0),
        "white": np.float32(255),
        "fill": np.array(fill, np.float32).reshape(1, 3, 1, 1),
    }
    return _model(text, constants)


def _shares(name: str, axis: int) -> str:
    """Return text that computes ``{name}_share``, float32 (after, before): what each pixel before gives to each after.

    The pixel i after covers i * s to (i + 1) * s of those before, where s is how many become one; its share of pixel j
    is the length that it has in common with j to j + 1, divided by s.
    """
    return f"""
        {name}_axis = Constant <value_int = {axis}> ()
        {name}_before = Gather (size_hw, {name}_axis)
        {name}_after = Gather (fitted_hw, {name}_axis)
        {name}_i = Range (first, {name}_after, step)
        {name}_j = Range (first, {name}_before, step)
        {name}_fi = Cast <to = {_DOUBLE}> ({name}_i)
        {name}_fj = Cast <to = {_DOUBLE}> ({name}_j)
        {name}_fbefore = Cast <to = {_DOUBLE}> ({name}_before)
        {name}_fafter = Cast <to = {_DOUBLE}> ({name}_after)
        {name}_s = Div ({name}_fbefore, {name}_fafter)
        {name}_start = Mul ({name}_fi, {name}_s)
        {name}_end = Add ({name}_start, {name}_s)
        {name}_one = Cast <to = {_DOUBLE}> (one)
        {name}_fj1 = Add ({name}_fj, {name}_one)
        {name}_start_column = Unsqueeze ({name}_start, one)
        {name}_end_column = Unsqueeze ({name}_end, one)
        {name}_low = Max ({name}_start_column, {name}_fj)
        {name}_high = Min ({name}_end_column, {name}_fj1)
        {name}_length = Sub ({name}_high, {name}_low)
        {name}_ratio = Div ({name}_length, {name}_s)
        {name}_single = Cast <to = {_FLOAT}> ({name}_ratio)
        {name}_share = Max ({name}_single, no_share)
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
        off = Sub (square_hw, fitted_hw)
        off_by = ReduceSumSquare <keepdims = 0> (off)
        is_square = Equal (off_by, zero)
        content = If (is_square) <
            then_branch = all_of_it () => (float[batch, {classes}, h, w] whole) {{ whole = Identity (mask_logits) }},
            else_branch = without_padding () => (float[batch, {classes}, h, w] part) {{
                part = Slice (mask_logits, from, fitted_hw, axes)
            }}
        >
        change = Sub (size_hw, fitted_hw)
        change_by = ReduceSumSquare <keepdims = 0> (change)
        fits = Equal (change_by, zero)
        enlarged = If (fits) <
            then_branch = as_it_is () => (float[batch, {classes}, height, width] same) {{ same = Identity (content) }},
            else_branch = enlarge () => (float[batch, {classes}, height, width] resized) {{
                form = Shape (content)
                head = Slice (form, first, two)
                sizes = Concat <axis = 0> (head, size_hw)
                resized = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
                    (content, , , sizes)
            }}
        >
        best = ArgMax <axis = 1, keepdims = 0> (enlarged)
        label_map = Cast <to = {_UINT8}> (best)
    }}
    """
    constants = {
        "zero": np.int64(0),
        "first": np.zeros(1, np.int64),
        "two": np.full(1, 2, np.int64),
        "from": np.zeros(2, np.int64),
        "axes": np.array([2, 3], np.int64),
        "square_hw": np.full(2, side, np.int64),
    }
    return _model(text, constants)


_FLOAT = onnx.TensorProto.FLOAT
_DOUBLE = onnx.TensorProto.DOUBLE
_INT64 = onnx.TensorProto.INT64
_UINT8 = onnx.TensorProto.UINT8


def _model(text: str, constants: dict[str, npt.NDArray[Any] | np.generic]) -> onnx.ModelProto:
    """Read a piece, and give it its constants."""
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model
