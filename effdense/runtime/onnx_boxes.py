"""What of an exported file is written in ONNX's own operations and is of detectors alone: from raw outputs to boxes."""

from __future__ import annotations

import math

import numpy as np
import onnx

from effdense.runtime.onnx_pieces import FLOAT, INT64, IR_VERSION, OPSET, piece
from effdense.runtime.session import CONTENTS, IMAGES
from effdense.types import Float32


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
        originals = Cast <to = {FLOAT}> (stated)
        products = Mul (stated, fitted_hw)
        scaled = Div (products, size_hw)
        at_least = Max (scaled, one)
        limits = Cast <to = {FLOAT}> (at_least)
    }}
    """
    constants = {
        CONTENTS: np.zeros((1, 2), np.int64),  # an input that has a value already is one that may be left out
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "two": np.full(1, 2, np.int64),
    }
    return piece(text, constants)


def candidates(centres_and_sizes: Float32, classes: int, *, score_threshold: float, top: int) -> onnx.ModelProto:
    """Return the piece that decodes the boxes of the best anchors, clipped to the content.

    As in `effdense.tasks.detection.postprocess`, of which this is the part before NMS. There the best pairs of anchor
    and class go on; here all classes of the best anchors do, among which those pairs are. An anchor that scores too
    little in every class goes on only where another image of the batch has more that do not.

    GatherND is given image and anchor, and no ``batch_dims``, for which OpenVINO would copy all that it takes from.

    Args:
        centres_and_sizes: of A anchors, (A, 4): y and x of the centre, height and width, in pixels of the square.
        classes: K.
        score_threshold: only what scores above it is kept in the end.
        top: the most anchors of an image that go on.

    Returns:
        A model from ``class_logits``, float32 (batch, A, K), ``box_codes``, float32 (batch, A, 4), and ``limits`` (see
        `contents`) to ``candidate_boxes``, float32 (batch, C, 4), and ``candidate_scores``, float32 (batch, K, C), 0
        where the box has no area. C is what is needed. A box is top, left, bottom, right, as ONNX has them.
    """
    count = len(centres_and_sizes)
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    candidates (
        float[batch, {count}, {classes}] class_logits, float[batch, {count}, 4] box_codes, float[batch, 2] limits
    ) => (float[batch, chosen, 4] candidate_boxes, float[batch, {classes}, chosen] candidate_scores)
    {{
        best = ReduceMax <keepdims = 0> (class_logits, two)
        may_be_kept = GreaterOrEqual (best, floor)
        ones = Cast <to = {INT64}> (may_be_kept)
        of_images = ReduceSum <keepdims = 1> (ones, one)
        of_image = ReduceMax <keepdims = 0> (of_images, zero)
        some = Max (of_image, one)
        wanted = Min (some, top)
        best_chosen, anchor = TopK (best, wanted)
        batch_size = Shape <start = 0, end = 1> (best)
        images = Squeeze (batch_size)
        image = Range (no_image, images, next_image)
        image_column = Unsqueeze (image, one_and_two)
        anchor_column = Unsqueeze (anchor, two)
        form = Shape (anchor_column)
        image_of_anchor = Expand (image_column, form)
        place = Concat <axis = 2> (image_of_anchor, anchor_column)
        logits = GatherND (class_logits, place)
        codes = GatherND (box_codes, place)
        anchors = Gather <axis = 0> (anchors_yxhw, anchor)

        centre, size = Split <axis = 2, num_outputs = 2> (anchors)
        shift, growth = Split <axis = 2, num_outputs = 2> (codes)
        moved = Mul (shift, size)
        middle = Add (moved, centre)
        factor = Exp (growth)
        grown = Mul (factor, size)
        reach = Mul (grown, half)
        low = Sub (middle, reach)
        high = Add (middle, reach)
        limit = Unsqueeze (limits, one)
        low_inside = Max (low, nothing)
        high_inside = Max (high, nothing)
        first = Min (low_inside, limit)
        last = Min (high_inside, limit)
        candidate_boxes = Concat <axis = 2> (first, last)

        sides = Sub (last, first)
        shorter = ReduceMin <keepdims = 1> (sides, two)
        usable = Greater (shorter, nothing)
        probabilities = Sigmoid (logits)
        of_usable = Where (usable, probabilities, nothing)
        candidate_scores = Transpose <perm = [0, 2, 1]> (of_usable)
    }}
    """
    constants = {
        "floor": np.float32(_least_logit(score_threshold)),
        "top": np.full(1, min(top, count), np.int64),
        "anchors_yxhw": centres_and_sizes,
        "no_image": np.int64(0),
        "next_image": np.int64(1),
        "one_and_two": np.array([1, 2], np.int64),
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "two": np.full(1, 2, np.int64),
        "nothing": np.float32(0),
        "half": np.float32(0.5),
    }
    return piece(text, constants)


def _least_logit(score: float) -> float:
    """Return a logit such that nothing below it scores above ``score``, however its sigmoid is rounded."""
    if not 0 < score < 1:
        return -math.inf if score <= 0 else math.inf
    return math.log(score / (1 - score)) - 1e-3


def suppression(classes: int, *, score_threshold: float, iou_threshold: float, max_detections: int) -> onnx.ModelProto:
    """Return the piece that keeps one box for each object: hard NMS in each class, then the best of all classes.

    Args:
        classes: K.
        score_threshold: only what scores above it is kept.
        iou_threshold: a box that overlaps a better one of its class by more goes.
        max_detections: D, the most of an image.

    Returns:
        A model from ``candidate_boxes``, ``candidate_scores`` (see `candidates`), ``limits`` and ``originals`` (see
        `contents`) to ``boxes``, ``scores``, ``labels`` and ``counts``.
    """
    text = f"""
    <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
    suppression (
        float[batch, chosen, 4] candidate_boxes, float[batch, {classes}, chosen] candidate_scores,
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
        chosen = Gather (form, two)
        label = Div (index, chosen)
        candidate = Mod (index, chosen)
        found = Greater (scores, no_score)
        labels = Where (found, label, absent)
        found_ones = Cast <to = {INT64}> (found)
        counts = ReduceSum <keepdims = 0> (found_ones, one)
        place = Unsqueeze (candidate, two)
        own_yxyx = GatherND <batch_dims = 1> (candidate_boxes, place)
        own = Gather <axis = 2> (own_yxyx, as_xyxy)
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
        "spare": np.array([0, 0, 0, max_detections], np.int64),  # fewer pairs than that may have come in
        "no_score": np.float32(0),
        "absent": np.int64(-1),
        "one": np.ones(1, np.int64),
        "two": np.full(1, 2, np.int64),
        "corners": np.array([1, 0, 1, 0], np.int64),
        "as_xyxy": np.array([1, 0, 3, 2], np.int64),
    }
    return piece(text, constants)
