from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

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
