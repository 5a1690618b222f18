"""An exported file run by OpenVINO, in stages, image by image, so that the network has a size that is known."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from effdense.runtime.onnx_operations import operations
from effdense.runtime.onnx_pieces import labelling
from effdense.runtime.openvino_fitting import padding_of
from effdense.runtime.openvino_labels import LABEL_MAP, Labelling
from effdense.runtime.session import CONTENTS, IMAGES, ORIGINAL, Array, memory_errors_explained, require_fitted
from effdense.runtime.stages import FITTED_HW, MASK_LOGITS, PIXELS, SIZE_HW, cut, part
from effdense.types import Int64, UInt8

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino:
    """A file compiled by OpenVINO, in stages, each of which reads by name what those before it give.

    Only the network computes in the precision asked for; the stages around it compute in float32, see
    `effdense.runtime.stages`. They take any size. The network is compiled for one image: where sizes are open, OpenVINO
    lays maps out anew between layers that else agree on a layout, and takes half as long again; and compiling for each
    size of a batch would take seconds whenever another one comes. On a CPU, images cost the same one by one. Images
    that need no resizing are prepared by `effdense.runtime.openvino_fitting`, and label maps made by
    `effdense.runtime.openvino_labels`, where a file's own operations are just those that they stand for.

    Attributes:
        name, precision, inputs, outputs: see `effdense.runtime.session.Session`.
    """

    name = "openvino"

    def __init__(self, path: Path, precision: str, threads: int, side: int) -> None:
        """Open a file.

        Args:
            path: an exported file.
            precision: of the network, which the CPU has.
            threads: that a run may use.
            side: of the square that images are fitted into, in pixels.

        Raises:
            Exception: OpenVINO's own, or what reading the file raises.
        """
        self.precision, self._source, self._side = precision, path, side
        model = onnx.load(path)
        self.inputs = tuple(one.name for one in model.graph.input)
        self.outputs = tuple(one.name for one in model.graph.output)
        models = _stages_of(model, precision)
        self._stages = [_Stage(model, one, threads) for model, one in models]
        self._one_by_one = len(self._stages) > 1
        self._padding = padding_of(models[0][0], side) if self._one_by_one else None
        self._labelling: Labelling | None = None
        if LABEL_MAP in self.outputs and not any(LABEL_MAP in stage.outputs for stage in self._stages):
            self._labelling = Labelling(openvino_core(), _settings("float32", threads), *_logits_shape(models[1][0]))
        self._lock = threading.Lock()  # a request does one thing at a time, and raises where it is asked for two

    def run(
        self, images: UInt8, contents_hw: Int64 | None = None, original_hw: Int64 | None = None
    ) -> dict[str, Array]:
        """Return the file's outputs by their names."""
        if ORIGINAL in self.inputs:
            require_fitted(self._source, images, original_hw, self._side)
        if contents_hw is None:
            contents_hw = np.zeros((len(images) if self._one_by_one else 1, 2), np.int64)
        if original_hw is None:
            original_hw = np.zeros(2, np.int64)
        with self._lock:
            if not self._one_by_one or len(images) == 1:
                return self._run(images, contents_hw, original_hw)
            found = [self._run(images[i : i + 1], contents_hw[i : i + 1], original_hw) for i in range(len(images))]
            return {name: np.concatenate([one[name] for one in found]) for name in self.outputs}

    def _run(self, images: UInt8, contents_hw: Int64, original_hw: Int64) -> dict[str, Array]:
        with memory_errors_explained(self._source, self.name, images, original_hw):
            return self._through_stages(images, contents_hw, original_hw)

    def _through_stages(self, images: UInt8, contents_hw: Int64, original_hw: Int64) -> dict[str, Array]:
        known: dict[str, Any] = {IMAGES: np.ascontiguousarray(images), CONTENTS: contents_hw, ORIGINAL: original_hw}
        stages = self._stages
        if self._padding is not None and self._padding.suffices(images, original_hw):
            known |= self._padding.outputs(images, contents_hw)
            stages = stages[1:]
        for stage in stages:
            passed_on = not set(stage.outputs) & set(self.outputs)  # and not kept, so that no copy is needed
            found = stage.request.infer(
                {name: known[name] for name in stage.inputs}, share_inputs=True, share_outputs=passed_on
            )
            known |= {name: found[place] for place, name in enumerate(stage.outputs)}
        if self._labelling is not None:
            size_hw = np.where(original_hw > 0, original_hw, known[SIZE_HW])
            known[LABEL_MAP] = self._labelling.label_map(known[MASK_LOGITS], size_hw, known[FITTED_HW])
        return {name: known[name] for name in self.outputs}


class _Stage:
    """A part of a file, compiled; the network for one image.

    Attributes:
        request: what runs it.
        inputs: names of what it reads, in its order.
        outputs: names of what it gives, in its order.
    """

    def __init__(self, model: onnx.ModelProto, precision: str, threads: int) -> None:
        core = openvino_core()
        read = core.read_model(model.SerializeToString())
        self.inputs = _names(read.inputs, model.graph.input)
        self.outputs = _names(read.outputs, model.graph.output)
        if self.inputs == (PIXELS,):
            read.reshape({PIXELS: [1, *list(read.inputs[0].partial_shape)[1:]]})
        self.request = core.compile_model(read, "CPU", _settings(precision, threads)).create_infer_request()


def _names(ends: Sequence[Any], named: Sequence[Any]) -> tuple[str, ...]:
    """Return what the file calls the ends of a model, which may have further names for them."""
    return tuple(next(one.name for one in named if one.name in end.get_names()) for end in ends)


def _settings(precision: str, threads: int) -> dict[str, Any]:
    # The precision is always said: left to itself, it computes in bfloat16 wherever the CPU can.
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share the same cores
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }


def _stages_of(model: onnx.ModelProto, precision: str) -> list[tuple[onnx.ModelProto, str]]:
    """Return what of a file is compiled apart, with the precision of each; the file's model may be changed.

    What makes label maps is not among it, if `Labelling` does the same faster.
    """
    inputs = {one.name for one in model.graph.input}
    outputs = [one.name for one in model.graph.output]
    constants = [one for one in model.graph.initializer if one.name not in inputs]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)  # an input that has a default there, OpenVINO takes for a constant
    try:
        before, network, after = cut(model)
    except ValueError:
        if precision == "float32":
            return [(model, precision)]
        raise
    stages = [(before, "float32"), (network, precision)]
    rest = [name for name in outputs if not (name == LABEL_MAP and _labels_as_known(after, network))]
    if rest:
        stages.append((after if len(rest) == len(outputs) else part(after, rest), "float32"))
    return stages


def _labels_as_known(after: onnx.ModelProto, network: onnx.ModelProto) -> bool:
    """Whether a file makes label maps as this version does, which a later one's may not."""
    return operations(part(after, [LABEL_MAP])) == operations(labelling(*_logits_shape(network)))


def _logits_shape(network: onnx.ModelProto) -> tuple[int, int]:
    """Return K and S of a network's logits of label maps, (batch, K, S, S)."""
    (logits,) = [one for one in network.graph.output if one.name == MASK_LOGITS]
    _, classes, side, _ = (size.dim_value for size in logits.type.tensor_type.shape.dim)
    return classes, side


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
