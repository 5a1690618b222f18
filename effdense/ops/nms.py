"""Non-maximum suppression, hard and Gaussian soft, over a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.ops import nms

from effdense.ops.boxes import areas

_PACK = 128
"""Boxes of several groups that a CPU compares with one another in one go."""


def grouped_nms(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Hard NMS within each group: a box goes when a better one of its group overlaps it by more than the threshold.

    Args:
        boxes_xyxy: (N, 4).
        scores: (N,).
        groups: int64, (N,); boxes of different groups (another class, another image) never suppress each other.
        iou_threshold: in 0..1.

    Returns:
        bool, (N,): which boxes stay.
    """
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    if len(scores) < 2:
        return keep
    if scores.device.type != "cpu":
        return _nms_of_groups_moved_apart(boxes_xyxy, scores, groups, iou_threshold)
    # A CPU need not compare boxes of different groups at all, but takes its time to begin with each group.
    order = torch.argsort(groups, stable=True)
    place, sizes = torch.unique_consecutive(groups[order], return_inverse=True, return_counts=True)[1:]
    boxes, ordered_scores = _moved_apart(boxes_xyxy[order], place), scores[order].double()
    for pack in _packs(sizes.tolist()):
        kept = torch.zeros(pack.stop - pack.start, dtype=torch.bool)
        kept[nms(boxes[pack], ordered_scores[pack], iou_threshold)] = True
        keep[order[pack]] = kept
    return keep


def _nms_of_groups_moved_apart(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Do the same in one call, for a GPU."""
    place = torch.unique(groups, return_inverse=True)[1]
    kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    kept[nms(_moved_apart(boxes_xyxy, place), scores.double(), iou_threshold)] = True
    return kept


def _moved_apart(boxes_xyxy: Tensor, place: Tensor) -> Tensor:
    """Return (N, 4) boxes, float64, with those of each place (N,) far from all others.

    float32 would keep a few hundredths of a pixel of the last places. By a power of two times the place, coordinates
    move without being rounded as long as 53 bits hold them, so that no overlap that is exactly at the threshold tips
    over. torchvision's ``batched_nms`` moves by another number, and in the boxes' own precision.
    """
    boxes = boxes_xyxy.double()
    span = torch.exp2((boxes.max() - boxes.min() + 1.0).log2().ceil())
    return boxes + (place * span).unsqueeze(1)


def _packs(sizes: list[int]) -> Iterator[slice]:
    """Yield where groups of these sizes lie that are few enough, or alone."""
    start = stop = 0
    for size in sizes:
        if stop > start and stop + size - start > _PACK:
            yield slice(start, stop)
            start = stop
        stop += size
    yield slice(start, stop)


def soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_detections: int = 100,
) -> tuple[Tensor, Tensor]:
    """Gaussian soft NMS (arXiv 1704.04503): the best box stays, those of its class fade by exp(-IoU^2 / sigma).

    All images advance together, one detection an iteration, so the cost is ``max_detections`` passes over (B, N) and
    no N x N table is made.

    Args:
        boxes_xyxy: (B, N, 4).
        scores: (B, N); entries that hold no box carry 0.
        labels: (B, N); boxes of different classes leave each other alone.
        sigma: width of the Gaussian.
        score_threshold: a box that does not score above it is dropped, before or after it has faded.
        max_detections: D, per image.

    Returns:
        indices (B, D) of the boxes that stay, best first, and their faded scores (B, D); 0 and 0.0 past the last one.
    """
    batch, n = scores.shape
    kept = torch.zeros(batch, max_detections, dtype=torch.int64, device=scores.device)
    faded = torch.zeros(batch, max_detections, dtype=torch.float32, device=scores.device)
    if n == 0:
        return kept, faded
    remaining = scores.float().clone()
    remaining[remaining <= score_threshold] = 0.0
    boxes_xyxy = boxes_xyxy.float()
    area = areas(boxes_xyxy)
    for d in range(max_detections):
        score, index = remaining.max(1, keepdim=True)  # (B, 1)
        if scores.device.type == "cpu" and not bool(score.any()):
            break
        faded[:, d], kept[:, d] = score[:, 0], index[:, 0].where(score[:, 0] > 0, 0)
        top = boxes_xyxy.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))  # (B, 1, 4)
        sides = torch.minimum(boxes_xyxy[..., 2:], top[..., 2:]) - torch.maximum(boxes_xyxy[..., :2], top[..., :2])
        shared = sides.clamp_(min=0).prod(-1)  # (B, N)
        union = area + area.gather(1, index) - shared
        iou = torch.where((shared > 0) & (labels == labels.gather(1, index)), shared / union, 0.0)
        remaining *= torch.exp(-iou.square() / sigma)
        remaining[remaining <= score_threshold] = 0.0
        remaining.scatter_(1, index, 0.0)
    return kept, faded
