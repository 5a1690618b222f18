"""What a model computes, in a form that can be compared."""

from __future__ import annotations

from typing import Any

import onnx


def operations(model: onnx.ModelProto) -> list[Any]:
    """Return all that says what a model computes: two models compute the same where these are equal.

    Values are named by what they are, if they are constant, and else by the order in which they are computed, so that
    the names inside a model have no say.
    """
    known: dict[str, Any] = {one.name: one.name for one in (*model.graph.input, *model.graph.output)}
    known[""] = None  # an input that is left out
    for one in model.graph.initializer:
        known.setdefault(one.name, (one.data_type, tuple(one.dims), onnx.numpy_helper.to_array(one).tobytes()))
    said: list[Any] = [one.version for one in model.opset_import if one.domain == ""]
    for place, node in enumerate(model.graph.node):
        for number, name in enumerate(node.output):
            known.setdefault(name, (place, number))
        attributes = sorted(one.SerializeToString(deterministic=True) for one in node.attribute)
        ends = [[known[name] for name in names] for names in (node.input, node.output)]
        said.append((node.domain, node.op_type, attributes, ends))
    return said
