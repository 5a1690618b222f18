"""A converted network is said otherwise, and computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from effdense.runtime.onnx_rewrites import rewrite


def model(body: str, after: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 18]> f (float[batch, 3, 6, 8] x) => (float[{after}] y) {{ {body} }}'
    parsed = onnx.parser.parse_model(text)
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    return onnx.shape_inference.infer_shapes(parsed)


def outputs(of: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(of, full_check=True)
    session = onnxruntime.InferenceSession(of.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


PAD = "p = Pad (x, margins, value) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 0, 0]> (p)"
ENLARGE = """s = Shape (x) b = Slice (s, zero, one) sizes = Concat <axis = 0> (b, rest)
y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , , sizes)"""
MARGINS = np.array([0, 0, 1, 0, 0, 0, 1, 1])
ENDS = {"zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)}
LOWEST = np.array(-np.inf, np.float32)

REWRITTEN = {
    "a pooling pads by itself": (PAD, "batch, 3, 3, 4", {"margins": MARGINS, "value": LOWEST}, ["MaxPool"]),
    "factors": (ENLARGE, "batch, 3, 12, 24", {**ENDS, "rest": np.array([3, 12, 24])}, ["Resize"]),
    "a mean": (
        "y = ReduceMean (x, axes)",
        "batch, 3, 1, 1",
        {"axes": np.array([-1, 2])},
        ["GlobalAveragePool"],
    ),
}
KEPT = {
    "a pad that a maximum sees": (PAD, "batch, 3, 3, 4", {"margins": MARGINS, "value": np.array(0, np.float32)}),
    "a pad of channels": (PAD, "batch, 4, 2, 3", {"margins": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "value": LOWEST}),
    "sizes that are no multiples": (ENLARGE, "batch, 3, 9, 8", {**ENDS, "rest": np.array([3, 9, 8])}),
    "a mean over width alone": ("y = ReduceMean (x, axes)", "batch, 3, 6, 1", {"axes": np.array([3])}),
    "a mean that drops its axes": ("y = ReduceMean <keepdims = 0> (x, axes)", "batch, 3", {"axes": np.array([2, 3])}),
}


@pytest.mark.parametrize(("body", "after", "constants", "left"), REWRITTEN.values(), ids=REWRITTEN.keys())
def test_what_is_rewritten_computes_the_same(
    body: str, after: str, constants: dict[str, np.ndarray], left: list[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 8)).astype(np.float32) - 5
    changed = model(body, after, constants)
    before = outputs(changed, x)
    rewrite(changed)
    assert [node.op_type for node in changed.graph.node] == left
    np.testing.assert_allclose(outputs(changed, x), before, rtol=1e-6)


@pytest.mark.parametrize(("body", "after", "constants"), KEPT.values(), ids=KEPT.keys())
def test_what_would_compute_something_else_stays(body: str, after: str, constants: dict[str, np.ndarray]) -> None:
    kept = model(body, after, constants)
    before = kept.SerializeToString()
    rewrite(kept)
    assert kept.SerializeToString() == before
