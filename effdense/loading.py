"""effdense.load: a model file back into something that predicts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from effdense.errors import UserError
from effdense.model_header import read_header

_LOADERS = {
    "detection": ("effdense.tasks.detection.predict", "load_detector"),
    "segmentation": ("effdense.tasks.segmentation.predict", "load_segmenter"),
    "multitask": ("effdense.tasks.multitask.predict", "load_multitask"),
}


def load(path: str | Path) -> Any:
    """Load a trained model from the one file a run leaves behind; downloads nothing.

    Args:
        path: a .safetensors file that effdense wrote.

    Returns:
        What the file's task predicts with: a `effdense.tasks.detection.predict.Detector`, a
        `effdense.tasks.segmentation.predict.Segmenter` or a `effdense.tasks.multitask.predict.Multitask`, which does
        both and has ``.detector`` and ``.segmenter``.

    Raises:
        UserError: there is no such file, or it is no model of effdense.
    """
    path = Path(path)
    task = read_header(path).get("task")
    if task not in _LOADERS:
        raise UserError(f"{path} is a model for {task!r}; this version of effdense knows {', '.join(_LOADERS)}")
    module, name = _LOADERS[task]
    return getattr(importlib.import_module(module), name)(path)
