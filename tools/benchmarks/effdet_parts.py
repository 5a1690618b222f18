"""effdet's own parts, as its users put them together, and what takes our data to its conventions and back."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "effdet 0.4.1"


def effdet_config(name: str, size: int, classes: int) -> Any:
    """Return the configuration of ``tf_efficientdet_{name}`` for square images and so many classes."""
    effdet = _effdet()
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    config.image_size, config.num_classes = (size, size), classes
    return config


def effdet_model(config: Any) -> Any:
    """Return an untrained network, in channels-last memory, as ours is."""
    import torch

    return _effdet().EfficientDet(config, pretrained_backbone=False).to(memory_format=torch.channels_last)


def effdet_boxes(boxes_xyxy: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return boxes (B, M, 4) and labels (B, M), padded with -1, image by image: y before x, classes from 1."""
    there = labels >= 0
    rows = zip(boxes_xyxy[..., [1, 0, 3, 2]], labels, there, strict=True)
    pairs = [(boxes[some], (classes[some] + 1).float()) for boxes, classes, some in rows]
    return [boxes for boxes, _ in pairs], [classes for _, classes in pairs]


def flat(maps: list[Tensor], size: int) -> Tensor:
    """Lay out maps (B, anchors * size, h, w) of all levels as (B, A, size)."""
    import torch

    from effdense.tasks.detection.head import rows_of_anchors

    return torch.cat(rows_of_anchors(maps, size), 1)


def _effdet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts its post-processing, which torch has deprecated
        import effdet
    return effdet
