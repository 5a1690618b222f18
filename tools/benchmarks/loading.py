"""Image files to augmented training images, on one core, beside effdet's and torchvision's own ways; and more workers.

All three flip, scale by a factor of 0.1 to 2 and crop or pad to a square, with boxes: EfficientDet's augmentation. What
each draws is its own, so before they are timed they are compared without flips and at scale 1: same size, same boxes,
and pixels as near as ways to shrink an image come.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effdense.tools.benchmarks.checks import check_close
from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line, Part, Row, Unequal, row
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
CHECKED = 4
"""Images that are compared."""
PIXELS, EDGES = 2.0, 0.5
"""How far images may be apart on average, in grey levels of 255, and edges of boxes, in pixels."""
Load = Callable[[int], tuple[Any, Any]]
"""Loads the image of a row: pixels (H, W, 3) or (3, H, W), uint8, and boxes_xyxy (N, 4)."""
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
    makers: dict[str, Callable[..., Load]] = {
        "": partial(our_loader, index, size),
        ", --fast-decode": partial(our_loader, index, size, fast_decode=True),
        "effdet's PIL loader": partial(effdet_loader, index, size),
        "torchvision v2": partial(torchvision_loader, index, size),
    }
    peers = list(makers)[2:]
    check_same_images({name or "ours": make(still=True) for name, make in makers.items()}, min(CHECKED, len(index)))
    calls = {name: partial(load_all, make(), len(index)) for name, make in makers.items()}
    samples = alternate(calls, repeats=settings.rounds(15), warmup=1)
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
    corners = np.sort(rng.uniform(0, 0.95, (count * _BOXES, 2, 2)), axis=1)
    corners[:, 1] += 0.05  # large enough for all three to keep at scale 1
    corners *= [width, height]
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


def load_all(load: Load, count: int) -> object:
    """Load every image once and keep none."""
    return [load(position)[0].shape for position in range(count)]


def check_same_images(loads: Mapping[str, Load], count: int) -> None:
    """See that all ways make the same of the first images, where nothing is drawn; the first way is compared with all.

    Raises:
        Unequal: they do not.
    """
    name, *others = loads
    for position in range(count):
        image, boxes = loads[name](position)
        for other in others:
            theirs, their_boxes = loads[other](position)
            what = f"{name} beside {other}, image {position}"
            pixels, their_pixels = (np.asarray(one, np.float32) for one in (image, theirs))
            if their_pixels.shape[0] == 3:
                their_pixels = np.moveaxis(their_pixels, 0, 2)
            check_close(f"{what}: shape", pixels.shape, their_pixels.shape)
            if (apart := float(np.abs(pixels - their_pixels).mean())) > PIXELS:
                raise Unequal(f"{what}: pixels are {apart:.1f} of 255 apart on average, expected {PIXELS:g} or less")
            check_close(f"{what}: number of boxes", len(boxes), len(their_boxes))
            if (apart := float(np.abs(np.asarray(boxes) - np.asarray(their_boxes)).max(initial=0))) > EDGES:
                raise Unequal(f"{what}: boxes are {apart:.1f} px apart, expected {EDGES:g} or less")


def our_loader(index: DetectionIndex, size: int, *, fast_decode: bool = False, still: bool = False) -> Load:
    """Return what loads an image as training does; each time in the epoch after.

    Args:
        index: the images.
        size: side of the square, in pixels.
        fast_decode: as the setting.
        still: draw nothing: no flip, scale 1.
    """
    from effdense.datasets.loading import SampleData
    from effdense.transforms import train_transform

    scale, hflip = _drawn(still)
    transform = train_transform(image_size_hw=(size, size), fill=FILL, scale=scale, hflip=hflip)
    data = SampleData(index, transform, fast_decode=fast_decode)
    epochs = [0] * len(index)

    def load(position: int) -> tuple[Any, Any]:
        sample = data[epochs[position], position]
        epochs[position] += 1
        return sample.image, sample.boxes_xyxy

    return load


def effdet_loader(index: DetectionIndex, size: int, *, still: bool = False) -> Load:
    """Return the same by effdet's transforms, which work on Pillow's images; bilinear, as all here are."""
    from effdet.data.transforms import transforms_coco_train
    from PIL import Image

    transform: Any = transforms_coco_train(size, interpolation="bilinear", use_prefetcher=True)
    flip, resize, _ = transform.transforms
    resize.scale, flip.prob = _drawn(still)
    random.seed(0)

    def load(position: int) -> tuple[Any, Any]:
        rows = slice(int(index.offsets[position]), int(index.offsets[position + 1]))
        boxes_yxyx = index.boxes_xyxy[rows][:, [1, 0, 3, 2]]
        image = Image.open(index.path(position)).convert("RGB")
        pixels, annotation = transform(image, {"bbox": boxes_yxyx, "cls": index.labels[rows] + 1})
        return pixels, annotation["bbox"][:, [1, 0, 3, 2]]

    return load


def torchvision_loader(index: DetectionIndex, size: int, *, still: bool = False) -> Load:
    """Return the same by torchvision's v2 transforms on uint8 tensors."""
    import torch
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_image, read_file

    transform = _torchvision_transform(size, *_drawn(still))
    torch.manual_seed(0)

    def load(position: int) -> tuple[Any, Any]:
        rows = slice(int(index.offsets[position]), int(index.offsets[position + 1]))
        image = tv_tensors.Image(decode_image(read_file(str(index.path(position))), ImageReadMode.RGB))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(index.boxes_xyxy[rows].copy()), format="XYXY", canvas_size=image.shape[-2:]
        )
        sample = {"image": image, "boxes": boxes, "labels": torch.from_numpy(index.labels[rows].copy())}
        found = transform(sample)
        return found["image"], found["boxes"]

    return load


def _drawn(still: bool) -> tuple[tuple[float, float], float]:
    """Return the range of the scale and the probability of a flip."""
    return ((1.0, 1.0), 0.0) if still else (SCALE, 0.5)


def _torchvision_transform(size: int, scale: tuple[float, float], hflip: float) -> Any:
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
                v2.ScaleJitter((size, size), scale_range=scale, antialias=True),
                pad,
                v2.RandomCrop((size, size)),
                v2.RandomHorizontalFlip(hflip),
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
                check_close("images in an epoch", sum(len(batch.images) for batch in loader), len(index))
                samples = alternate({label: partial(deque, loader, 0)}, repeats=settings.rounds(3), warmup=0)
                rates.append(len(loader) * _BATCH / float(np.median(samples[label])))
            lines.append(Line(label, counts, tuple(rates)))
    return lines


PART = Part("loading", "loading and augmenting on one core, scale 0.1 to 2", "effdet 0.4.1, torchvision v2", run)
CURVES = (Curve("workers", "loading and augmenting, 640x480 JPEG to 512 px", "workers", "images/s", by_workers),)
