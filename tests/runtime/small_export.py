"""A small model of both tasks that is exported once, and images whose truth is what the model itself finds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch

from effdense.model_parts import DETECTION, SEGMENTATION, header_of_part
from effdense.runtime.onnx_header import read_onnx_header, write_header
from effdense.tasks.multitask.export import export_multitask
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask

SIDE = 64
SIZES = [(64, 64), (40, 60), (64, 64), (100, 70), (33, 129), (64, 40)]


@dataclass(frozen=True)
class Exported:
    """What the tests of this folder share; not to be changed.

    Attributes:
        model: of both tasks.
        checkpoint: its file.
        files: its exported file as "multitask", and the same file with the header of either task alone.
        data: a folder with boxes/ in COCO's layout, and pixels/ with images/ and masks/.
    """

    model: Multitask
    checkpoint: Path
    files: dict[str, Path]
    data: Path


def export_small(folder: Path) -> Exported:
    """Make all of it in a folder."""
    model = small_model()
    model.header = {"config": run_config(folder / "data"), "epoch": 3, "scores": None}
    model.save(folder / "multi.safetensors")
    for task, part in ((DETECTION, model.detector), (SEGMENTATION, model.segmenter)):
        part.save(folder / f"{task}.safetensors")
    files = {name: folder / f"{name}.onnx" for name in ("multitask", DETECTION, SEGMENTATION)}
    export_multitask(model, files["multitask"])
    for task in (DETECTION, SEGMENTATION):
        file = onnx.load(files["multitask"])
        write_header(file, header_of_part(read_onnx_header(files["multitask"]), task))
        onnx.save(file, files[task])
    write_data(folder / "data", model)
    return Exported(model, folder / "multi.safetensors", files, folder / "data")


def small_model() -> Multitask:
    """Return a network whose scores lie apart and whose pixels have several classes, without any training."""
    torch.manual_seed(0)
    names = {"class_names": ("ant", "bee"), "seg_class_names": ("ground", "low", "high")}
    small = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
    network = create_multitask("lite0", 2, 3, "linknet", image_size=SIDE, **names, **small)  # type: ignore[arg-type]
    parameters = dict(network.named_parameters())
    images = torch.from_numpy(np.stack([photo(0, (SIDE, SIDE)), photo(1, (SIDE, SIDE))])).permute(0, 3, 1, 2)
    with torch.no_grad():
        parameters["detection.head.classes.predict.pointwise.weight"] *= 3
        logits = network.eval()(images)[2]
        parameters["segmentation.head.0.bias"] -= logits.mean((0, 2, 3))
    return Multitask(network)


def photo(number: int, size_hw: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), np.uint8)


def write_data(root: Path, model: Multitask) -> None:
    """Write images, with the best boxes and the label maps that a model finds in them as their truth."""
    for folder in ("boxes/annotations", "boxes/val", "pixels/images/val", "pixels/masks/val"):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for number, size_hw in enumerate(SIZES, start=1):
        picture, name = photo(number, size_hw), f"{number}.png"
        found = model.predict(picture)
        cv2.imwrite(str(root / "boxes/val" / name), picture[..., ::-1])
        (root / "pixels/images/val" / name).symlink_to(root / "boxes/val" / name)
        cv2.imwrite(str(root / "pixels/masks/val" / name), found.segmentation.mask)
        images.append({"id": number, "file_name": name, "width": size_hw[1], "height": size_hw[0]})
        best = found.detections
        for (x1, y1, x2, y2), label in zip(best.boxes_xyxy[:6].tolist(), best.labels[:6].tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, **box})
    categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes/annotations/instances_val.json").write_text(json.dumps(content))
    (root / "pixels/classes.txt").write_text("ground\nlow\nhigh\n")


def run_config(root: Path) -> dict[str, object]:
    """Return the settings of the training run that would have made the model."""
    sources = {"det_data": f"coco:{root / 'boxes'}", "seg_data": f"folder:{root / 'pixels'}"}
    return {"dataset": "demo", "data_root": None, "val_split": "val", "labels": "auto", "classes": None, **sources}
