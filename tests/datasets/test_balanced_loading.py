"""Batches of images with boxes, masks or both: their composition, what an epoch draws, resuming, workers."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch

from effdense.datasets.loading import SampleData, balanced_train_loader, train_loader
from effdense.datasets.sampling import BalancedSampler, Composition
from effdense.errors import UserError
from effdense.transforms import train_transform
from effdense.types import Batch, Bool, Sample

AUGMENTED = train_transform(
    image_size_hw=(32, 32), fill=(124, 116, 104), scale=(0.5, 1.5), vflip=0.5, photometric=1.0, randaugment_ops=1
)


@dataclass(frozen=True)
class FakeIndex:
    """First ``both`` images with both labels, then those with boxes, then those with a mask."""

    both: int
    boxes: int
    masks: int
    broken: int = -1

    def __len__(self) -> int:
        return self.both + self.boxes + self.masks

    @property
    def has_boxes(self) -> Bool:
        return np.arange(len(self)) < self.both + self.boxes

    @property
    def has_masks(self) -> Bool:
        numbers = np.arange(len(self))
        return (numbers < self.both) | (numbers >= self.both + self.boxes)

    def sample(self, position: int) -> Sample:
        if position == self.broken:
            raise UserError("image photos/broken.jpg cannot be read (truncated)")
        rng = np.random.default_rng(position)
        count = int(self.has_boxes[position])
        return Sample(
            image=rng.integers(0, 256, (40, 40, 3), dtype=np.uint8),
            boxes_xyxy=np.array([[2, 2, 38, 38]] * count, np.float32).reshape(-1, 4),
            labels=np.zeros(count, np.int64),
            crowd=np.zeros(count, np.bool_),
            difficult=np.zeros(count, np.bool_),
            mask=np.full((40, 40), position % 200, np.uint8) if self.has_masks[position] else None,
            has_boxes=bool(self.has_boxes[position]),
            image_id=position,
            original_size_hw=(40, 40),
            resized_size_hw=(40, 40),
        )


def drawn(index: FakeIndex, epoch: int = 0, start: int = 0, **settings: Any) -> list[Any]:
    sampler = BalancedSampler(index.has_boxes, index.has_masks, **settings)
    sampler.set_epoch(epoch, start)
    keys = list(sampler)
    assert len(keys) == len(sampler) - start
    return keys


def loader_of(index: FakeIndex, **settings: Any) -> Any:
    return balanced_train_loader(index, AUGMENTED, **settings)[0]


def assert_same(one: Batch, other: Batch) -> None:
    assert one.image_ids == other.image_ids
    for name in ("images", "boxes_xyxy", "labels", "with_boxes", "with_masks", "masks"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


MIXED = [
    pytest.param(FakeIndex(0, 6, 6), id="halves"),
    pytest.param(FakeIndex(0, 30, 4), id="few masks"),
    pytest.param(FakeIndex(0, 3, 41), id="few boxes"),
    pytest.param(FakeIndex(5, 20, 0), id="masks of some that have boxes"),
    pytest.param(FakeIndex(5, 0, 20), id="boxes of some that have masks"),
    pytest.param(FakeIndex(7, 9, 4), id="all three kinds"),
    pytest.param(FakeIndex(40, 1, 0), id="one mask is missing"),
    pytest.param(FakeIndex(40, 0, 1), id="one list of boxes is missing"),
    pytest.param(FakeIndex(1, 1, 0), id="two images, one mask"),
    pytest.param(FakeIndex(0, 1, 1), id="two images, nothing shared"),
]
SHARES = [
    pytest.param(2, 0.5, 1, id="two"),
    pytest.param(8, 0.5, 4, id="half of eight"),
    pytest.param(8, 0.25, 2, id="a quarter"),
    pytest.param(5, 0.5, 2, id="half of five"),
    pytest.param(4, 0.01, 1, id="one mask at least"),
    pytest.param(4, 0.99, 3, id="one image with boxes at least"),
]


@pytest.mark.parametrize(("batch_size", "mask_share", "masks"), SHARES)
@pytest.mark.parametrize("index", MIXED)
def test_every_batch_has_its_share_and_every_epoch_every_image(
    index: FakeIndex, batch_size: int, mask_share: float, masks: int
) -> None:
    sampler = BalancedSampler(index.has_boxes, index.has_masks, batch_size=batch_size, mask_share=mask_share)
    composition = sampler.composition
    assert (composition.batch_size, composition.masks, composition.boxes) == (batch_size, masks, batch_size - masks)
    for _ in range(3):
        positions = np.array([key[1] for key in sampler]).reshape(-1, batch_size)
        assert (index.has_masks[positions[:, :masks]]).all()
        assert (index.has_boxes[positions[:, masks:]]).all()
        assert set(positions.ravel().tolist()) == set(range(len(index)))
        pools = [Counter(part.ravel().tolist()) for part in (positions[:, :masks], positions[:, masks:])]
        assert not pools[0].keys() & pools[1].keys()  # an image has one place in an epoch
        for pool in pools:
            assert max(pool.values()) - min(pool.values()) <= 1


@pytest.mark.parametrize(
    ("index", "batches"),
    [
        pytest.param(FakeIndex(0, 12, 12), 6, id="halves"),
        pytest.param(FakeIndex(0, 24, 4), 12, id="few masks are drawn again"),
        pytest.param(FakeIndex(0, 5, 5), 3, id="the last batch is filled by drawing again"),
        pytest.param(FakeIndex(40, 0, 8), 12, id="what has both evens the pools out"),
        pytest.param(FakeIndex(39, 1, 0), 10, id="one missing mask changes nothing"),
        pytest.param(FakeIndex(4, 24, 0), 12, id="too few have both to even the pools out"),
    ],
)
def test_an_epoch_is_as_short_as_it_can_be(index: FakeIndex, batches: int) -> None:
    loader, composition = balanced_train_loader(index, AUGMENTED, batch_size=4)
    assert len(loader) == batches
    assert f"an epoch of {batches} batches" in str(composition)


def test_draws_are_numbered_and_each_pass_over_a_pool_has_its_own_order() -> None:
    keys = drawn(FakeIndex(0, 40, 10), batch_size=2)
    masks = keys[0::2]
    assert [draw for _, _, draw, _ in masks] == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10
    passes = [tuple(position for _, position, _, _ in masks[first : first + 10]) for first in range(0, 40, 10)]
    assert len(set(passes)) == 4
    assert len(set(keys)) == len(keys)
    assert {draw for _, _, draw, _ in keys[1::2]} == {0}


def test_an_image_that_is_drawn_again_is_augmented_anew() -> None:
    data = SampleData(FakeIndex(0, 4, 1), AUGMENTED, seed=3)
    samples = [data[0, 4, draw, "all"] for draw in range(4)]
    assert len({sample.image.tobytes() for sample in samples}) == 4
    assert np.array_equal(data[0, 4, 2, "all"].image, samples[2].image)
    (batch,) = list(loader_of(FakeIndex(0, 2, 1), batch_size=4))
    assert batch.image_ids[:2] == (2, 2)
    assert not torch.equal(batch.images[0], batch.images[1])


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    index = FakeIndex(6, 20, 8)
    first = drawn(index, epoch=3, batch_size=4)
    assert drawn(index, epoch=3, batch_size=4) == first
    assert {key[0] for key in first} == {3}
    assert [key[1:] for key in drawn(index, epoch=4, batch_size=4)] != [key[1:] for key in first]
    assert drawn(index, epoch=3, batch_size=4, seed=1) != first


def test_an_image_with_both_labels_serves_now_for_the_one_and_now_for_the_other() -> None:
    index = FakeIndex(10, 5, 5)
    sampler = BalancedSampler(index.has_boxes, index.has_masks, batch_size=2)
    served = [{key[1] for key in list(sampler)[0::2] if key[1] < 10} for _ in range(12)]
    assert {len(chosen) for chosen in served} == {5}
    assert set.union(*served) == set(range(10))


def test_passes_count_the_epochs_when_nobody_sets_them() -> None:
    index = FakeIndex(2, 9, 5)
    sampler = BalancedSampler(index.has_boxes, index.has_masks, batch_size=4)
    counted = [list(sampler) for _ in range(3)]
    assert counted[2] == drawn(index, epoch=2, batch_size=4)
    assert len({tuple(keys) for keys in counted}) == 3


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_pass_may_start_in_the_middle_of_its_epoch(done: int) -> None:
    whole, resumed = (loader_of(FakeIndex(3, 12, 5), batch_size=4, seed=3) for _ in range(2))
    whole.set_epoch(4)
    resumed.set_epoch(4, start=done * 4)
    rest = list(resumed)
    assert len(rest) == len(whole) - done
    for one, other in zip(list(whole)[done:], rest, strict=True):
        assert_same(one, other)
    assert_same(next(iter(whole)), next(iter(resumed)))


def test_two_workers_and_none_give_identical_batches_for_two_epochs() -> None:
    index = FakeIndex(2, 7, 5)
    alone, helped = (loader_of(index, batch_size=4, workers=workers, seed=5) for workers in (0, 2))
    for _ in range(2):
        one, other = list(alone), list(helped)
        assert len(one) == len(other) == len(alone)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)


def test_batches_carry_the_labels_that_their_images_have() -> None:
    index = FakeIndex(2, 7, 5)
    loader, composition = balanced_train_loader(index, AUGMENTED, batch_size=6, mask_share=0.4)
    for batch in loader:
        ids = np.array(batch.image_ids)
        assert not (batch.with_boxes & ~torch.from_numpy(index.has_boxes[ids])).any()
        assert not (batch.with_masks & ~torch.from_numpy(index.has_masks[ids])).any()
        assert int(batch.with_masks.sum()) >= composition.masks == 2
        assert int(batch.with_boxes.sum()) >= composition.boxes == 4
        assert batch.masks is not None
        assert (batch.masks[~batch.with_masks] == 255).all()


FEW_OF_ONE_LABEL = [
    pytest.param(FakeIndex(5, 95, 0), "with_boxes", id="few masks"),
    pytest.param(FakeIndex(5, 0, 95), "with_masks", id="few boxes"),
]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("index", "common"), FEW_OF_ONE_LABEL)
def test_images_drawn_again_for_the_rare_label_do_not_bring_the_common_one_again(
    index: FakeIndex, common: str, workers: int
) -> None:
    loader, composition = balanced_train_loader(index, AUGMENTED, batch_size=8, workers=workers)
    seen: Counter[int] = Counter()
    rare = 0
    for batch in loader:
        there = getattr(batch, common)
        seen.update(np.array(batch.image_ids)[there.numpy()].tolist())
        rare += int((batch.with_boxes if common == "with_masks" else batch.with_masks).sum())
        assert int(batch.with_masks.sum()) >= composition.masks == 4
        assert int(batch.with_boxes.sum()) >= composition.boxes == 4
        assert (batch.boxes_xyxy[~batch.with_boxes] == -1).all()
        assert batch.masks is not None
        assert (batch.masks[~batch.with_masks] == 255).all()
    assert set(seen) == set(range(100))
    assert [seen[image_id] for image_id in range(5)] == [1] * 5
    assert rare == 4 * len(loader) == 96  # 19 or 20 times each


def test_an_image_brings_all_its_labels_once_an_epoch_and_then_that_of_its_pool() -> None:
    index = FakeIndex(7, 9, 4)
    for position, draws in itertools.groupby(
        sorted(drawn(index, batch_size=4, mask_share=0.25), key=itemgetter(1, 2)), itemgetter(1)
    ):
        first, *again = [labels for _, _, _, labels in draws]
        assert first == "all"
        assert len(set(again)) <= 1
        assert index.has_masks[position] or "masks" not in again
        assert index.has_boxes[position] or "boxes" not in again


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(workers: int) -> None:
    with pytest.raises(UserError, match=r"broken\.jpg"):
        list(loader_of(FakeIndex(0, 4, 4, broken=5), batch_size=4, workers=workers))


# nothing to balance


@pytest.mark.parametrize(
    ("index", "boxes", "masks", "sentence"),
    [
        pytest.param(FakeIndex(9, 0, 0), 4, 4, "each batch of 4 has the boxes and masks of every image", id="both"),
        pytest.param(FakeIndex(0, 9, 0), 4, 0, "each batch of 4 has the boxes of every image", id="boxes"),
        pytest.param(FakeIndex(0, 0, 9), 0, 4, "each batch of 4 has the masks of every image", id="masks"),
        pytest.param(FakeIndex(3, 0, 0), 3, 3, "each batch of 3 has the boxes and masks of every image", id="few"),
    ],
)
@pytest.mark.parametrize("mask_share", [0.2, 0.5])
def test_images_that_all_have_the_same_labels_are_loaded_as_ever(
    index: FakeIndex, boxes: int, masks: int, sentence: str, mask_share: float
) -> None:
    loader, composition = balanced_train_loader(index, AUGMENTED, batch_size=4, mask_share=mask_share, seed=2)
    assert composition == Composition(min(4, len(index)), boxes, masks)
    assert str(composition) == sentence
    for one, other in zip(loader, train_loader(index, AUGMENTED, batch_size=4, seed=2), strict=True):
        assert one.image_ids == other.image_ids
        assert torch.equal(one.images, other.images)


def test_a_batch_of_one_is_enough_where_there_is_nothing_to_balance() -> None:
    assert len(loader_of(FakeIndex(3, 0, 0), batch_size=1)) == 3


def test_the_rule_is_said_with_its_numbers() -> None:
    _, composition = balanced_train_loader(FakeIndex(0, 318, 106), AUGMENTED, batch_size=8)
    assert str(composition) == (
        "each batch of 8 has 4 images with masks and 4 with boxes at least; an epoch of 80 batches draws 106 images "
        "3.0 times for their masks and 318 images 1.0 times for their boxes; an image drawn again brings that label "
        "alone"
    )


@pytest.mark.parametrize(
    ("index", "settings", "message"),
    [
        pytest.param(FakeIndex(0, 3, 3), {"batch_size": 1}, "--batch-size 2 or more, got 1", id="batch of one"),
        pytest.param(FakeIndex(3, 3, 0), {"batch_size": 0}, "--batch-size 2 or more, got 0", id="batch of none"),
        pytest.param(FakeIndex(3, 0, 0), {"batch_size": 0}, "at least 1, got 0", id="batch of none, all the same"),
        pytest.param(FakeIndex(0, 3, 3), {"batch_size": 2, "mask_share": 0.0}, "above 0 and below 1", id="no masks"),
        pytest.param(FakeIndex(0, 3, 3), {"batch_size": 2, "mask_share": 1.0}, "above 0 and below 1", id="no boxes"),
        pytest.param(FakeIndex(0, 3, 3), {"batch_size": 2, "mask_share": float("nan")}, "above 0", id="no share"),
        pytest.param(FakeIndex(0, 3, 3), {"batch_size": 2, "seed": -1}, "seed", id="negative seed"),
        pytest.param(FakeIndex(0, 3, 3), {"batch_size": 2, "workers": -1}, "workers", id="negative workers"),
        pytest.param(FakeIndex(0, 0, 0), {"batch_size": 2}, "empty", id="no image"),
    ],
)
def test_senseless_settings_are_refused(index: FakeIndex, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        balanced_train_loader(index, AUGMENTED, **settings)
