"""From the model's outputs to detections in pixels of the original images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from effdense.ops.boxes import clip, scale
from effdense.ops.nms import grouped_nms, soft_nms
from effdense.tasks.detection.anchors import decode

PRE_NMS_TOP = 5000
"""Candidates of an image, at most, before NMS (google/automl hparams, ``nms_configs.max_nms_inputs``)."""

Outputs: TypeAlias = Tensor | Sequence[Tensor]
"""Of every anchor, (B, A, n), or of each level's in turn, (B, anchors of the level, n)."""

_FIRST_LOOK = 8
"""Candidates that a processor looks at first, in multiples of the detections wanted."""


class BatchDetections(NamedTuple):
    """What was found in a batch, best first; past an image's count, boxes and scores are 0 and labels -1.

    Attributes:
        boxes_xyxy: float32, (B, D, 4), in pixels of the original images.
        scores: float32, (B, D).
        labels: int64, (B, D), 0-based.
        counts: int64, (B,).
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor


@torch.no_grad()
def postprocess(
    class_logits: Outputs,
    box_codes: Outputs,
    anchors_xyxy: Tensor,
    *,
    image_size_hw: tuple[int, int],
    original_sizes_hw: Tensor,
    resized_sizes_hw: Tensor,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.5,
    nms: str = "hard",
    max_detections: int = 100,
    pre_nms_top: int = PRE_NMS_TOP,
) -> BatchDetections:
    """Take the best scores of all anchors and classes, decode their boxes, and keep one for each object.

    Boxes are clipped to the image's content before NMS; one that lies wholly in the padding has no area left and is
    dropped.

    Few anchors are wanted of all, so levels need not be laid out behind each other, which would move all of them.

    Args:
        class_logits: (B, A, K), or level by level.
        box_codes: (B, A, 4), or level by level.
        anchors_xyxy: (A, 4), of the model's input.
        image_size_hw: of the model's input, in pixels.
        original_sizes_hw: (B, 2), of the images on disk.
        resized_sizes_hw: (B, 2), of the images' content inside the model's input.
        score_threshold: only what scores above it is a candidate.
        iou_threshold: hard NMS drops what overlaps a better box of its class by more.
        nms: ``"hard"``, or ``"soft"`` for Gaussian soft NMS.
        max_detections: D, the most of an image.
        pre_nms_top: candidates of an image, at most, before NMS.

    Raises:
        ValueError: if ``nms`` is neither, or the outputs are of other anchors.
    """
    if nms not in ("hard", "soft"):
        raise ValueError(f"nms is {nms!r}; it can be 'hard' or 'soft'")
    all_logits, all_codes = (_levels(one, len(anchors_xyxy)) for one in (class_logits, box_codes))
    device = all_logits[0].device
    limits = resized_sizes_hw.to(device).minimum(torch.tensor(image_size_hw, device=device))
    best_of_anchor = torch.cat([level.amax(2) for level in all_logits], 1)  # (B, A)

    def candidates(top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, anchor, labels = _best(all_logits, best_of_anchor, top, score_threshold)  # (B, C) each
        codes = _of_anchors(all_codes, anchor).float()
        boxes = clip(decode(codes, anchors_xyxy[anchor]), limits)  # (B, C, 4)
        scores = logits.float().sigmoid()
        return boxes, scores, labels, (scores > score_threshold) & (boxes[..., 2:] > boxes[..., :2]).all(-1)

    if nms == "soft":
        boxes, scores, labels, usable = candidates(pre_nms_top)
        chosen, kept_scores = soft_nms(
            boxes, scores.where(usable, 0.0), labels, score_threshold=score_threshold, max_detections=max_detections
        )
    else:
        # What NMS leaves of a candidate depends on better ones alone. So a processor looks at the best first, and at
        # all of them only if some image then has too few; a GPU would wait for the answer longer than for the work.
        top = min(pre_nms_top, _FIRST_LOOK * max_detections) if device.type == "cpu" else pre_nms_top
        boxes, scores, labels, usable = candidates(top)
        chosen, kept_scores = _hard(boxes, scores, labels, usable, iou_threshold, max_detections)
        if top < pre_nms_top and _may_lack(scores, kept_scores, top, score_threshold):
            boxes, scores, labels, usable = candidates(pre_nms_top)
            chosen, kept_scores = _hard(boxes, scores, labels, usable, iou_threshold, max_detections)
    found = kept_scores > 0
    boxes = boxes.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))
    originals = original_sizes_hw.to(boxes.device)
    boxes = clip(scale(boxes, limits, originals), originals).where(found.unsqueeze(-1), 0.0)
    return BatchDetections(boxes, kept_scores, labels.gather(1, chosen).where(found, -1), found.sum(1))


def _may_lack(scores: Tensor, kept_scores: Tensor, top: int, score_threshold: float) -> bool:
    """Whether an image got fewer detections than asked for while more than its ``top`` candidates may be left."""
    if scores.shape[1] < top:
        return False
    return bool(((kept_scores[:, -1:] == 0) & (scores[:, -1:] > score_threshold)).any())


def _levels(outputs: Outputs, anchors: int) -> list[Tensor]:
    """Return a network's outputs level by level; on a GPU, which would wait for the masks of each level, as one level.

    Raises:
        ValueError: they are not of so many anchors.
    """
    levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if (found := sum(level.shape[1] for level in levels)) != anchors:
        raise ValueError(f"outputs are of {found} anchors, and there are {anchors}")
    return levels if len(levels) == 1 or levels[0].device.type == "cpu" else [torch.cat(levels, 1)]


def _of_anchors(levels: Sequence[Tensor], anchor: Tensor) -> Tensor:
    """Return what (B, C) anchors, counted through all levels, have there: (B, C, n)."""
    if len(levels) == 1:
        return levels[0].gather(1, anchor.unsqueeze(-1).expand(-1, -1, levels[0].shape[2]))
    found = levels[0].new_empty(*anchor.shape, levels[0].shape[2])
    start = 0
    for level in levels:
        stop = start + level.shape[1]
        image, place = ((anchor >= start) & (anchor < stop)).nonzero(as_tuple=True)
        found[image, place] = level[image, anchor[image, place] - start]
        start = stop
    return found


def _best(
    class_logits: Sequence[Tensor], best_of_anchor: Tensor, top: int, score_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logit, anchor and class of an image's best scores, best first: (B, C) each, C at most ``top``.

    The best anchors come first, then the best classes among them. The ``top`` best pairs of anchor and class lie on
    the ``top`` best anchors, so nothing is lost, and the sort sees C of the anchors instead of all of them times K.
    """
    batch, _, num_classes = class_logits[0].shape
    count = min(top, best_of_anchor.shape[1])
    if best_of_anchor.device.type == "cpu" and batch and 0 < score_threshold < 1:
        # Most anchors of a trained model score next to nothing: sort only as many as some image has above that, and
        # at least one, so that there is something to index.
        floor = math.log(score_threshold / (1.0 - score_threshold)) - 1e-3
        count = min(count, max(1, int((best_of_anchor >= floor).sum(1).amax())))
    anchor = best_of_anchor.topk(count, 1).indices  # (B, C)
    rows = _of_anchors(class_logits, anchor).flatten(1)  # (B, C * K)
    logits, index = rows.topk(min(top, rows.shape[1]), 1)
    return logits, anchor.gather(1, index // num_classes), index % num_classes


def _hard(
    boxes: Tensor, scores: Tensor, labels: Tensor, usable: Tensor, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor]:
    """Return indices and scores of the candidates that hard NMS leaves, (B, D); 0 and 0.0 past the last one."""
    batch = len(scores)
    image, candidate = usable.nonzero(as_tuple=True)
    group = image * (int(labels.max()) + 1 if labels.numel() else 1) + labels[usable]
    stays = grouped_nms(boxes[usable], scores[usable], group, iou_threshold)
    image, candidate = image[stays], candidate[stays]
    first = torch.searchsorted(image, torch.arange(batch, device=image.device))  # where each image's begin
    rank = torch.arange(len(image), device=image.device) - first[image]
    few = rank < max_detections
    image, candidate, rank = image[few], candidate[few], rank[few]
    chosen = torch.zeros(batch, max_detections, dtype=torch.int64, device=scores.device)
    kept = torch.zeros(batch, max_detections, device=scores.device)
    chosen[image, rank] = candidate
    kept[image, rank] = scores[image, candidate]
    return chosen, kept
