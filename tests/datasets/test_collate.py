"""Samples to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from effdense.datasets.collate import collate
from effdense.types import Sample


def _sample(boxes: int, size_hw: tuple[int, int] = (4, 6), mask: bool = False) -> Sample:
    return Sample(
        image=np.arange(np.prod(size_hw) * 3, dtype=np.uint8).reshape(*size_hw, 3),
        boxes_xyxy=np.arange(boxes * 4, dtype=np.float32).reshape(boxes, 4),
        labels=np.arange(boxes, dtype=np.int64),
        crowd=np.arange(boxes) == 0,
        difficult=np.arange(boxes) == 1,
        mask=np.zeros(size_hw, np.uint8) if mask else None,
        image_id=boxes,
        original_size_hw=(10, 20),
        resized_size_hw=(3, 6),
    )


@pytest.mark.parametrize(
    ("counts", "most"), [([2, 0, 3], 3), ([0], 0), ([0, 0], 0), ([1], 1), ([250, 1], 250)], ids=str
)
def test_boxes_are_padded_to_the_most_and_never_cut(counts: list[int], most: int) -> None:
    samples = [_sample(count) for count in counts]
    batch = collate(samples)
    assert batch.images.shape == (len(counts), 3, 4, 6)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.boxes_xyxy.shape == (len(counts), most, 4)
    assert batch.labels.shape == batch.ignore.shape == (len(counts), most)
    assert batch.labels.dtype == torch.int64
    for row, sample in enumerate(samples):
        count = counts[row]
        assert np.array_equal(batch.boxes_xyxy[row, :count].numpy(), sample.boxes_xyxy)
        assert batch.labels[row].tolist() == [*range(count), *[-1] * (most - count)]
        assert (batch.boxes_xyxy[row, count:] == -1).all()
        assert batch.ignore[row].tolist() == [i < min(2, count) for i in range(most)]
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), sample.image)
    assert batch.image_ids == tuple(counts)
    assert batch.original_sizes_hw.tolist() == [[10, 20]] * len(counts)
    assert batch.resized_sizes_hw.tolist() == [[3, 6]] * len(counts)
    assert batch.masks is None


def test_masks_are_stacked() -> None:
    batch = collate([_sample(1, mask=True), _sample(0, mask=True)])
    assert batch.masks is not None
    assert (batch.masks.shape, batch.masks.dtype) == ((2, 4, 6), torch.uint8)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        pytest.param([], "at least one", id="none"),
        pytest.param([_sample(0), _sample(0, (4, 5))], "one size", id="sizes"),
        pytest.param([_sample(0), _sample(0, mask=True)], "mask", id="some-masks"),
    ],
)
def test_samples_that_do_not_go_together_are_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(samples)
