"""What the settings of a tool can ask of an exported file. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from effdense.runtime.onnx_header import is_exported

_OF_EXPORTED = ("runtime", "threads")


def ignored_for_kind(model: Path | None, *, built_in: Sequence[str] = (), one_by_one: bool = False) -> dict[str, str]:
    """Return the settings that a model's file has no use for, by its kind, each with the reason.

    Args:
        model: a checkpoint or an exported file; None has no use for a runtime either.
        built_in: settings of a checkpoint that an exported file has in it.
        one_by_one: effdense runs images one by one through an exported file of this task.
    """
    if model is None or not is_exported(model):
        return dict.fromkeys(_OF_EXPORTED, "PyTorch runs whatever is no exported file (.onnx)")
    ignored = dict.fromkeys(built_in, f"{model} has its own built in, and export makes another of the checkpoint")
    if one_by_one:
        ignored["batch_size"] = f"{model} runs images one by one"
    return ignored
