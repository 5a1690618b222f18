"""The exported forms of a model that can run here, opened as a user opens them.

What bfloat16 does to a result shows on a trained network, and ``effdense export`` refuses a file whose scores on real
images differ. Through a random network rounding grows from layer to layer until nothing is the same, in PyTorch's
bfloat16 as well. Hence a file in bfloat16 is timed if it gives the peer's results when it is run in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from effdense.allocator import keep_freed_memory


class Way(NamedTuple):
    """A way to run an exported file: what the table calls it, and what `effdense.load` and the exporter are told."""

    label: str
    precision: Literal["float32", "bfloat16"]
    runtime: Literal["onnxruntime", "openvino"]


WAYS = (
    Way("exported float32, ONNX Runtime", "float32", "onnxruntime"),
    Way("exported float32, OpenVINO", "float32", "openvino"),
    Way("exported bfloat16, OpenVINO", "bfloat16", "openvino"),
)


REST = 0.05
"""Seconds before a sample, where PyTorch and a runtime are measured in turn; see `timing.alternate`."""


PYTORCH = "PyTorch"
KEEPING = "PyTorch, freed memory kept"
"""After `effdense.keep_freed_memory`, as effdense's tools run; for the ``keeping`` of `timing.alternate`."""

BFLOAT16_NOTE = "checked in float32; what bfloat16 changes is for the export's gate to judge, on trained weights"


def ways_here(device: str) -> list[Way]:
    """Return those whose packages are installed; exported files run on the CPU."""
    if device != "cpu" or not _is_installed("onnxruntime"):
        return []
    return [way for way in WAYS if _is_installed(way.runtime)]


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class Form(NamedTuple):
    """A form in which a model runs.

    Attributes:
        timed: the model, in PyTorch or as an open file.
        checked: the same in float32, whose results have to be the peer's.
        note: what the row has to say about it.
    """

    timed: Any
    checked: Any
    note: str = ""


def forms_of(model: Any, export: Callable[..., None], folder: Path, *, device: str, threads: int) -> dict[str, Form]:
    """Return the model in PyTorch, and exported in each precision and opened in every way that can run here.

    Args:
        model: a detector or a segmenter.
        export: `export_detector` or its like of another task.
        folder: an empty one, where the files go; they have to stay as long as the models are used.
        device: that is measured.
        threads: of the runtime.
    """
    import effdense

    forms = {PYTORCH: Form(model, model)}
    if device == "cpu" and keep_freed_memory():
        forms[KEEPING] = Form(model, model)
    for way in ways_here(device):
        path = folder / f"{way.precision}.onnx"
        if not path.exists():
            export(model, path, precision=way.precision)
        timed = effdense.load(path, runtime=way.runtime, threads=threads)
        if way.precision == "float32":
            forms[way.label] = Form(timed, timed)
        else:
            forms[way.label] = Form(timed, effdense.load(path, runtime="onnxruntime", threads=threads), BFLOAT16_NOTE)
    return forms


@contextmanager
def every_digit() -> Iterator[None]:
    """Let a GPU multiply in full float32 while results are compared; TF32 has the digits of a half."""
    import torch

    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
