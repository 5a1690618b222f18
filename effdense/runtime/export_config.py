"""The settings of ``export``. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effdense.config import to_mapping
from effdense.errors import UserError
from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION
from effdense.runtime.onnx_header import SUFFIX, is_exported

_SELECTION = ("max_detections", "score_threshold", "nms", "nms_iou")
_MASKS = ("labels", "classes", "binary_masks")
_SOURCES = ("det_data", "seg_data")
_DATA = ("data_root", "split", "annotations", "images", *_MASKS, *_SOURCES)

LARGEST_TOLERANCE = 1.0
"""In points: room for bfloat16 on few images, and no way around the comparison."""


@dataclass(frozen=True)
class ExportConfig:
    """What to export, how, and on which images the file is compared with its checkpoint."""

    model: Path
    """A .safetensors file of a training run."""
    format: Literal["onnx"] = "onnx"
    """Format of the file."""
    out: Path | None = None
    """The file, whose name ends in .onnx; by default the checkpoint's name with that ending."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the file's network computes in. bfloat16 needs OpenVINO and a CPU that has it, and is faster there."""
    image_size: int | None = None
    """Side of the square that images are fitted into, in pixels; by default what the model was trained with."""
    max_detections: int | None = None
    """Most detections an image; by default what the model was trained with."""
    score_threshold: float | None = None
    """Detections below this score are dropped; by default what the model was trained with."""
    nms: Literal["hard"] | None = None
    """Non-maximum suppression; by default what the model was trained with. Soft has no counterpart in ONNX."""
    nms_iou: float | None = None
    """Overlap above which suppression drops a box; by default what the model was trained with."""
    window: Literal[0] | None = None
    """0: fit whole images into the square, though the model was trained with a window."""

    # --- the comparison
    dataset: Literal["auto", "demo", "coco", "voc", "folder"] = "auto"
    """Labelled images to compare on; auto is the data set that the model was trained on, as far as it is not named
    otherwise."""
    data_root: Path | None = None
    """Folder of the data set, by default that of the training run, or data/voc or data/coco."""
    split: str | None = None
    """Split to compare on; by default the one that the training run was evaluated on, or val."""
    annotations: Path | None = None
    """COCO: an annotation file in place of a data set of a known layout; goes with --images."""
    images: Path | None = None
    """COCO: folder of the images that --annotations lists."""
    det_data: str | None = None
    """A model of both tasks: where boxes come from, as KIND:FOLDER."""
    seg_data: str | None = None
    """A model of both tasks: where masks come from, as KIND:FOLDER."""
    labels: Literal["auto", "masks", "instances", "panoptic"] | None = None
    """Where masks come from: PNG files, COCO's instances drawn as masks, or COCO's panoptic PNGs."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the mask values; by default the data set's."""
    binary_masks: bool | None = None
    """The masks hold 0 and 255, and 255 is a class (foreground), not what is to be ignored."""
    sample: int = 200
    """Images to compare on, spread evenly over the split."""
    tolerance: float = 0.1
    """Most points of mAP or mIoU by which the file may differ from its checkpoint; 1 at most."""
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What runs the file in the comparison; auto is ONNX Runtime, and OpenVINO for bfloat16."""
    threads: int | None = None
    """Threads that the file may use; by default as many as PyTorch uses."""
    batch_size: int = 8
    """Images in a forward pass."""
    workers: int = 0
    """Processes that load images; 0 loads in the main process."""
    skip_broken: bool = False
    """Leave out images that are missing or cannot be read, and count them, where otherwise the tool would stop."""

    def __post_init__(self) -> None:
        if self.out is not None and not is_exported(self.out):
            raise UserError(f"out is {self.out}, expected a name that ends in {SUFFIX}")
        if self.precision == "bfloat16" and self.runtime == "onnxruntime":
            raise UserError(
                "--precision bfloat16 has no effect on ONNX Runtime, which computes in float32: leave out --runtime, "
                "or take --precision float32"
            )
        for name in ("image_size", "max_detections", "sample", "threads", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected 1 or more")
        for name in ("score_threshold", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}, expected a number between 0 and 1")
        if not 0 <= self.tolerance <= LARGEST_TOLERANCE:
            raise UserError(f"tolerance is {self.tolerance}, expected 0 to {LARGEST_TOLERANCE:g} points")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}, expected 0 or more")

    @property
    def path(self) -> Path:
        """The file that is to be written."""
        return self.model.with_suffix(SUFFIX) if self.out is None else self.out

    def selection(self) -> dict[str, Any]:
        """Return what is set of which boxes become detections."""
        return {name: getattr(self, name) for name in _SELECTION if getattr(self, name) is not None}

    def score_settings(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the evaluations that are compared, as plain values by the names they have there.

        Args:
            header: of the checkpoint, which says what it was trained on.

        Raises:
            UserError: it does not, and no data set is named.
        """
        mapping = to_mapping(self)
        given = {name: mapping[name] for name in _DATA if mapping[name] is not None}
        same = {name: mapping[name] for name in ("model", "batch_size", "workers", "skip_broken")}
        if self.dataset != "auto":
            return {**same, "dataset": self.dataset, **given}
        if any(name in given for name in _SOURCES):
            return {**same, **given}
        data = _data_of_run(header.get("config"), header.get("task"))
        if "dataset" not in data:
            raise UserError(
                f"{self.model} does not say what it was trained on, and an exported file is compared with its "
                "checkpoint on labelled images: name them by --dataset and --data-root"
            )
        return {**same, **data, **given}


def _data_of_run(run: Any, task: Any) -> dict[str, Any]:
    """Return the settings of an evaluation of a task on the data that a training run was evaluated on, if it says so.

    Args:
        run: its settings.
        task: of the model: either, of a run that trained both, has the data of its own labels.
    """
    if not isinstance(run, Mapping):
        return {}
    theirs = {"split": "val_split", "annotations": "val_annotations", "images": "val_images"}
    names = {name: theirs.get(name, name) for name in ("dataset", *_DATA)}
    data = {name: run[of_run] for name, of_run in names.items() if run.get(of_run) is not None}
    if task == MULTITASK:
        return data
    sources = {SEGMENTATION: data.pop("seg_data", None), DETECTION: data.pop("det_data", None)}
    if any(sources.values()):
        kind, _, folder = str(sources.get(task) or "").partition(":")
        data = {name: value for name, value in data.items() if name in ("split", *_MASKS)}
        data |= {"dataset": kind, "data_root": folder} if kind else {}
    return {name: value for name, value in data.items() if task == SEGMENTATION or name not in _MASKS}


def ignored_settings(config: ExportConfig, task: str) -> dict[str, str]:
    """Return the settings that a model of a task would ignore, each with the reason.

    Args:
        config: the settings.
        task: of the model.
    """
    if task == DETECTION:
        return dict.fromkeys((*_MASKS, *_SOURCES, "window"), f"{config.model} is a detector")
    if task == SEGMENTATION:
        return dict.fromkeys((*_SELECTION, *_SOURCES), f"{config.model} is a segmentation model")
    return {"window": f"{config.model} is a multitask model, which sees images whole"}
