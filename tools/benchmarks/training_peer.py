"""The plain loop around effdet's model, labeler and loss that ours is measured beside: data, step, schedule."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from effdense.tools.benchmarks.effdet_parts import effdet_config, effdet_model

if TYPE_CHECKING:
    import torch

PIXEL_MEAN, PIXEL_STD = 127.0, 128.0
CLIP_NORM, WEIGHT_DECAY, LEARNING_RATE = 10.0, 1e-4, 2e-3


@dataclass(frozen=True)
class Peer:
    """effdet in training.

    Attributes:
        network: its EfficientDet.
        bench: its DetBenchTrain around the network.
        epoch: trains on every image once.
    """

    network: Any
    bench: Any
    epoch: Callable[[], None]


def build_peer(
    root: Path,
    names: tuple[str, ...],
    arch: str,
    size: int,
    batch_size: int,
    *,
    device: str,
    amp: bool,
    workers: int = 0,
) -> Peer:
    """Return effdet with AdamW, clipping and a schedule on a VOC folder's trainval split.

    Args:
        root: of the data set.
        names: the classes.
        arch: ``d0``, ``lite0`` ...
        size: side of the image, in pixels.
        batch_size: images a step.
        device: ``cpu`` or ``cuda``.
        amp: run the network under autocast to bfloat16; effdet computes its loss in float32.
        workers: processes that load, which stay from epoch to epoch; on a GPU batches come in page-locked memory.
    """
    import torch
    from torch.utils.data import DataLoader

    config = effdet_config(arch, size, len(names))
    network = effdet_model(config).to(device)
    from effdet import DetBenchTrain

    bench = DetBenchTrain(network, create_labeler=True).to(device)
    photos: Any = _Photos([_Photo(root, name, names, size) for name in _split(root)])
    loader: Any = DataLoader(
        photos,
        batch_size,
        shuffle=True,
        collate_fn=_collate,
        drop_last=True,
        num_workers=workers,
        pin_memory=device == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(step / 1e4)))

    def epoch() -> None:
        network.train()
        total = torch.zeros((), device=device)
        for images, boxes, classes in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            there = [[one.to(device, non_blocking=True) for one in some] for some in (boxes, classes)]
            target = {"bbox": there[0], "cls": there[1]}
            with torch.autocast(device, torch.bfloat16, enabled=amp):
                loss = bench(images, target)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        total.item()  # for the log; once an epoch, so that no step waits for a GPU

    return Peer(network, bench, epoch)


@dataclass(frozen=True)
class _Photo:
    """One image of a VOC folder: read, flipped, scaled by 0.8 to 1.25, cropped, padded, normalised."""

    root: Path
    name: str
    classes: tuple[str, ...]
    size: int

    def sample(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import cv2
        import torch

        stored = cv2.imread(str(self.root / "JPEGImages" / f"{self.name}.jpg"))
        assert stored is not None
        image: Any = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
        boxes, labels = self._objects()
        height, width = image.shape[:2]
        if random.random() < 0.5:
            image, boxes[:, [0, 2]] = image[:, ::-1], width - boxes[:, [2, 0]]
        factor = self.size / max(height, width) * random.uniform(0.8, 1.25)
        scaled = cv2.resize(np.ascontiguousarray(image), (round(width * factor), round(height * factor)))
        top = random.randint(0, max(0, scaled.shape[0] - self.size))
        left = random.randint(0, max(0, scaled.shape[1] - self.size))
        scaled = scaled[top : top + self.size, left : left + self.size]
        boxes = (boxes * factor - [left, top, left, top]).clip(0, self.size)
        kept = (boxes[:, 2:] - boxes[:, :2] > 2).all(1)
        square = np.full((self.size, self.size, 3), int(PIXEL_MEAN), np.uint8)
        square[: scaled.shape[0], : scaled.shape[1]] = scaled
        pixels = (torch.from_numpy(square).permute(2, 0, 1).float() - PIXEL_MEAN) / PIXEL_STD
        yxyx = torch.from_numpy(boxes[kept][:, [1, 0, 3, 2]].astype(np.float32))
        return pixels, yxyx, torch.from_numpy(labels[kept])

    def _objects(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        root = ElementTree.parse(self.root / "Annotations" / f"{self.name}.xml").getroot()
        boxes, labels = [], []
        for one in root.iter("object"):
            boxes.append([float(one.findtext(f"bndbox/{edge}", "0")) for edge in ("xmin", "ymin", "xmax", "ymax")])
            labels.append(self.classes.index(one.findtext("name", "")) + 1)
        return np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.float32)


class _Photos:
    """What PyTorch's loader asks for."""

    def __init__(self, photos: list[_Photo]) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.photos[position].sample()


def _one_thread(worker: int) -> None:
    """Leave the cores to the other workers."""
    import cv2

    cv2.setNumThreads(0)


def _collate(samples: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> tuple[Any, list[Any], list[Any]]:
    import torch

    images, boxes, labels = zip(*samples, strict=True)
    return torch.stack(images), list(boxes), list(labels)


def _split(root: Path) -> list[str]:
    return (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
