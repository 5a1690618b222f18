"""The settings of ``eval-seg``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError
from effdense.runtime.settings import ignored_for_kind
from effdense.tasks.segmentation.inference import Inference


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, on what, and how."""

    model: Path | None = None
    """A .safetensors file of a training run, or an .onnx file of `effdense export`; left out with --predictions."""
    dataset: Literal["demo", "coco", "voc", "folder"] = "demo"
    """Which kind of data set: the built-in demo scenes, COCO JSON, Pascal VOC, or folders images/ and masks/."""
    data_root: Path | None = None
    """Folder of the data set, by default data/voc or data/coco; the demo set needs none."""
    split: str = "val"
    """Split to score on."""
    labels: Literal["auto", "masks", "instances", "panoptic"] = "auto"
    """Where the masks come from: PNG files, COCO's instances drawn as masks, or COCO's panoptic PNGs."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the mask values; by default the data set's, with --predictions numbers."""
    binary_masks: bool = False
    """The masks hold 0 and 255, and 255 is a class (foreground), not what is to be ignored."""
    predictions: Path | None = None
    """Folder of index PNGs to score in place of a model; goes with --annotations and --num-classes."""
    annotations: Path | None = None
    """The truth: a folder of index PNGs for --predictions, or with --images a COCO file of no known layout."""
    images: Path | None = None
    """COCO: folder of the images that --annotations lists."""
    num_classes: int | None = None
    """With --predictions: how many classes there are, 255 not counted."""
    image_size: int | None = None
    """Side of the square that the network sees, in pixels; by default what the model was trained with."""
    window: int | None = None
    """Slide a window of this side over the image, in pixels; by default as the model was trained, 0 for the whole."""
    stride: int | None = None
    """Pixels from one window to the next; by default three quarters of --window."""
    scene_size: int | None = None
    """With a window: side of the square that the image is fitted into first, in pixels; 0 keeps its own pixels."""
    tta: tuple[str, ...] | None = None
    """Average over hflip, vflip and scales such as 0.75 and 1.25."""
    boundary: bool = True
    """Boundary IoU too (Cheng et al. 2021)."""
    calibration: bool = True
    """Calibration error too."""
    batch_size: int = 8
    """Images, or windows, in a forward pass."""
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
    """Folder for metrics.json, per_class.csv and pictures; nothing is written without it."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.predictions is None):
            raise UserError("score either a model file or --predictions FOLDER, and not both")
        if self.predictions is not None and (self.annotations is None or self.num_classes is None):
            raise UserError("--predictions needs the truth and how many classes: --annotations FOLDER --num-classes N")
        if self.predictions is None and self.num_classes is not None:
            raise UserError("--num-classes goes with --predictions; a model knows its classes")
        if self.predictions is None and (self.annotations is None) != (self.images is None):
            raise UserError("--annotations and --images go together: give both or neither")
        if self.predictions is None and self.annotations is not None and self.dataset != "coco":
            raise UserError(f"--annotations belongs to --dataset coco, not to {self.dataset}")
        if self.dataset == "demo" and self.data_root is not None:
            raise UserError("--data-root has no effect on the demo set: name another --dataset, or leave it out")
        if self.num_classes is not None and not 1 <= self.num_classes <= 255:
            raise UserError(f"num_classes is {self.num_classes}, expected 1 to 255")
        if self.classes is not None and self.num_classes is not None and len(self.classes) != self.num_classes:
            raise UserError(f"--classes names {len(self.classes)} classes and --num-classes says {self.num_classes}")
        for name in ("batch_size", "image_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected 1 or more")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}, expected 0 or more")
        Inference(self.window, self.stride, self.scene_size, self.tta or ())


def ignored_settings(config: ScoreConfig) -> dict[str, str]:
    """Return the settings that the chosen combination would ignore, each with the reason."""
    built_in = ("image_size", "window", "stride", "scene_size", "tta")
    ignored = ignored_for_kind(config.model, built_in=built_in, one_by_one=True)
    if config.predictions is not None:
        unused = ["dataset", "data_root", "split", "labels", "images", "image_size", "window", "stride"]
        unused += ["scene_size", "tta", "batch_size", "workers", "device", "runtime", "threads", "skip_broken"]
        ignored |= dict.fromkeys(unused, "--predictions are scored as they are")
        ignored["calibration"] = "--predictions are labels without probabilities"
    elif config.annotations is not None:
        ignored |= {"data_root": "--annotations names the file", "split": "--annotations names the file"}
    if config.window == 0:
        ignored |= dict.fromkeys(("stride", "scene_size"), "--window 0 takes images as a whole")
    return ignored
