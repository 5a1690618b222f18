"""The settings of ``eval-multi``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from effdense.datasets.data_sources import parse_source
from effdense.tasks.detection import score_config as detection
from effdense.tasks.segmentation import score_config as segmentation

_DATA = ("dataset", "data_root", "annotations", "images")
_BOXES = ("evaluator", "max_detections", "score_threshold", "nms", "nms_iou", "confusion_score")
_MASKS = ("labels", "classes", "binary_masks", "boundary", "calibration")


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, on what, and how."""

    model: Path
    """A .safetensors file of a multitask training run, or an .onnx file of `effdense export`."""
    dataset: Literal["demo", "coco", "voc"] = "demo"
    """Which kind of data set has both boxes and masks: the built-in demo scenes, COCO JSON, or Pascal VOC. A
    folder of masks has no boxes: name it by --seg-data folder:DIR."""
    data_root: Path | None = None
    """Folder of the data set, by default data/voc or data/coco; the demo set needs none."""
    split: str = "val"
    """Split to score on."""
    det_data: str | None = None
    """In place of --dataset: where the boxes come from, as KIND:FOLDER, such as voc:DIR or coco:DIR; alone, nothing but
    boxes is scored."""
    seg_data: str | None = None
    """In place of --dataset: where the masks come from, as KIND:FOLDER, such as voc:DIR, folder:DIR or coco:DIR; alone,
    nothing but masks is scored."""
    annotations: Path | None = None
    """COCO: annotation file with boxes and outlines, in place of a data set of a known layout; goes with --images."""
    images: Path | None = None
    """COCO: folder of the images that --annotations lists."""
    labels: Literal["auto", "masks", "instances", "panoptic"] = "auto"
    """Where the masks come from: PNG files, COCO's instances drawn as masks, or COCO's panoptic PNGs."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the mask values; by default the data set's."""
    binary_masks: bool = False
    """The masks hold 0 and 255, and 255 is a class (foreground), not what is to be ignored."""
    evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """Which library computes COCO's numbers; they agree to the last bit."""
    max_detections: int | None = None
    """Most detections an image; by default what the model was trained with."""
    score_threshold: float | None = None
    """Detections below this score are dropped; by default what the model was trained with."""
    nms: Literal["hard", "soft"] | None = None
    """Non-maximum suppression; by default what the model was trained with."""
    nms_iou: float | None = None
    """Overlap above which hard suppression drops a box; by default what the model was trained with."""
    image_size: int | None = None
    """Side of the square that images are fitted into, in pixels, a multiple of 32; by default what the model was
    trained with."""
    confusion_score: float = 0.25
    """Score from which a detection counts in the confusion matrix."""
    boundary: bool = True
    """Boundary IoU of the masks too (Cheng et al. 2021)."""
    calibration: bool = True
    """Calibration error of the masks too."""
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
    """Folder for detection/ and segmentation/, each with metrics.json, per_class.csv and pictures, and detections.json;
    nothing is written without it."""

    def __post_init__(self) -> None:
        self.detection()  # their checks hold here too
        self.segmentation()

    @property
    def sources_named(self) -> bool:
        """Whether boxes and masks have a data set each, in place of one for both."""
        return self.det_data is not None or self.seg_data is not None

    @property
    def with_boxes(self) -> bool:
        """Whether boxes are scored."""
        return self.det_data is not None or not self.sources_named

    @property
    def with_masks(self) -> bool:
        """Whether masks are scored."""
        return self.seg_data is not None or not self.sources_named

    def detection(self) -> detection.ScoreConfig:
        """Return these settings as those of ``eval-det``."""
        return detection.ScoreConfig(**_of_task(self, detection.ScoreConfig, self.det_data, "detection"))

    def segmentation(self) -> segmentation.ScoreConfig:
        """Return these settings as those of ``eval-seg``."""
        return segmentation.ScoreConfig(**_of_task(self, segmentation.ScoreConfig, self.seg_data, "segmentation"))


def _of_task(config: ScoreConfig, kind: Any, source: str | None, task: str) -> dict[str, Any]:
    names = {one.name for one in fields(kind)} & {one.name for one in fields(config)}
    values = {name: getattr(config, name) for name in names}
    if config.sources_named:
        values |= {"annotations": None, "images": None, "data_root": None}
    if source is not None:
        parsed = parse_source(source, task)
        values |= {"dataset": parsed.name, "data_root": parsed.root}
    return values


def ignored_settings(config: ScoreConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    ignored = {
        **detection.ignored_settings(config.detection()),
        **segmentation.ignored_settings(config.segmentation()),
    }
    if not config.with_boxes:
        ignored |= dict.fromkeys(_BOXES, "--seg-data alone names no boxes")
    if not config.with_masks:
        ignored |= dict.fromkeys(_MASKS, "--det-data alone names no masks")
    if config.sources_named:
        ignored |= dict.fromkeys(_DATA, "--det-data and --seg-data name the data")
    return ignored
