"""Image files to augmented training images, on one core, beside effdet's and torchvision's own ways; and more workers.

All three flip, scale by a factor of 0.1 to 2 and crop or pad to a square, with boxes: EfficientDet's augmentation.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line, Part, Row, row
from effdense.tools.benchmarks.scenes import scene, write_jpeg
from effdense.tools.benchmarks.timing import Ratio, alternate

if TYPE_CHECKING:
    from effdense.datasets.index import DetectionIndex

SIZES = (512, 320)
IMAGE_HW = (480, 640)
SCALE = (0.1, 2.0)
FILL = (124, 116, 104)
TARGET = 2.0
WORKERS = (1, 2, 4, 8)
_BOXES = 8
_BATCH = 8


def run(settings: BenchSettings) -> list[Row]:
    """Measure both sizes, as it is and with ``--fast-decode``; one thread each."""
    import cv2
    import torch

    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            index = write_photos(Path(folder), 8 if settings.quick else 64)
            for size in SIZES[:1] if settings.quick else SIZES:
                rows += _rows(settings, index, size)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    return rows


def _rows(settings: BenchSettings, index: DetectionIndex, size: int) -> list[Row]:
    peers = {"effdet's PIL loader": effdet_loader(index, size), "torchvision v2": torchvision_loader(index, size)}
    ours = {"": our_loader(index, size), ", --fast-decode": our_loader(index, size, fast_decode=True)}
    samples = alternate(ours | peers, repeats=settings.rounds(15), warmup=1)
    notes = {
        "": "pixels as evaluation has them",
        ", --fast-decode": "JPEG decoded at 1/2 to 1/8 where it is shrunk; bilinear down to a half",
    }
    return [
        row(
            f"{IMAGE_HW[1]}x{IMAGE_HW[0]} JPEG to {size} px{way}",
            Ratio.of(samples[way], samples[peer]),
            target=TARGET,
            unit="images/s",
            units_per_sample=len(index),
            note=note,
            against=peer,
        )
        for way, note in notes.items()
        for peer in peers
    ]


def write_photos(folder: Path, count: int) -> DetectionIndex:
    """Write JPEGs with boxes and return their index."""
    from effdense.datasets.index import DetectionIndex, pack_names

    height, width = IMAGE_HW
    names = [write_jpeg(folder / f"{seed}.jpg", scene(height, width, seed)).name for seed in range(count)]
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (count * _BOXES, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(-1, 4)
    total = len(boxes)
    return DetectionIndex(
        name="photos",
        split="train",
        source=folder,
        images_dir=folder,
        class_names=("thing",),
        category_ids=(1,),
        file_names=pack_names(names),
        image_ids=np.arange(count, dtype=np.int64),
        sizes_hw=np.tile(np.array(IMAGE_HW, np.int64), (count, 1)),
        offsets=np.arange(count + 1, dtype=np.int64) * _BOXES,
        boxes_xyxy=boxes.astype(np.float32),
        boxes_written_xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        labels=np.zeros(total, np.int64),
        crowd=np.zeros(total, np.bool_),
        difficult=np.zeros(total, np.bool_),
        annotation_ids=np.arange(total, dtype=np.int64),
        lines=np.zeros(total, np.int32),
        annotation_names=pack_names([]),
    )


def our_loader(index: DetectionIndex, size: int, *, fast_decode: bool = False) -> Callable[[], object]:
    """Return what loads every image once, as training does; each pass is another epoch."""
    from effdense.datasets.loading import SampleData
    from effdense.transforms import train_transform

    transform = train_transform(image_size_hw=(size, size), fill=FILL, scale=SCALE)
    data = SampleData(index, transform, fast_decode=fast_decode)
    epochs = iter(range(10**9))

    def load() -> object:
        epoch = next(epochs)
        return [data[epoch, position].image.shape for position in range(len(data))]

    return load


def effdet_loader(index: DetectionIndex, size: int) -> Callable[[], object]:
    """Return the same by effdet's transforms, which work on Pillow's images."""
    from effdet.data.transforms import transforms_coco_train
    from PIL import Image

    transform = transforms_coco_train(size, use_prefetcher=True)
    random.seed(0)

    def load() -> object:
        shapes = []
        for position in range(len(index)):
            rows = slice(int(index.offsets[position]), int(index.offsets[position + 1]))
            boxes_yxyx = index.boxes_xyxy[rows][:, [1, 0, 3, 2]]
            image = Image.open(index.path(position)).convert("RGB")
            shapes.append(transform(image, {"bbox": boxes_yxyx, "cls": index.labels[rows] + 1})[0].shape)
        return shapes

    return load


def torchvision_loader(index: DetectionIndex, size: int) -> Callable[[], object]:
    """Return the same by torchvision's v2 transforms on uint8 tensors."""
    import torch
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_image, read_file

    transform = _torchvision_transform(size)
    torch.manual_seed(0)

    def load() -> object:
        shapes = []
        for position in range(len(index)):
            rows = slice(int(index.offsets[position]), int(index.offsets[position + 1]))
            image = tv_tensors.Image(decode_image(read_file(str(index.path(position))), ImageReadMode.RGB))
            boxes = tv_tensors.BoundingBoxes(
                torch.from_numpy(index.boxes_xyxy[rows].copy()), format="XYXY", canvas_size=image.shape[-2:]
            )
            sample = {"image": image, "boxes": boxes, "labels": torch.from_numpy(index.labels[rows].copy())}
            shapes.append(transform(sample)["image"].shape)
        return shapes

    return load


def _torchvision_transform(size: int) -> Any:
    """Return torchvision's large-scale jitter in the order of its detection reference, on tensors.

    ``RandomCrop(pad_if_needed=True)`` would pad on all four sides and take a twentieth to a tenth longer.
    """
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    def pad(sample: dict[str, Any]) -> dict[str, Any]:
        height, width = sample["image"].shape[-2:]
        edges = [0, 0, max(0, size - width), max(0, size - height)]
        if not any(edges):
            return sample
        image = functional.pad(sample["image"], edges, fill=list(FILL))
        return sample | {"image": image, "boxes": functional.pad(sample["boxes"], edges)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return v2.Compose(
            [
                v2.ScaleJitter((size, size), scale_range=SCALE, antialias=True),
                pad,
                v2.RandomCrop((size, size)),
                v2.RandomHorizontalFlip(0.5),
                v2.SanitizeBoundingBoxes(),
            ]
        )


def by_workers(settings: BenchSettings) -> list[Line]:
    """Return images a second of whole batches, with a growing number of worker processes."""
    from effdense.datasets.loading import train_loader
    from effdense.transforms import train_transform

    size = 512
    transform = train_transform(image_size_hw=(size, size), fill=FILL, scale=SCALE)
    counts = WORKERS[:1] if settings.quick else WORKERS
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), 16 if settings.quick else 64)
        index = photos if settings.quick else photos.select(np.tile(np.arange(64), 16))
        for label, fast in {"effdense": False, "effdense --fast-decode": True}.items():
            rates = []
            for workers in counts:
                loader = train_loader(index, transform, batch_size=_BATCH, workers=workers, fast_decode=fast)
                samples = alternate({label: partial(list, loader)}, repeats=settings.rounds(3), warmup=1)
                rates.append(len(loader) * _BATCH / float(np.median(samples[label])))
            lines.append(Line(label, counts, tuple(rates)))
    return lines


PART = Part("loading", "loading and augmenting on one core, scale 0.1 to 2", "effdet 0.4.1, torchvision v2", run)
CURVES = (Curve("workers", "loading and augmenting, 640x480 JPEG to 512 px", "workers", "images/s", by_workers),)
