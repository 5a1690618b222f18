"""Which anchor is to find which box: the targets that the loss compares with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from effdense.ops.boxes import areas
from effdense.tasks.detection.anchors import encode

BACKGROUND = -1
IGNORED = -2

_DEVICE_PAIRS = 1 << 26
"""Anchor-box pairs that a device handles at a time, for its memory."""

_CPU_BOUNDS = 1 << 18
"""Bounds that a processor computes at a time, for its cache."""

_SLACK = 1e-3
"""Part by which what has to be reached is lowered, so that rounding leaves nothing out."""


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
    left_out = None if ignore is None else present & ignore
    if boxes_xyxy.device.type == "cpu":
        return _assign_sparsely(anchors_xyxy, boxes_xyxy, labels, wanted, left_out, threshold)
    return _assign_densely(anchors_xyxy, boxes_xyxy, labels, wanted, left_out, threshold)


def _assign_densely(
    anchors: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor, left_out: Tensor | None, threshold: float
) -> Targets:
    """Compare every box with every anchor, in operations whose sizes do not depend on values: no device ever waits."""
    batch, most = wanted.shape
    if most == 0:
        labels, boxes = labels.new_full((batch, 1), -1), boxes.new_full((batch, 1, 4), -1.0)
        wanted, left_out = wanted.new_zeros((batch, 1)), None
    matched, covered = _match_densely(anchors, boxes, wanted, left_out, threshold)  # (B, A) both
    positive = matched >= 0
    box = matched.clamp(min=0)
    target_labels = torch.where(positive, labels.gather(1, box), BACKGROUND)
    target_labels.masked_fill_(covered & ~positive, IGNORED)
    own = boxes.gather(1, box.unsqueeze(-1).expand(-1, -1, 4))  # (B, A, 4)
    codes = torch.where(positive.unsqueeze(-1), encode(own, anchors), 0.0)
    return Targets(target_labels, codes, positive.sum(1))


def _match_densely(
    anchors: Tensor, boxes: Tensor, wanted: Tensor, left_out: Tensor | None, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the index of each anchor's box or -1, (B, A), and which anchors ignored boxes cover, (B, A)."""
    batch, most = wanted.shape
    count = len(anchors)
    matched = torch.full((batch, count), -1, dtype=torch.int64, device=boxes.device)
    covered = torch.zeros_like(matched, dtype=torch.bool)
    best = torch.zeros(batch, most, device=boxes.device)  # of each box: the highest IoU so far, and whose it is
    best_anchor = torch.full((batch, most), count, dtype=torch.int64, device=boxes.device)
    step = max(1, _DEVICE_PAIRS // max(1, batch * most))
    for start in range(0, count, step):
        part = anchors[start : start + step]
        shared, iou = _overlap(boxes.unsqueeze(2), part)  # (B, M, a)
        if left_out is not None:
            inside = (shared >= 0.5 * areas(part)) & left_out.unsqueeze(-1)
            covered[:, start : start + step] = inside.any(1)
        iou = iou.masked_fill_(~wanted.unsqueeze(-1), 0.0)  # also where 0 / 0 made a NaN of a box without area
        highest, box = iou.max(1)  # (B, a)
        matched[:, start : start + step] = torch.where(highest >= threshold, box, -1)
        highest, anchor = iou.max(2)  # (B, M)
        better = highest > best
        best = torch.where(better, highest, best)
        best_anchor = torch.where(better, anchor + start, best_anchor)
    claims = torch.full((batch, count + 1), most, dtype=torch.int64, device=boxes.device)  # the last: of no anchor
    numbers = torch.arange(most, device=boxes.device).expand(batch, most)
    claims = claims.scatter_reduce_(1, best_anchor, numbers, "amin")[:, :count]
    return torch.where(claims < most, claims, matched), covered


def _overlap(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shared area and the IoU of boxes with anchors, broadcast against each other: (..., 4) to (...)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    u1, v1, u2, v2 = anchors.unbind(-1)
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0)
    shared = width.mul_(height)
    return shared, shared / (areas(boxes) + areas(anchors) - shared)


def _assign_sparsely(
    anchors: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor, left_out: Tensor | None, threshold: float
) -> Targets:
    """Compare each box only with the few anchors that it can match; the same result as ``_assign_densely``."""
    batch, count = len(boxes), len(anchors)
    target_labels = torch.full((batch, count), BACKGROUND, dtype=torch.int64)
    codes = torch.zeros(batch, count, 4)
    for i, box in left_out.nonzero().tolist() if left_out is not None else ():
        shared, _ = _overlap(boxes[i, box], anchors)
        target_labels[i].masked_fill_(shared >= 0.5 * areas(anchors), IGNORED)
    image, number = wanted.nonzero(as_tuple=True)  # (T,), the boxes one after the other
    own = boxes[image, number]
    place, box = _match_sparsely(anchors, own, image, threshold)
    image_of_place = image[box]
    target_labels.view(-1)[place] = labels[image, number][box]
    codes.view(-1, 4)[place] = encode(own[box], anchors[place - image_of_place * count])
    return Targets(target_labels, codes, torch.bincount(image_of_place, minlength=batch))


def _match_sparsely(anchors: Tensor, boxes: Tensor, image: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return where there are matches, as image * A + anchor, each once, and with which box: (P,) both.

    Args:
        anchors: (A, 4).
        boxes: (T, 4), those of all images.
        image: (T,), which image each lies in.
        threshold: least IoU for a match.
    """
    count = len(anchors)
    box, anchor, iou = _candidates(boxes, anchors, _rows(anchors), threshold)
    best = torch.zeros(len(boxes)).scatter_reduce_(0, box, iou, "amax")
    first = (iou == best[box]) & (iou > 0)
    best_anchor = torch.full((len(boxes),), count).scatter_reduce_(0, box[first], anchor[first], "amin")
    forced = (best_anchor < count).nonzero().squeeze(1)
    high = (iou >= threshold).nonzero().squeeze(1)
    owner = torch.cat((box[high], forced))
    place = image[owner] * count + torch.cat((anchor[high], best_anchor[forced]))
    overlap = torch.cat((iou[high], torch.full((len(forced),), 2.0)))  # what is forced goes before every IoU
    place, inverse = torch.unique(place, return_inverse=True)
    highest = torch.zeros(len(place)).scatter_reduce_(0, inverse, overlap, "amax")
    among = overlap == highest[inverse]
    return place, torch.full((len(place),), len(boxes)).scatter_reduce_(0, inverse[among], owner[among], "amin")


@dataclass(frozen=True)
class _Rows:
    """Anchors that have top and bottom in common, as those of one shape in one row of cells have.

    Attributes:
        top: (R,).
        bottom: (R,).
        widest: (R,), width of the row's widest anchor.
        least_area: (R,).
        start: (R,), place in ``members`` of the row's first anchor.
        last: (R,), that of its last.
        members: (A,), indices of anchors, row after row, from left to right.
        lefts: float64, (A,): their left edges from ``leftmost`` on, and ``pitch`` more with every row.
        leftmost: the least left edge.
        pitch: more than twice the distance between any two left edges.
    """

    top: Tensor
    bottom: Tensor
    widest: Tensor
    least_area: Tensor
    start: Tensor
    last: Tensor
    members: Tensor
    lefts: Tensor
    leftmost: float
    pitch: float

    def find(self, row: Tensor, left: Tensor) -> Tensor:
        """Return where in ``members`` those of each row begin whose left edge is at least ``left``, or the row ends."""
        within = (left.double() - self.leftmost).clamp_(0.0, 0.75 * self.pitch)
        return torch.searchsorted(self.lefts, within.add_(row, alpha=self.pitch))


_known_rows = WeakTensorKeyDictionary()
"""Rows of the anchors seen last, for as long as those live; anchors are made once for an image size."""


def _rows(anchors: Tensor) -> _Rows:
    version = -1 if anchors.is_inference() else anchors._version  # what is made in inference mode has none
    known: tuple[int, _Rows] | None = _known_rows.get(anchors)  # type: ignore[no-untyped-call]
    if known is not None and known[0] == version >= 0:
        return known[1]
    spans, row, length = torch.unique(anchors[:, 1::2], dim=0, return_inverse=True, return_counts=True)
    zeros = torch.zeros(len(spans))
    left = anchors[:, 0].double()
    leftmost = float(left.min())
    pitch = 2 * (float(left.max()) - leftmost) + 1
    lefts, members = (left - leftmost).add_(row, alpha=pitch).sort(stable=True)
    rows = _Rows(
        top=spans[:, 0].contiguous(),
        bottom=spans[:, 1].contiguous(),
        widest=zeros.scatter_reduce(0, row, anchors[:, 2] - anchors[:, 0], "amax"),
        least_area=zeros.scatter_reduce(0, row, areas(anchors), "amin", include_self=False),
        start=length.cumsum(0) - length,
        last=length.cumsum(0) - 1,
        members=members,
        lefts=lefts,
        leftmost=leftmost,
        pitch=pitch,
    )
    _known_rows[anchors] = (version, rows)
    return rows


def _candidates(boxes: Tensor, anchors: Tensor, rows: _Rows, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs of box (T, 4) and anchor that may match or be the box's best, and their IoU: (P,) each.

    Every row of anchors is judged as a whole (see ``_promising``); of those left, only the stretch of anchors is looked
    at that share enough width with the box.
    """
    step = max(1, _CPU_BOUNDS // max(1, len(rows.top)))
    parts = []
    for start in range(0, max(1, len(boxes)), step):
        box, row, least = _promising(boxes[start : start + step], anchors, rows, threshold)
        parts.append((box + start, row, least))
    box, row, least = (torch.cat(column) for column in zip(*parts, strict=True))
    left, right = boxes[box, 0].double(), boxes[box, 2].double()
    begin = rows.find(row, left - rows.widest[row] + least)
    length = (rows.find(row, right - least) - begin).clamp_(min=0)
    offset = begin - (length.cumsum(0) - length)  # from the place among all pairs to that in ``members``
    pair = torch.repeat_interleave(length)
    anchor = rows.members[offset[pair].add_(torch.arange(len(pair)))]
    box = box[pair]
    return box, anchor, _overlap(boxes[box], anchors[anchor])[1]


def _promising(boxes: Tensor, anchors: Tensor, rows: _Rows, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs of box (T, 4) and row, and the width that an anchor of the row has to share: (Q,) each.

    A row's anchors share at most its height common with the box times the smaller width. So no IoU of the row exceeds
    a bound. Two anchors of the row with a box's highest bound, those next to its middle, tell what its best anchor has
    at least; rows bounded below that as well as below the threshold need no look, and in the others only anchors that
    share the part of the width by which that is below the bound. In place of IoU u, u / (1 + u) is compared, the shared
    area in the sum of both.
    """
    height = torch.minimum(boxes[:, 3:], rows.bottom).sub_(torch.maximum(boxes[:, 1:2], rows.top)).clamp_(min=0)
    width = torch.minimum(boxes[:, 2:3] - boxes[:, :1], rows.widest)
    bound = height.mul_(width).div_(areas(boxes).unsqueeze(1) + rows.least_area)  # (T, R)
    row = bound.argmax(1)
    middle = rows.find(row, (boxes[:, 0] + boxes[:, 2] - rows.widest[row]) / 2)
    near = torch.stack((middle - 1, middle), 1)
    near = near.maximum(rows.start[row].unsqueeze(1)).minimum(rows.last[row].unsqueeze(1))  # (T, 2)
    iou = _overlap(boxes.unsqueeze(1), anchors[rows.members[near]])[1].amax(1).clamp_(max=threshold)
    least = (iou / (1 + iou)).mul_(1 - _SLACK).clamp_(min=1e-30)  # above 0, where rows without a bound stay out
    box, row = (bound >= least.unsqueeze(1)).nonzero(as_tuple=True)
    return box, row, width[box, row] * (least[box] / bound[box, row])
