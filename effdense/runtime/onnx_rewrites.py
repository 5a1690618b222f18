"""What a converted network says in a roundabout way, said as runtimes know it; nothing that it computes changes.

ONNX Runtime keeps maps in blocks of channels from one convolution to the next. Where an operation comes between that it
does not know in this layout, the map is laid out anew before it and after it, which costs more than the operation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx


def rewrite(model: onnx.ModelProto) -> None:
    """Rewrite a network in place: pooling pads by itself, whole factors enlarge, and means of maps are pooled.

    Args:
        model: with the shapes of its values, and with heights and widths that are numbers.
    """
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    sizes = {value.name: _sizes(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    for node in graph.node:
        if node.op_type == "MaxPool":
            _pad_by_itself(node, makers, constants)
        elif node.op_type == "Resize" and len(node.input) == 4 and node.input[3]:
            _enlarge_by_factors(node, sizes, graph)
        elif node.op_type == "ReduceMean" and len(node.input) == 2:
            _pool_mean(node, sizes, constants)
    _drop_unused(graph)


def _pad_by_itself(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> None:
    """Let a pooling pad what a Pad with minus infinity pads before it, which no maximum sees."""
    pad = makers.get(node.input[0])
    if pad is None or pad.op_type != "Pad" or len(pad.input) != 3:
        return
    margins, value = (_value(name, constants) for name in pad.input[1:])
    pads = next((one for one in node.attribute if one.name == "pads"), None)
    if margins is None or value is None or pads is None or not np.isneginf(value).all():
        return
    before_and_after = margins.reshape(2, 4)
    if before_and_after[:, :2].any() or (before_and_after < 0).any():
        return
    pads.ints[:] = [old + int(more) for old, more in zip(pads.ints, before_and_after[:, 2:].ravel(), strict=True)]
    node.input[0] = pad.input[0]


def _enlarge_by_factors(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...] | None], graph: onnx.GraphProto) -> None:
    """Say how many times as large a map becomes, where that is a whole number, and not how large, which has a batch."""
    before, after = sizes.get(node.input[0]), sizes.get(node.output[0])
    if before is None or after is None or len(before) != 4 or before[1] != after[1]:
        return
    if any(new % old for old, new in zip(before[2:], after[2:], strict=True)):
        return
    factors = [1.0, 1.0] + [new / old for old, new in zip(before[2:], after[2:], strict=True)]
    name = f"{node.output[0]}_factors"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(factors, np.float32), name))
    node.input[:] = [node.input[0], "", name]


def _pool_mean(
    node: onnx.NodeProto, sizes: dict[str, tuple[int, ...] | None], constants: dict[str, onnx.TensorProto]
) -> None:
    """Call the mean over height and width what it is to a convolutional network."""
    axes, before = _value(node.input[1], constants), sizes.get(node.input[0])
    keeps = next((one.i for one in node.attribute if one.name == "keepdims"), 1)
    if axes is None or before is None or len(before) != 4 or not keeps or sorted(axes % 4) != [2, 3]:
        return
    node.op_type = "GlobalAveragePool"
    del node.attribute[:]
    node.input[:] = [node.input[0]]


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove what nothing reads any more."""
    ends = {value.name for value in graph.output}
    while True:
        read = ends | {name for node in graph.node for name in node.input}
        unread = [node for node in graph.node if not read.intersection(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    kept = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _value(name: str, constants: dict[str, onnx.TensorProto]) -> npt.NDArray[Any] | None:
    return onnx.numpy_helper.to_array(constants[name]) if name in constants else None


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return the sizes of a value, the batch's as 1; None where others are not known."""
    sizes = [one.dim_value for one in value.type.tensor_type.shape.dim]
    return (1, *sizes[1:]) if all(sizes[1:]) else None
