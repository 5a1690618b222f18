from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from effdense.errors import UserError
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.types import Int64, UInt8


def maps(seed: int, num_classes: int, shape: tuple[int, ...] = (3, 17, 23)) -> tuple[UInt8, UInt8]:
    """Random labels, a tenth of them ignored in the truth, where the prediction may say anything."""
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, num_classes, (2, *shape), dtype=np.uint8)
    ignored = rng.random(shape) < 0.1
    truth[ignored] = 255
    predicted[ignored] = rng.integers(0, 256, ignored.sum())
    return truth, predicted


def counted_one_by_one(truth: UInt8, predicted: UInt8, num_classes: int) -> Int64:
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for there, said in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if there != 255:
            matrix[there, said] += 1
    return matrix


@pytest.mark.parametrize("num_classes", [1, 2, 21, 150, 255])
def test_every_pixel_that_counts_is_counted_once(num_classes: int) -> None:
    truth, predicted = maps(0, num_classes)
    confusion = ConfusionMatrix(num_classes)
    confusion.update(truth, predicted)
    assert confusion.matrix.dtype == np.int64
    np.testing.assert_array_equal(confusion.matrix, counted_one_by_one(truth, predicted, num_classes))


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [((0, 5), 0), ((1, 1), 1), ((7,), 7), ((2, 3, 4, 5), 120)],
    ids=["empty", "one pixel", "a line", "batch of batches"],
)
def test_any_shape_is_counted(shape: tuple[int, ...], pixels: int) -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(np.ones(shape, np.uint8), np.full(shape, 2, np.uint8))
    assert confusion.matrix[1, 2] == confusion.matrix.sum() == pixels


def test_how_images_are_batched_shared_out_or_held_changes_nothing() -> None:
    truth, predicted = maps(1, 5)
    whole, by_image, tensors, turned = (ConfusionMatrix(5) for _ in range(4))
    whole.update(truth, predicted)
    for one in range(len(truth)):
        shard = ConfusionMatrix(5)
        shard.update(truth[one], predicted[one])
        by_image.merge(pickle.loads(pickle.dumps(shard)))
    tensors.update(torch.from_numpy(truth), torch.from_numpy(predicted))
    turned.update(truth.transpose(2, 0, 1)[::-1], torch.from_numpy(predicted).permute(2, 0, 1).flip(0))
    for other in (by_image, tensors, turned):
        np.testing.assert_array_equal(whole.matrix, other.matrix)


def test_counts_are_exact_where_floats_no_longer_are() -> None:
    confusion = ConfusionMatrix(2)
    confusion.add(np.array([[2**24, 2**53], [0, 0]], np.int64))
    confusion.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    confusion.update(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    assert confusion.matrix.tolist() == [[2**24 + 1, 2**53 + 1], [0, 0]]
    shard = ConfusionMatrix(2)
    shard.merge(confusion)
    assert shard.matrix[0, 1] == 2**53 + 1


@pytest.mark.parametrize(
    ("truth", "predicted", "said"),
    [
        (3, 0, r"the truth has the label 3, .*0 to 2, and 255 is ignored \(2 pixels, the first at x 1, y 0\)"),
        (0, 3, r"the prediction has the label 3, .*0 to 2 \(2 pixels, the first at x 1, y 0\)"),
        (0, 255, r"the prediction leaves pixels that count without a class \(255\).*x 1, y 0"),
    ],
    ids=["truth", "prediction", "unlabelled"],
)
def test_a_label_that_is_no_class_is_named_with_its_place_and_nothing_is_counted(
    truth: int, predicted: int, said: str
) -> None:
    confusion = ConfusionMatrix(3)
    truths, predictions = np.zeros((2, 2, 3), np.uint8)
    truths[0, 1:], predictions[0, 1:] = truth, predicted
    with pytest.raises(UserError, match=rf"^a\.png: {said}"):
        confusion.update(truths, predictions, where="a.png")
    assert confusion.matrix.sum() == 0
    with pytest.raises(UserError, match="map 1, x 1, y 0"):
        confusion.update(np.stack((predictions * 0, truths)), np.stack((truths * 0, predictions)))


def test_one_class_has_a_sentence_of_its_own() -> None:
    with pytest.raises(UserError, match="the only class is 0"):
        ConfusionMatrix(1).update(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))


def test_what_cannot_be_compared_is_refused() -> None:
    confusion = ConfusionMatrix(3)
    small, large = np.zeros((2, 3), np.uint8), np.zeros((3, 3), np.uint8)
    with pytest.raises(UserError, match=r"^a: the truth is 2 x 3 and the prediction 3 x 3"):
        confusion.update(small, large, where="a")
    with pytest.raises(ValueError, match="expected predicted labels as uint8, got int64"):
        confusion.update(small, small.astype(np.int64))
    with pytest.raises(ValueError, match=r"expected truth labels as uint8, got torch\.int64"):
        confusion.update(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected counts of 3 classes"):
        confusion.merge(ConfusionMatrix(4))
    for wrong in (0, 256):
        with pytest.raises(ValueError, match=f"got {wrong}"):
            ConfusionMatrix(wrong)


def test_the_way_of_a_gpu_counts_the_same() -> None:
    truth, predicted = maps(2, 21)
    confusion = ConfusionMatrix(21)
    confusion._count_on_device(truth, torch.from_numpy(predicted))
    confusion._count_on_device(torch.from_numpy(truth), torch.from_numpy(predicted))
    np.testing.assert_array_equal(confusion.matrix, 2 * counted_one_by_one(truth, predicted, 21))
    confusion._count_on_device(np.zeros((1, 1), np.uint8), torch.full((1, 1), 21, dtype=torch.uint8))
    with pytest.raises(UserError, match="the prediction has the label 21"):
        _ = confusion.matrix


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_counts_without_being_waited_for() -> None:
    truth, predicted = maps(3, 21)
    on_cpu, on_gpu = ConfusionMatrix(21), ConfusionMatrix(21)
    on_cpu.update(truth, predicted)
    tensors = torch.from_numpy(truth).cuda(), torch.from_numpy(predicted).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.update(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(on_gpu.matrix, on_cpu.matrix)


def test_alone_a_process_holds_the_whole() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(*maps(4, 3))
    before = confusion.matrix.copy()
    confusion.all_reduce()
    np.testing.assert_array_equal(confusion.matrix, before)


def _shard(rank: int, folder: str) -> None:
    from effdense.tasks.segmentation.metrics.boundary import BoundaryIou
    from effdense.tasks.segmentation.metrics.calibration import CalibrationError

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    confusion, boundary, calibration = ConfusionMatrix(4), BoundaryIou(4), CalibrationError()
    truth, predicted = maps(rank, 4)
    confusion.update(truth, predicted)
    boundary.update(truth, predicted)
    calibration.update(truth, predicted, np.full(truth.shape, 0.9, np.float32))
    for one in (confusion, boundary, calibration):
        one.all_reduce()
    np.save(f"{folder}/{rank}.npy", confusion.matrix)
    np.save(f"{folder}/{rank}-more.npy", [*boundary.intersections, *boundary.unions, calibration.expected])
    torch.distributed.destroy_process_group()


def test_two_processes_together_hold_what_one_would(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_shard, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    whole = ConfusionMatrix(4)
    for seed in (0, 1):
        whole.update(*maps(seed, 4))
    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), whole.matrix)
    more = [np.load(tmp_path / f"{rank}-more.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(more[0], more[1])
    assert more[0][4:8].sum() > 0
    right = whole.matrix.trace() / whole.matrix.sum()
    assert more[0][-1] == pytest.approx(0.9 - right, abs=1e-6)
