"""A network and the pieces around it become one ONNX file."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from effdense import __version__
from effdense.errors import UserError, nearest
from effdense.files import write_atomically
from effdense.runtime.onnx_header import EXPORT, write_header
from effdense.runtime.onnx_pieces import IR_VERSION, OPSET
from effdense.runtime.onnx_rewrites import rewrite

PRECISIONS = ("float32", "bfloat16")
"""In which an exported file computes; its weights are float32 either way."""


def network_to_onnx(
    network: nn.Module, example: Sequence[Tensor], *, inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Return a network as an ONNX model whose batch is open and whose other sizes are the example's.

    Args:
        network: in evaluation mode; takes and returns tensors whose first dimension is the batch.
        example: its arguments, a batch of two.
        inputs: names of its arguments.
        outputs: names of what it returns.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    network = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    with torch.no_grad(), _quietly():
        program = torch.export.export(network, tuple(example), dynamic_shapes=tuple({0: batch} for _ in example))
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    assert converted is not None
    model: onnx.ModelProto = converted.model_proto
    model.ir_version = IR_VERSION
    for node in model.graph.node:  # where each operation stands in which source file: as large as a small network
        del node.metadata_props[:]
    rewrite(model)
    return model


def joined(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Return one model that runs several in turn; each reads by name what those before it yield.

    What one asks for and none before it yields is an input of the whole, with the default of the first that has one.
    All that any of them yields is an output.

    Args:
        models: at least one; names inside them may be the same.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(models[0])
    for number, model in enumerate(models[1:], start=1):
        assert not model.functions
        piece = onnx.compose.add_prefix(model, f"{number}/")
        graph = piece.graph
        outer = {one.name: one.name.split("/", 1)[1] for one in (*graph.input, *graph.output)}
        _rename(graph, outer)
        known = {one.name for one in (*whole.graph.input, *whole.graph.output)}
        whole.graph.node.extend(graph.node)
        defaults = known & {one.name for one in whole.graph.initializer}
        whole.graph.initializer.extend(one for one in graph.initializer if one.name not in defaults)
        whole.graph.value_info.extend(graph.value_info)
        whole.graph.input.extend(one for one in graph.input if one.name not in known)
        whole.graph.output.extend(graph.output)
    return whole


def write_onnx(path: Path, model: onnx.ModelProto, outputs: Sequence[str], header: Mapping[str, Any]) -> None:
    """Write a model with a header to a file.

    Args:
        path: the file; what was there stays until the new one is whole.
        model: what to write.
        outputs: those of its outputs that the file has, in this order.
        header: see ``write_header``.

    Raises:
        UserError: the file cannot be written.
    """
    yielded = {value.name: value for value in model.graph.output}
    written = onnx.ModelProto()
    written.CopyFrom(model)
    del written.graph.output[:]
    written.graph.output.extend(yielded[name] for name in outputs)
    written.graph.value_info.extend(value for name, value in yielded.items() if name not in outputs)
    written.graph.name = written.producer_name = "effdense"
    written.producer_version = __version__
    write_header(written, header)
    onnx.checker.check_model(written, full_check=True)
    write_atomically(path, written.SerializeToString())


def export_header(header: Mapping[str, Any], *, precision: str, image_size: int) -> dict[str, Any]:
    """Return the header of a checkpoint with what is said of its export.

    Args:
        header: of the checkpoint.
        precision: in which the file is to be run.
        image_size: side of the square that images are fitted into, in pixels.

    Raises:
        UserError: an unknown precision.
    """
    if precision not in PRECISIONS:
        known = " or ".join(PRECISIONS)
        raise UserError(f"precision is {precision!r}, expected {known}{nearest(precision, PRECISIONS)}")
    said = {"precision": precision, "opset": OPSET, "image_size": image_size, "effdense": __version__, "gate": None}
    return {**header, EXPORT: said}


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names, wherever a graph or one inside it speaks of them."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's notes on its own progress from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
