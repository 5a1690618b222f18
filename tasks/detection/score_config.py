"""The settings of ``eval-det``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError
from effdense.runtime.settings import ignored_for_kind


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, on what, and how."""

    model: Path | None = None
    """A .safetensors file of a training run, or an .onnx file of `effdense export`; left out with --predictions."""
    dataset: Literal["demo", "coco", "voc"] = "demo"
    """Which kind of data set: the built-in demo scenes, COCO JSON, or Pascal VOC XML. A folder of masks has no boxes:
    eval_seg scores on it."""
    data_root: Path | None = None
    """Folder of the data set, by default data/voc or data/coco; the demo set needs none."""
    split: str = "val"
    """Split to score on."""
    predictions: Path | None = None
    """A COCO results file to score in place of a model; goes with --annotations."""
    annotations: Path | None = None
    """COCO annotation file: the truth for --predictions, or with --images a data set of no known layout."""
    images: Path | None = None
    """Folder of the images that --annotations lists."""
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """Which library computes COCO's numbers; they agree to the last bit."""
    iou_type: Literal["bbox", "segm"] = "bbox"
    """With --predictions: compare boxes or masks."""
    max_detections: int | None = None
    """Most detections an image; by default what the model was trained with, 100 for --predictions."""
    score_threshold: float | None = None
    """Detections below this score are dropped; by default what the model was trained with."""
    nms: Literal["hard", "soft"] | None = None
    """Non-maximum suppression; by default what the model was trained with."""
    nms_iou: float | None = None
    """Overlap above which hard suppression drops a box; by default what the model was trained with."""
    image_size: int | None = None
    """Side of the square that images are fitted into, in pixels; by default what the model was trained with."""
    confusion_score: float = 0.25
    """Score from which a detection counts in the confusion matrix."""
    batch_size: int = 8
    """Images in a forward pass."""
    workers: int = 0
    """Processes that load images; 0 loads in the main process."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N; an exported file runs on the CPU."""
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What runs an exported file; auto is ONNX Runtime, and OpenVINO for one exported in bfloat16."""
    threads: int | None = None
    """Threads that an exported file may use; by default as many as PyTorch uses."""
    skip_broken: bool = False
    """Leave out images that are missing or cannot be read, and count them, where otherwise the tool would stop."""
    out: Path | None = None
    """Folder for metrics.json, per_class.csv, pictures and detections.json; nothing is written without it."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.predictions is None):
            raise UserError("score either a model file or --predictions FILE, and not both")
        if self.predictions is not None and self.annotations is None:
            raise UserError("--predictions needs the truth: --annotations instances.json")
        if self.predictions is not None and self.images is not None:
            raise UserError("--images has no effect with --predictions: leave it out")
        if self.predictions is None and (self.annotations is None) != (self.images is None):
            raise UserError("--annotations and --images go together: give both or neither")
        if self.dataset == "demo" and self.data_root is not None:
            raise UserError("--data-root has no effect on the demo set: give --dataset coco or voc, or leave it out")
        if self.predictions is not None and self.max_detections is not None and self.max_detections < 100:
            raise UserError(
                f"--max-detections {self.max_detections} has no effect on --predictions: COCO counts up to 100 an image"
            )
        if self.iou_type == "segm" and self.predictions is None:
            raise UserError("--iou-type segm compares masks, which a detector has none of; it goes with --predictions")
        for name in ("batch_size", "max_detections", "image_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected 1 or more")
        for name in ("score_threshold", "nms_iou", "confusion_score"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}, expected a number between 0 and 1")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}, expected 0 or more")


def ignored_settings(config: ScoreConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    ignored = ignored_for_kind(config.model, built_in=("nms", "nms_iou", "image_size"))
    if config.predictions is not None:
        unused = ["dataset", "data_root", "split", "score_threshold", "nms", "nms_iou", "image_size", "batch_size"]
        unused += ["workers", "device", "runtime", "threads", "skip_broken"]
        ignored |= dict.fromkeys(unused, "--predictions are scored as they are")
    if config.predictions is None and config.annotations is not None:
        ignored |= {"data_root": "--annotations names the file", "split": "--annotations names the file"}
    if config.iou_type == "segm":
        ignored["confusion_score"] = "masks have no confusion matrix"
    if config.out is None:
        ignored["confusion_score"] = "without --out no confusion matrix is drawn"
    if config.nms == "soft":
        ignored["nms_iou"] = "--nms soft has no threshold"
    return ignored
