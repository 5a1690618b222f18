from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from effdense.ops import nms as module
from effdense.ops.boxes import pairwise_iou
from effdense.ops.nms import grouped_nms, soft_nms


def random_boxes(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(n, 2, generator=generator) * 60, torch.rand(n, 2, generator=generator) * 40 + 2
    return (
        torch.cat((corner, corner + size), 1),
        torch.rand(n, generator=generator),
        torch.randint(0, 3, (n,), generator=generator),
    )


def plain_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The definition, box by box."""
    keep = torch.zeros(len(scores), dtype=torch.bool)
    iou = pairwise_iou(boxes, boxes)
    for i in scores.argsort(descending=True).tolist():
        keep[i] = not bool((keep & (groups == groups[i]) & (iou[i] > threshold)).any())
    return keep


def plain_soft_nms(boxes: Tensor, scores: Tensor, sigma: float, threshold: float) -> list[tuple[int, float]]:
    """The paper's algorithm for one class, box by box."""
    left, found = dict(enumerate(scores.tolist())), []
    iou = pairwise_iou(boxes, boxes)
    while left:
        best = max(left, key=left.__getitem__)
        score = left.pop(best)
        if score > threshold:
            found.append((best, score))
            left = {i: s * math.exp(-(float(iou[best, i]) ** 2) / sigma) for i, s in left.items()}
    return sorted(found, key=lambda pair: -pair[1])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_hard_nms_keeps_what_the_definition_keeps(threshold: float) -> None:
    boxes, scores, groups = random_boxes(80)
    assert torch.equal(grouped_nms(boxes, scores, groups, threshold), plain_nms(boxes, scores, groups, threshold))


@pytest.mark.parametrize("n", [0, 1], ids=["none", "one"])
def test_hard_nms_of_no_or_one_box(n: int) -> None:
    boxes, scores, groups = random_boxes(n)
    assert grouped_nms(boxes, scores, groups, 0.5).tolist() == [True] * n


def test_far_apart_groups_lose_no_precision() -> None:
    # 0.004 px decide; an offset that moves group 5000 away in float32 would round them off.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.998], [0, 0, 10, 5.002]])
    groups = torch.tensor([5000, 5000, 0])
    assert grouped_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), groups, 0.5).all()
    assert grouped_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), groups.clamp(max=0), 0.5).tolist() == [True, True, False]


@pytest.mark.parametrize("count", [1, 2, 40, 300], ids=["one", "two", "more than a pack", "many"])
def test_groups_packed_together_keep_what_each_alone_keeps(count: int) -> None:
    boxes, scores, _ = random_boxes(600, seed=count)
    groups = torch.randint(0, count, (600,), generator=torch.Generator().manual_seed(count))
    assert torch.equal(grouped_nms(boxes, scores, groups, 0.5), plain_nms(boxes, scores, groups, 0.5))


def test_an_overlap_of_exactly_the_threshold_is_none_in_any_group() -> None:
    pair = torch.tensor([[0.0, 0, 96, 100], [0, 0, 96, 50]])  # an IoU of one half
    groups = torch.arange(50).repeat_interleave(2)
    assert grouped_nms(pair.repeat(50, 1), torch.tensor([0.9, 0.8]).repeat(50), groups, 0.5).all()


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]


def many_groups(count: int = 6000) -> tuple[Tensor, Tensor, Tensor]:
    """In each group a pair of boxes with an IoU of 0.4998, and one with 0.5002."""
    pair = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.998], [500, 500, 510, 510], [500, 500, 510, 505.002]])
    groups = torch.arange(count).repeat_interleave(4) * 7
    return pair.repeat(count, 1), torch.tensor([0.9, 0.8, 0.7, 0.6]).repeat(count), groups


@pytest.mark.parametrize("device", DEVICES)
def test_all_groups_at_once_lose_no_precision_however_far_apart(device: str) -> None:
    boxes, scores, groups = (column.to(device) for column in many_groups())
    stays = module._nms_of_groups_moved_apart(boxes, scores, groups, 0.5)
    assert stays.view(-1, 4).eq(torch.tensor([True, True, True, False], device=device)).all()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("device", DEVICES)
def test_all_groups_at_once_keep_what_each_alone_keeps(device: str, threshold: float) -> None:
    boxes, scores, groups = (column.to(device) for column in random_boxes(300, seed=7))
    boxes -= 40  # also to the left of the image
    stays = module._nms_of_groups_moved_apart(boxes, scores, groups * 1_000_003, threshold)
    assert not stays.all()
    for group in groups.unique():
        members = groups == group
        assert torch.equal(stays[members], grouped_nms(boxes[members], scores[members], groups[members], threshold))
        assert torch.equal(
            stays[members].cpu(), plain_nms(*(c[members].cpu() for c in (boxes, scores, groups)), threshold)
        )


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_keeps_what_a_cpu_keeps() -> None:
    for boxes, scores, groups in (many_groups(), random_boxes(300, seed=8), random_boxes(1), random_boxes(0)):
        on_gpu = grouped_nms(boxes.cuda(), scores.cuda(), groups.cuda(), 0.5)
        assert torch.equal(on_gpu.cpu(), grouped_nms(boxes, scores, groups, 0.5))


def test_soft_nms_is_the_papers_for_each_class() -> None:
    boxes, scores, labels = random_boxes(60, seed=3)
    kept, faded = soft_nms(boxes[None], scores[None], labels[None], max_detections=60)
    expected = []
    for label in range(3):
        members = (labels == label).nonzero()[:, 0]
        expected += [
            (int(members[i]), s) for i, s in plain_soft_nms(boxes[members], scores[members], sigma=0.5, threshold=0.001)
        ]
    expected.sort(key=lambda pair: -pair[1])
    assert kept[0, : len(expected)].tolist() == [i for i, _ in expected]
    torch.testing.assert_close(faded[0, : len(expected)], torch.tensor([s for _, s in expected]))
    assert faded[0, len(expected) :].eq(0).all()


def test_soft_nms_of_a_batch_is_that_of_its_images() -> None:
    cases = [random_boxes(40, seed) for seed in (4, 5)]
    boxes, scores, labels = (torch.stack(column) for column in zip(*cases, strict=True))
    scores[1, 20:] = 0.0  # the second image has fewer boxes
    kept, faded = soft_nms(boxes, scores, labels, max_detections=30)
    for i, n in ((0, 40), (1, 20)):
        alone = soft_nms(boxes[i : i + 1, :n], scores[i : i + 1, :n], labels[i : i + 1, :n], max_detections=30)
        assert torch.equal(kept[i : i + 1], alone[0])
        torch.testing.assert_close(faded[i : i + 1], alone[1])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no image", "no box"])
def test_soft_nms_of_nothing(shape: tuple[int, int]) -> None:
    kept, faded = soft_nms(torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape), max_detections=7)
    assert kept.shape == faded.shape == (shape[0], 7)
