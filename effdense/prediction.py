"""The settings of ``predict`` that every task has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError
from effdense.runtime.onnx_header import is_exported
from effdense.runtime.settings import ignored_for_kind


@dataclass(frozen=True)
class PredictSettings:
    """What to predict with, on what, and where to leave it."""

    model: Path
    """A .safetensors file of a training run, or an .onnx file of `effdense export`."""
    images: tuple[Path, ...] = ()
    """Image files, and folders with images in and below them."""
    dataset: str = "none"
    """In place of images: a data set, such as demo, coco or voc."""
    data_root: Path | None = None
    """With --dataset: the folder of the data set, by default data/voc or data/coco; the demo set needs none."""
    split: str = "val"
    """With --dataset: the split."""
    out: Path = Path("drawn")
    """Folder for what is written: a picture of each image, overview.jpg with the first twelve, and the task's own."""
    batch_size: int = 8
    """Images in a forward pass."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N; an exported file runs on the CPU."""
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What runs an exported file; auto is ONNX Runtime, and OpenVINO for one exported in bfloat16."""
    threads: int | None = None
    """Threads that an exported file may use; by default as many as PyTorch uses."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and count them, where otherwise the tool would stop."""

    def __post_init__(self) -> None:
        if bool(self.images) == (self.dataset != "none"):
            raise UserError("give either images (files or folders) or --dataset, and not both")
        if self.dataset in ("none", "demo") and self.data_root is not None:
            raise UserError(
                "--data-root has no effect without a --dataset other than demo: leave it out or name the data set"
            )
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}, expected 1 or more")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads is {self.threads}, expected 1 or more")


def check_share(name: str, value: float) -> None:
    """Refuse a share that is none.

    Raises:
        UserError: the value is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}, expected a number between 0 and 1")


def ignored_predict_settings(
    config: PredictSettings, *, built_in: Sequence[str] = (), one_by_one: bool = False
) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason.

    Args:
        config: the settings.
        built_in: those of a checkpoint that an exported file has in it.
        one_by_one: effdense runs images one by one through an exported file of this task.
    """
    ignored = ignored_for_kind(config.model, built_in=built_in, one_by_one=one_by_one)
    if config.dataset == "none":
        ignored["split"] = "no --dataset is given"
    if is_exported(config.model):
        ignored["save_probabilities"] = f"{config.model} gives labels alone"
    return ignored
