"""effdense.load: a model file back into something that predicts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.runtime.onnx_header import is_exported, read_onnx_header

_LOADERS = {
    "detection": ("effdense.tasks.detection.opening", "open_detector"),
    "segmentation": ("effdense.tasks.segmentation.opening", "open_segmenter"),
    "multitask": ("effdense.tasks.multitask.opening", "open_multitask_model"),
}


def load(path: str | Path, *, runtime: str = "auto", threads: int | None = None) -> Any:
    """Load a trained model from the one file a run or an export leaves behind; downloads nothing.

    Args:
        path: a .safetensors file that effdense wrote, or an .onnx file of ``effdense export``.
        runtime: of an .onnx file: ``onnxruntime``, ``openvino``, or ``auto``: ONNX Runtime, and OpenVINO for a file
            exported in bfloat16.
        threads: of an .onnx file: that a run may use; by default as many as PyTorch uses.

    Returns:
        What the file's task predicts with: a `effdense.tasks.detection.predict.Detector`, a
        `effdense.tasks.segmentation.predict.Segmenter` or a `effdense.tasks.multitask.predict.Multitask`, which does
        both and has ``.detector`` and ``.segmenter``. For an .onnx file an ``ExportedDetector``, ``ExportedSegmenter``
        or ``ExportedMultitask``, which predict the same way on the CPU.

    Raises:
        UserError: there is no such file, or it is no model of effdense; a runtime that is not installed, or is given
            for a .safetensors file.
    """
    path = Path(path)
    task = task_of(path)
    if task not in _LOADERS:
        raise UserError(f"{path} is a model for {task!r}; this version of effdense knows {', '.join(_LOADERS)}")
    module, name = _LOADERS[task]
    return getattr(importlib.import_module(module), name)(path, runtime=runtime, threads=threads)


def task_of(path: Path) -> Any:
    """Return what a model file is for, as its header says, be it a checkpoint or an exported file.

    Raises:
        UserError: there is no such file, or it is no model of effdense.
    """
    return (read_onnx_header if is_exported(path) else read_header)(path).get("task")
