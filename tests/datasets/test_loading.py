"""Loading and augmenting: what is drawn depends on seed, epoch and image alone; errors and order survive workers."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from effdense.datasets.loading import BatchLoader, EpochSampler, SampleData, eval_loader, train_loader
from effdense.errors import UserError
from effdense.transforms import eval_transform, train_transform
from effdense.types import Batch, Sample

FILL = (124, 116, 104)
FULL = train_transform(
    image_size_hw=(32, 48), fill=FILL, vflip=0.5, photometric=1.0, randaugment_ops=2, randaugment_magnitude=6.0
)


@dataclass(frozen=True)
class FakeIndex:
    """Noise of many sizes; image i has i boxes modulo four, the first of them without area."""

    count: int
    broken: int = -1
    gone: int = -1

    def __len__(self) -> int:
        return self.count

    def sample(self, position: int) -> Sample:
        if position == self.broken:
            raise UserError("image photos/broken.jpg cannot be read (truncated)")
        if position == self.gone:
            raise FileNotFoundError(2, "No such file or directory", "photos/gone.jpg")
        rng = np.random.default_rng(position)
        height, width = (int(side) for side in rng.integers(20, 70, 2))
        boxes = np.array([[5, 5, 5, 15], [-0.5, 2, 15, 18], [0, 0, width, height]], np.float32)[: position % 4]
        return Sample(
            image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            boxes_xyxy=boxes,
            labels=np.arange(len(boxes), dtype=np.int64),
            crowd=np.arange(len(boxes)) == 2,
            difficult=np.zeros(len(boxes), np.bool_),
            image_id=1000 + position,
            original_size_hw=(height, width),
            resized_size_hw=(height, width),
        )


def by_image(batches: Iterable[Batch]) -> dict[int, bytes]:
    return {
        image_id: image.numpy().tobytes()
        for batch in batches
        for image_id, image in zip(batch.image_ids, batch.images, strict=True)
    }


def assert_same(one: Batch, other: Batch) -> None:
    assert one.image_ids == other.image_ids
    for name in ("images", "boxes_xyxy", "labels", "ignore", "original_sizes_hw", "resized_sizes_hw"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_two_workers_and_none_give_identical_batches_for_two_epochs() -> None:
    alone = train_loader(FakeIndex(11), FULL, batch_size=3, workers=0, seed=5)
    helped = train_loader(FakeIndex(11), FULL, batch_size=3, workers=2, seed=5)
    for _ in range(2):
        one, other = list(alone), list(helped)
        assert len(one) == len(other) == len(alone) == 3
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)


def test_every_epoch_draws_anew_and_the_same_seed_draws_the_same() -> None:
    def images(seed: int, epoch: int, batch_size: int = 4) -> dict[int, bytes]:
        loader = train_loader(FakeIndex(8), FULL, batch_size=batch_size, seed=seed)
        loader.set_epoch(epoch)
        return by_image(loader)

    first = images(0, 0)
    assert images(0, 0) == first
    assert images(0, 0, batch_size=2) == first
    for other in (images(0, 1), images(1, 0)):
        assert other.keys() == first.keys()
        assert all(other[image_id] != first[image_id] for image_id in first)


def test_every_worker_and_every_image_draws_its_own() -> None:
    class Same(FakeIndex):
        def sample(self, position: int) -> Sample:
            return super().sample(1).replace(image_id=position)

    drawn = by_image(train_loader(Same(12), FULL, batch_size=1, workers=2))
    assert len(drawn) == 12
    assert len(set(drawn.values())) == 12


def test_passes_count_the_epochs_when_nobody_sets_them() -> None:
    loader = train_loader(FakeIndex(6), FULL, batch_size=2, seed=3)
    counted = [by_image(loader) for _ in range(3)]
    loader.set_epoch(2)
    assert by_image(loader) == counted[2]
    assert counted[0] != counted[1] != counted[2]


def test_a_pass_may_start_in_the_middle_of_its_epoch() -> None:
    whole, resumed = (train_loader(FakeIndex(9), FULL, batch_size=2, seed=3) for _ in range(2))
    whole.set_epoch(4)
    resumed.set_epoch(4, start=4)
    for one, other in zip(list(whole)[2:], list(resumed), strict=True):
        assert_same(one, other)
    assert_same(next(iter(whole)), next(iter(resumed)))


def test_what_is_drawn_does_not_depend_on_the_processes_of_a_run() -> None:
    alone = by_image(train_loader(FakeIndex(8), FULL, batch_size=2, seed=1))
    shared: dict[int, bytes] = {}
    for rank in range(2):
        shared |= by_image(train_loader(FakeIndex(8), FULL, batch_size=2, seed=1, rank=rank, world_size=2))
    assert shared == alone


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_images", [1, 2, 7, 12])
def test_ranks_share_the_images(num_images: int, world_size: int) -> None:
    def parts(shuffle: bool, equal_length: bool) -> list[list[tuple[int, int]]]:
        samplers = [
            EpochSampler(num_images, rank=rank, world_size=world_size, shuffle=shuffle, equal_length=equal_length)
            for rank in range(world_size)
        ]
        keys = [list(sampler) for sampler in samplers]
        assert [len(part) for part in keys] == [len(sampler) for sampler in samplers]
        return keys

    training = parts(shuffle=True, equal_length=True)
    assert len({len(part) for part in training}) == 1
    assert {position for part in training for _, position in part} == set(range(num_images))
    evaluation = parts(shuffle=False, equal_length=False)
    assert sorted(position for part in evaluation for _, position in part) == list(range(num_images))
    assert all(part == sorted(part) for part in evaluation)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        return [position for _, position in keys]

    assert order(0, 3) == order(0, 3)
    assert sorted(order(0, 3)) == list(range(50))
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"),
    [
        pytest.param(8, 4, [4, 4], id="even"),
        pytest.param(9, 4, [4, 4], id="the odd one waits for another epoch"),
        pytest.param(3, 4, [3], id="fewer than a batch"),
        pytest.param(1, 4, [1], id="a single image"),
    ],
)
def test_training_batches_have_one_size(num_images: int, batch_size: int, sizes: list[int]) -> None:
    loader = train_loader(FakeIndex(num_images), FULL, batch_size=batch_size)
    assert len(loader) == len(sizes)
    assert [len(batch.images) for batch in loader] == sizes


def test_no_image_is_left_out_for_good() -> None:
    loader = train_loader(FakeIndex(5), FULL, batch_size=4)
    assert len({image_id for _ in range(12) for batch in loader for image_id in batch.image_ids}) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_every_image_once_in_order_with_all_its_boxes(workers: int) -> None:
    index = FakeIndex(7)
    transform = eval_transform((32, 48), FILL)
    for _ in range(2):
        batches = list(loader_of(index, transform, workers))
        assert [image_id for batch in batches for image_id in batch.image_ids] == list(range(1000, 1007))
        assert [len(batch.images) for batch in batches] == [3, 3, 1]
        counts = [int((row >= 0).sum()) for batch in batches for row in batch.labels]
        assert counts == [position % 4 for position in range(7)]


def loader_of(index: FakeIndex, transform: Any, workers: int) -> BatchLoader:
    return eval_loader(index, transform, batch_size=3, workers=workers)


def test_evaluation_resizes_keeps_the_aspect_and_pads_with_the_fill() -> None:
    batch = next(iter(loader_of(FakeIndex(3), eval_transform((64, 64), FILL), 0)))
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    for image, original, resized in zip(batch.images, batch.original_sizes_hw, batch.resized_sizes_hw, strict=True):
        scale = min(64 / int(original[0]), 64 / int(original[1]))
        assert resized.tolist() == [int(int(original[0]) * scale), int(int(original[1]) * scale)]
        outside = torch.cat(
            [image[:, int(resized[0]) :].reshape(3, -1), image[:, :, int(resized[1]) :].reshape(3, -1)], 1
        )
        assert (outside == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()


def test_scale_one_without_flips_is_the_geometry_of_evaluation() -> None:
    plain = train_transform(image_size_hw=(32, 48), fill=FILL, scale=(1.0, 1.0), hflip=0.0)
    for position in range(8):
        sample = FakeIndex(8).sample(position)
        one = plain(sample, np.random.default_rng(0))
        other = eval_transform((32, 48), FILL)(sample, np.random.default_rng(0))
        np.testing.assert_array_equal(one.image, other.image)
        assert one.resized_size_hw == other.resized_size_hw


def test_augmented_samples_are_sound_over_many_draws() -> None:
    data = SampleData(FakeIndex(8), FULL, seed=2)
    for epoch in range(10):
        for position in range(8):
            sample = data[epoch, position]
            assert sample.image.shape == (32, 48, 3)
            assert sample.image.dtype == np.uint8
            assert sample.image.flags.c_contiguous
            assert sample.labels.dtype == np.int64
            assert 0 not in sample.labels
            assert (sample.crowd == (sample.labels == 2)).all()
            assert len(sample.boxes_xyxy) == len(sample.labels) == len(sample.difficult)
            assert (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2] >= 1).all()
            assert (sample.boxes_xyxy >= 0).all()
            assert (sample.boxes_xyxy <= [48, 32, 48, 32]).all()


@pytest.mark.parametrize(
    "moving", [{"scale": (2.0, 2.0)}, {"scale": (1.0, 1.0), "randaugment_ops": 4}], ids=["crop", "randaugment"]
)
def test_the_rules_for_boxes_reach_every_step_that_moves_them(moving: dict[str, Any]) -> None:
    def boxes_left(**rules: float) -> int:
        transform = train_transform(image_size_hw=(48, 48), fill=FILL, randaugment_magnitude=9, **moving, **rules)
        data = SampleData(FakeIndex(4), transform)
        return sum(len(data[epoch, 3].labels) for epoch in range(30))

    assert boxes_left(min_visible=1.0) < boxes_left(min_visible=0.5) < boxes_left(min_visible=0.0)
    assert boxes_left(min_box_size=40.0) < boxes_left()


def test_colours_of_the_padding_are_never_augmented() -> None:
    shrink = train_transform(
        image_size_hw=(64, 64), fill=FILL, scale=(0.3, 0.3), photometric=1.0, randaugment_ops=3, randaugment_magnitude=9
    )
    data = SampleData(FakeIndex(4), shrink)
    for epoch in range(10):
        sample = data[epoch, 1]
        height, width = sample.resized_size_hw
        assert max(height, width) < 22
        assert (sample.image[height:] == FILL).all()
        assert (sample.image[:, width:] == FILL).all()


class Confess:
    """Says in the image id how many threads its process uses, and which process it is."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        threads = cv2.getNumThreads() * 10 + torch.get_num_threads()
        return sample.replace(image=np.zeros((4, 4, 3), np.uint8), image_id=threads * 10**9 + os.getpid())


def test_a_worker_uses_one_thread_and_lives_on_through_the_epochs(two_threads: None) -> None:
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 2)  # OpenCV's threads run before the fork
    loader = train_loader(FakeIndex(8), Confess(), batch_size=1, workers=2)
    epochs = [[batch.image_ids[0] for batch in loader] for _ in range(2)]
    assert {confession // 10**9 for confession in epochs[0]} == {11}
    processes = [{confession % 10**9 for confession in epoch} for epoch in epochs]
    assert processes[0] == processes[1]
    assert len(processes[0]) == 2
    assert os.getpid() not in processes[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_in_one_sentence(workers: int) -> None:
    with pytest.raises(UserError) as caught:
        list(train_loader(FakeIndex(6, broken=3), FULL, batch_size=2, workers=workers))
    assert str(caught.value) == "image photos/broken.jpg cannot be read (truncated)"
    with pytest.raises(UserError, match=r"photos/gone\.jpg") as caught:
        list(eval_loader(FakeIndex(6, gone=5), eval_transform((32, 32), FILL), batch_size=2, workers=workers))
    assert "\n" not in str(caught.value)


def test_workers_end_at_once_after_an_error() -> None:
    def load(broken: int) -> None:
        with pytest.raises(UserError) if broken > 0 else contextlib.nullcontext():
            list(train_loader(FakeIndex(6, broken=broken), FULL, batch_size=2, workers=2))

    def seconds(broken: int = -1) -> float:
        started = time.monotonic()
        load(broken)
        gc.collect()
        return time.monotonic() - started

    usual = seconds()  # what two workers take to begin on this machine now
    assert seconds(broken=3) < usual + 4
    assert not multiprocessing.active_children()


def test_a_data_set_can_be_sent_to_a_worker_that_is_not_forked() -> None:
    data = SampleData(FakeIndex(4), FULL, seed=1)
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[2, 3].image, data[2, 3].image)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: train_loader(FakeIndex(0), FULL, batch_size=1), "no image", id="empty index"),
        pytest.param(lambda: train_loader(FakeIndex(2), FULL, batch_size=0), "batch size", id="batch of none"),
        pytest.param(
            lambda: train_loader(FakeIndex(2), FULL, batch_size=1, workers=-1), "workers", id="workers below 0"
        ),
        pytest.param(lambda: train_loader(FakeIndex(2), FULL, batch_size=1, seed=-1), "seed", id="seed below 0"),
        pytest.param(
            lambda: train_transform(image_size_hw=(9, 9), fill=FILL, photometric=2), "photometric", id="strength"
        ),
        pytest.param(lambda: train_transform(image_size_hw=(9, 9), fill=FILL, hflip=-1), "flip", id="flip"),
        pytest.param(lambda: train_transform(image_size_hw=(9, 9), fill=FILL, randaugment_ops=-1), "whole", id="ops"),
        pytest.param(
            lambda: train_transform(image_size_hw=(9, 9), fill=FILL, min_visible=3), "min_visible", id="visible"
        ),
    ],
)
def test_senseless_settings_are_refused_before_anything_is_loaded(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_blood_cells_pass_with_their_boxes_of_no_width() -> None:
    if not os.environ.get("EFFDENSE_TEST_DATA"):
        pytest.skip("EFFDENSE_TEST_DATA is unset")
    from effdense.datasets.voc import open_voc

    index = open_voc(Path(os.environ["EFFDENSE_TEST_DATA"]) / "bccd_voc", "trainval")
    sizes = index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]
    flat = index.image_rows[(sizes <= 0).any(axis=1)]
    assert len(flat)
    chosen = index.select([*flat.tolist(), *range(8)])
    augmented = train_transform(image_size_hw=(128, 128), fill=FILL, photometric=0.5, randaugment_ops=1)
    batches = list(train_loader(chosen, augmented, batch_size=2))
    assert len(batches) == len(chosen) // 2
    boxes = torch.cat([batch.boxes_xyxy[batch.labels >= 0] for batch in batches])
    assert len(boxes) > 10
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
