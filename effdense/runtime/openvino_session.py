"""An exported file run by OpenVINO, in stages, image by image, so that the network has a size that is known."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from effdense.runtime.session import CONTENTS, IMAGES, Array, memory_errors_explained
from effdense.runtime.stages import PIXELS, cut
from effdense.types import Int64, UInt8

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino:
    """A file compiled by OpenVINO, in stages, each of which reads by name what those before it give.

    Only the network computes in the precision asked for; the stages around it compute in float32, see
    `effdense.runtime.stages`. They take any size. The network is compiled for one image: where sizes are open, OpenVINO
    lays maps out anew between layers that else agree on a layout, and takes half as long again; and compiling for each
    size of a batch would take seconds whenever another one comes. On a CPU, images cost the same one by one.

    Attributes:
        name, precision, inputs, outputs: see `effdense.runtime.session.Session`.
    """

    name = "openvino"

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        """Open a file.

        Args:
            path: an exported file.
            precision: of the network, which the CPU has.
            threads: that a run may use.

        Raises:
            Exception: OpenVINO's own, or what reading the file raises.
        """
        self.precision, self._source = precision, path
        self._stages = [_Stage(model, one, threads) for model, one in _stages_of(path, precision)]
        given = {name for stage in self._stages for name in stage.outputs}
        self.inputs = tuple(name for stage in self._stages for name in stage.inputs if name not in given)
        self.outputs = self._stages[-1].outputs
        self._one_by_one = len(self._stages) > 1
        self._lock = threading.Lock()  # a request does one thing at a time, and raises where it is asked for two

    def run(self, images: UInt8, contents_hw: Int64 | None = None) -> dict[str, Array]:
        """Return the file's outputs by their names."""
        if contents_hw is None:
            contents_hw = np.zeros((len(images) if self._one_by_one else 1, 2), np.int64)
        with self._lock, memory_errors_explained(self._source, self.name, images):
            if not self._one_by_one or len(images) == 1:
                return self._run(images, contents_hw)
            found = [self._run(images[i : i + 1], contents_hw[i : i + 1]) for i in range(len(images))]
            return {name: np.concatenate([one[name] for one in found]) for name in self.outputs}

    def _run(self, images: UInt8, contents_hw: Int64) -> dict[str, Array]:
        known: dict[str, Any] = {IMAGES: np.ascontiguousarray(images), CONTENTS: contents_hw}
        for stage in self._stages:
            passed_on = stage is not self._stages[-1]  # and not kept, so that no copy is needed
            found = stage.request.infer(
                {name: known[name] for name in stage.inputs}, share_inputs=True, share_outputs=passed_on
            )
            known |= {name: found[place] for place, name in enumerate(stage.outputs)}
        return {name: known[name] for name in self.outputs}


class _Stage:
    """A part of a file, compiled; the network for one image.

    Attributes:
        request: what runs it.
        inputs: names of what it reads, in its order.
        outputs: names of what it gives, in its order.
    """

    def __init__(self, model: onnx.ModelProto, precision: str, threads: int) -> None:
        # The precision is always said: left to itself, it computes in bfloat16 wherever the CPU can.
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share the same cores
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
        }
        core = openvino_core()
        read = core.read_model(model.SerializeToString())
        self.inputs = _names(read.inputs, model.graph.input)
        self.outputs = _names(read.outputs, model.graph.output)
        if self.inputs == (PIXELS,):
            read.reshape({PIXELS: [1, *list(read.inputs[0].partial_shape)[1:]]})
        self.request = core.compile_model(read, "CPU", settings).create_infer_request()


def _names(ends: Sequence[Any], named: Sequence[Any]) -> tuple[str, ...]:
    """Return what the file calls the ends of a model, which may have further names for them."""
    return tuple(next(one.name for one in named if one.name in end.get_names()) for end in ends)


def _stages_of(path: Path, precision: str) -> list[tuple[onnx.ModelProto, str]]:
    """Return what of a file is compiled apart, and the precision of each."""
    model = onnx.load(path)
    inputs = {one.name for one in model.graph.input}
    constants = [one for one in model.graph.initializer if one.name not in inputs]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)  # an input that has a default there, OpenVINO takes for a constant
    try:
        before, network, after = cut(model)
    except ValueError:
        if precision == "float32":
            return [(model, precision)]
        raise
    return [(before, "float32"), (network, precision), (after, "float32")]


_opening_core = threading.Lock()


@functools.cache
def _only_core() -> Any:
    import openvino

    return openvino.Core()


def openvino_core() -> Any:
    """Return the process's one Core, which is never given up.

    Each Core gives the thread a stack for signals, and takes it away again when it goes. Where two overlap, the one
    that goes last brings back the stack of the one that went first: the next signal that Python handles, a child that
    ends or Ctrl-C, would kill the process.
    """
    with _opening_core:
        return _only_core()
