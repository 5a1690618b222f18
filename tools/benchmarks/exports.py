"""The exported forms of a model that can run here, opened as a user opens them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple


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


def ways_here(device: str) -> list[Way]:
    """Return those whose package is installed; exported files run on the CPU."""
    if device != "cpu":
        return []
    return [way for way in WAYS if importlib.util.find_spec(way.runtime) is not None]


def open_exported(
    export: Callable[..., None], model: Any, folder: Path, *, device: str, threads: int
) -> dict[Way, Any]:
    """Export a model in each precision and open the files in every way that can run here.

    Args:
        export: `export_detector` or its like of another task.
        model: what it takes.
        folder: where the files go; they have to stay as long as the models are used.
        device: that is measured.
        threads: of the runtime.
    """
    import effdense

    opened = {}
    for way in ways_here(device):
        path = folder / f"{way.precision}.onnx"
        if not path.exists():
            export(model, path, precision=way.precision)
        opened[way] = effdense.load(path, runtime=way.runtime, threads=threads)
    return opened
