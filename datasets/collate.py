"""Samples become a Batch: images stacked, boxes padded, absent masks filled with 255."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from effdense.transforms import Transform
from effdense.types import IGNORE_INDEX, Batch, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples whose images have one size; M is the batch's most boxes, and none is cut.

    Samples with boxes, with a mask and with both may be mixed: ``with_boxes`` and ``with_masks`` tell them apart.

    Raises:
        ValueError: no sample, images of different sizes, or a mask of another size than its image.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    if len(sizes := {sample.image.shape for sample in samples}) > 1:
        raise ValueError(f"the images of a batch must have one size, got {sorted(sizes)}")
    count, most = len(samples), max(len(sample.boxes_xyxy) for sample in samples)
    boxes_xyxy = np.full((count, most, 4), -1, np.float32)
    labels = np.full((count, most), -1, np.int64)
    ignore = np.zeros((count, most), np.bool_)
    for row, sample in enumerate(samples):
        rows = slice(len(sample.boxes_xyxy))
        boxes_xyxy[row, rows] = sample.boxes_xyxy
        labels[row, rows] = sample.labels
        ignore[row, rows] = sample.crowd | sample.difficult
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))  # (B, H, W, 3)
    return Batch(
        images=images.permute(0, 3, 1, 2),  # (B, 3, H, W) in channels-last order, as convolutions prefer it
        boxes_xyxy=torch.from_numpy(boxes_xyxy),
        labels=torch.from_numpy(labels),
        ignore=torch.from_numpy(ignore),
        masks=_stacked_masks(samples),
        image_ids=tuple(sample.image_id for sample in samples),
        original_sizes_hw=torch.tensor([sample.original_size_hw for sample in samples], dtype=torch.int64),
        resized_sizes_hw=torch.tensor([sample.resized_size_hw for sample in samples], dtype=torch.int64),
        with_boxes=torch.tensor([sample.has_boxes for sample in samples], dtype=torch.bool),
        with_masks=torch.tensor([sample.mask is not None for sample in samples], dtype=torch.bool),
    )


def _stacked_masks(samples: Sequence[Sample]) -> torch.Tensor | None:
    """Return masks, (B, H, W), those that are absent all 255; None where all are."""
    if all(sample.mask is None for sample in samples):
        return None
    size_hw = samples[0].image.shape[:2]
    masks = np.full((len(samples), *size_hw), IGNORE_INDEX, np.uint8)
    for row, sample in enumerate(samples):
        if sample.mask is None:
            continue
        if sample.mask.shape != size_hw:
            raise ValueError(f"a mask must have the size of its image, {size_hw}, got {sample.mask.shape}")
        masks[row] = sample.mask
    return torch.from_numpy(masks)


def batches(samples: Iterable[Sample], transform: Transform, batch_size: int) -> Iterator[Batch]:
    """Transform samples and stack them, ``batch_size`` at a time, the last batch as small as it comes.

    Args:
        samples: read one after the other, no more of them at once than fit a batch.
        transform: of evaluation: one that draws nothing.
        batch_size: images in a batch.
    """
    rng = np.random.default_rng(0)
    waiting: list[Sample] = []
    for sample in samples:
        waiting.append(transform(sample, rng))
        if len(waiting) == batch_size:
            yield collate(waiting)
            waiting = []
    if waiting:
        yield collate(waiting)
