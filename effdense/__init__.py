"""effdense: detection and semantic segmentation on EfficientNet backbones.

Public names are resolved on first use, so that ``import effdense`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from collections.abc import Callable

    from effdense.allocator import keep_freed_memory as keep_freed_memory
    from effdense.backbones.registry import create_backbone as create_backbone
    from effdense.backbones.registry import list_backbones as list_backbones
    from effdense.backbones.specs import compound_scaling as compound_scaling
    from effdense.loading import load as load
    from effdense.types import Batch as Batch
    from effdense.types import Detections as Detections
    from effdense.types import MultitaskResult as MultitaskResult
    from effdense.types import Sample as Sample
    from effdense.types import Segmentation as Segmentation

    create_multitask: Callable[..., Any]  # known by name alone: the core imports no task

_WHERE = {
    "Batch": "effdense.types",
    "Detections": "effdense.types",
    "MultitaskResult": "effdense.types",
    "Sample": "effdense.types",
    "Segmentation": "effdense.types",
    "compound_scaling": "effdense.backbones.specs",
    "create_backbone": "effdense.backbones.registry",
    "create_multitask": "effdense.tasks.multitask.model",
    "keep_freed_memory": "effdense.allocator",
    "list_backbones": "effdense.backbones.registry",
    "load": "effdense.loading",
}

__all__ = [
    "Batch",
    "Detections",
    "MultitaskResult",
    "Sample",
    "Segmentation",
    "__version__",
    "compound_scaling",
    "create_backbone",
    "create_multitask",
    "keep_freed_memory",
    "list_backbones",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'effdense' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
