"""Samples to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from effdense.datasets.collate import collate
from effdense.types import Sample


def _sample(
    boxes: int, size_hw: tuple[int, int] = (4, 6), mask: bool | tuple[int, int] = False, has_boxes: bool = True
) -> Sample:
    return Sample(
        image=np.arange(np.prod(size_hw) * 3, dtype=np.uint8).reshape(*size_hw, 3),
        boxes_xyxy=np.arange(boxes * 4, dtype=np.float32).reshape(boxes, 4),
        labels=np.arange(boxes, dtype=np.int64),
        crowd=np.arange(boxes) == 0,
        difficult=np.arange(boxes) == 1,
        mask=np.zeros(size_hw if mask is True else mask, np.uint8) if mask else None,
        has_boxes=has_boxes,
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
    ("samples", "with_boxes", "with_masks"),
    [
        pytest.param([_sample(2), _sample(0)], [True, True], [False, False], id="boxes"),
        pytest.param(
            [_sample(0, mask=True, has_boxes=False)] * 2, [False, False], [True, True], id="masks",
        ),
        pytest.param([_sample(1, mask=True), _sample(0, mask=True)], [True, True], [True, True], id="both"),
        pytest.param(
            [_sample(1), _sample(0, mask=True, has_boxes=False), _sample(2, mask=True), _sample(0)],
            [True, False, True, True],
            [False, True, True, False],
            id="mixed",
        ),
        pytest.param([_sample(0, has_boxes=False)], [False], [False], id="an image and nothing else"),
    ],
)  # fmt: skip
def test_a_batch_tells_who_carries_which_label(
    samples: list[Sample], with_boxes: list[bool], with_masks: list[bool]
) -> None:
    batch = collate(samples)
    assert (batch.with_boxes.tolist(), batch.with_masks.tolist()) == (with_boxes, with_masks)
    assert batch.with_boxes.dtype == batch.with_masks.dtype == torch.bool
    assert (batch.masks is None) == (not any(with_masks))
    if batch.masks is not None:
        assert [bool((mask == 255).all()) for mask in batch.masks] == [not there for there in with_masks]
        assert [bool((mask == 0).all()) for mask in batch.masks] == with_masks


def test_every_tensor_of_a_batch_moves() -> None:
    moved = collate([_sample(1, mask=True), _sample(0)]).to("meta")
    tensors = {name: value for name, value in vars(moved).items() if isinstance(value, torch.Tensor)}
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}
    assert {"masks", "with_boxes", "with_masks"} < set(tensors)


@pytest.mark.parametrize("positions", [[2, 0], [1], []], ids=str)
def test_rows_of_a_batch_are_the_batch_of_these_images(positions: list[int]) -> None:
    samples = [
        _sample(1, mask=True).replace(image_id=5),
        _sample(0).replace(image_id=7),
        _sample(2).replace(image_id=9),
    ]
    batch = collate(samples)
    rows = batch.rows(positions)
    assert rows.image_ids == tuple(samples[position].image_id for position in positions)
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            found = getattr(rows, name)
            assert found.shape == (len(positions), *value.shape[1:]), name
            assert all(torch.equal(one, value[i]) for one, i in zip(found, positions, strict=True)), name


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        pytest.param([], "at least one", id="none"),
        pytest.param([_sample(0), _sample(0, (4, 5))], "one size", id="sizes"),
        pytest.param([_sample(0, mask=(4, 5))], "the size of its image", id="mask of another size"),
        pytest.param([_sample(0), _sample(0, mask=(1, 6))], "the size of its image", id="mask that would be spread"),
    ],
)
def test_samples_that_do_not_go_together_are_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(samples)
