"""Which anchor is to find which box: the targets that the loss compares with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effdense.ops.boxes import areas
from effdense.tasks.detection.anchors import encode

BACKGROUND = -1
IGNORED = -2

_CPU_PAIRS = 1 << 17
_DEVICE_PAIRS = 1 << 26
"""Anchor-box pairs handled at a time: few enough for the processor's cache, or for the device's memory."""


@dataclass(frozen=True)
class Targets:
    """What the model should have said.

    Attributes:
        labels: int64, (B, A): the class, -1 for background, -2 for anchors that the loss leaves out.
        box_codes: float32, (B, A, 4): ty, tx, th, tw of the anchor's box; 0 where the label is negative.
        num_positive: int64, (B,): anchors that have a box.
    """

    labels: Tensor
    box_codes: Tensor
    num_positive: Tensor


@torch.no_grad()
def assign(
    anchors_xyxy: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    ignore: Tensor | None = None,
    *,
    threshold: float = 0.5,
) -> Targets:
    """Give every anchor its box, background, or nothing.

    An anchor takes the box that it overlaps most, if by an IoU of at least ``threshold``. Then every box takes the
    anchor that overlaps it most, whatever the IoU, so that no box goes without (google/automl's ArgMaxMatcher with
    ``force_match_for_each_row``). Ties go to the first box and the first anchor. Anchors without a box that lie with at
    least half of their area in an ignored box (crowd, difficult) are left out of the loss; that includes every anchor
    with an IoU of at least 0.5. Boxes without area, or that touch no anchor, match nothing.

    Args:
        anchors_xyxy: (A, 4).
        boxes_xyxy: (B, M, 4), padded with -1; every box counts, however many there are.
        labels: int64, (B, M), padded with -1.
        ignore: bool, (B, M), or None where no box is ignored.
        threshold: least IoU for a match.
    """
    anchors_xyxy, boxes_xyxy = anchors_xyxy.float(), boxes_xyxy.float()
    present = (labels >= 0) & (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(-1)  # (B, M)
    wanted = present if ignore is None else present & ~ignore
    left_out = torch.zeros_like(present) if ignore is None else present & ignore
    matched, covered = _match(anchors_xyxy, boxes_xyxy, wanted, left_out, threshold)  # (B, A) both
    positive = matched >= 0
    if boxes_xyxy.shape[1]:
        target_labels = torch.where(positive, labels.gather(1, matched.clamp(min=0)), BACKGROUND)
    else:
        target_labels = torch.full_like(matched, BACKGROUND)
    if covered is not None:
        target_labels.masked_fill_(covered & ~positive, IGNORED)
    return Targets(target_labels, _codes(anchors_xyxy, boxes_xyxy, matched), positive.sum(1))


def _match(
    anchors: Tensor, boxes: Tensor, wanted: Tensor, left_out: Tensor, threshold: float
) -> tuple[Tensor, Tensor | None]:
    """Return the index of each anchor's box or -1, (B, A), and which anchors ignored boxes cover, (B, A) or None."""
    batch, most = wanted.shape
    count = len(anchors)
    matched = torch.full((batch, count), -1, dtype=torch.int64, device=boxes.device)
    if most == 0 or count == 0:
        return matched, None
    on_cpu = boxes.device.type == "cpu"
    # Asking whether there is any would make a device wait.
    covered = torch.zeros_like(matched, dtype=torch.bool) if not on_cpu or bool(left_out.any()) else None
    best = torch.zeros(batch, most, device=boxes.device)  # of each box: the highest IoU so far, and whose it is
    best_anchor = torch.full((batch, most), count, dtype=torch.int64, device=boxes.device)
    box_areas = areas(boxes).unsqueeze(-1)  # (B, M, 1)
    anchor_areas = areas(anchors)
    step = max(1, (_CPU_PAIRS if on_cpu else _DEVICE_PAIRS) // (batch * most))
    for start in range(0, count, step):
        part = slice(start, start + step)
        shared = _shared(boxes, anchors[part])  # (B, M, a)
        if covered is not None:
            inside = (shared >= 0.5 * anchor_areas[part]) & left_out.unsqueeze(-1)
            covered[:, part] = inside.any(1)
        iou = shared / (box_areas + anchor_areas[part] - shared)
        iou.masked_fill_(~wanted.unsqueeze(-1), 0.0)  # also where 0 / 0 made a NaN of a box without area
        _first_match(iou, threshold, matched[:, part], on_cpu)
        highest, where = iou.max(2)  # (B, M)
        better = highest > best
        best = torch.where(better, highest, best)
        best_anchor = torch.where(better, where + start, best_anchor)
    return _force(matched, best_anchor), covered


def _shared(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Area that each box shares with each anchor, (B, M, a); the anchors, many, lie along the last axis."""
    x1, y1, x2, y2 = boxes.unsqueeze(-2).unbind(-1)  # (B, M, 1)
    u1, v1, u2, v2 = anchors.unbind(-1)  # (a,)
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0)
    return width.mul_(height)


def _first_match(iou: Tensor, threshold: float, matched: Tensor, on_cpu: bool) -> None:
    """Write the index of the best box into ``matched``, (B, a), where its IoU (B, M, a) reaches the threshold."""
    if not on_cpu:
        highest, box = iou.max(1)
        matched.copy_(torch.where(highest >= threshold, box, -1))
        return
    # Few anchors match, and a maximum without its index is several times as fast: look for the index only there.
    image, anchor = (iou.amax(1) >= threshold).nonzero(as_tuple=True)
    if len(image):
        matched[image, anchor] = iou[image, :, anchor].max(1).indices


def _force(matched: Tensor, best_anchor: Tensor) -> Tensor:
    """Give each box its best anchor; an anchor that several boxes claim goes to the first of them."""
    batch, count = matched.shape
    most = best_anchor.shape[1]
    claims = torch.full((batch, count + 1), most, dtype=torch.int64, device=matched.device)  # the last: of no anchor
    boxes = torch.arange(most, device=matched.device).expand(batch, most)
    claims = claims.scatter_reduce_(1, best_anchor, boxes, "amin")[:, :count]
    return torch.where(claims < most, claims, matched)


def _codes(anchors: Tensor, boxes: Tensor, matched: Tensor) -> Tensor:
    """Box codes of the anchors that have a box, 0 elsewhere: (B, A, 4)."""
    codes = torch.zeros(*matched.shape, 4, device=boxes.device)
    if boxes.shape[1] == 0:
        return codes
    if boxes.device.type == "cpu":
        image, anchor = (matched >= 0).nonzero(as_tuple=True)
        codes[image, anchor] = encode(boxes[image, matched[image, anchor]], anchors[anchor])
        return codes
    own = boxes.gather(1, matched.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4))  # (B, A, 4)
    return torch.where((matched >= 0).unsqueeze(-1), encode(own, anchors), codes)
