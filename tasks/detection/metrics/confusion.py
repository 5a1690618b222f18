"""Which class is taken for which, what is missed and what is invented: a confusion matrix with background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.metrics.voc_metrics import by_image, corners, pairwise_overlap
from effdense.types import Bool, Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Counts of objects and detections.

    Attributes:
        counts: (K + 1, K + 1), row = what is there, column = what was found; the last row is background (invented),
            the last column background (missed); the corner is 0, for nothing found where nothing is has no count.
        class_names: (K,).
        score_threshold: detections that score less were left out.
        iou_threshold: an object and a detection meet with at least this IoU.
    """

    counts: Int64
    class_names: tuple[str, ...]
    score_threshold: float
    iou_threshold: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "rows": "ground truth",
            "columns": "detected",
            "classes": [*self.class_names, "background"],
            "counts": self.counts.tolist(),
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
        }


def confusion_matrix(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.5,
) -> ConfusionMatrix:
    """Count which class is taken for which.

    In each image, greedily and best score first: a detection takes the free object of its own class that it overlaps
    most, so that the diagonal holds the true positives; what is left takes free objects of other classes. Detections
    left over are inventions and objects left over are missed. Crowds and difficult objects are never missed, and a
    detection that lies on one (a crowd: with that share of its own area; a difficult object: by IoU) counts nowhere,
    unless it belongs to an object of its class.

    Args:
        ground_truth: what is there.
        detections: what was found.
        score_threshold: detections that score less are left out.
        iou_threshold: an object and a detection meet with at least this IoU.

    Raises:
        UserError: detections of unknown images or categories.
    """
    detections.check_against(ground_truth.all_image_ids, ground_truth.class_category_ids)
    num_classes = len(ground_truth.class_category_ids)
    kept = np.flatnonzero(detections.scores >= score_threshold)
    kept = kept[np.argsort(-detections.scores[kept], kind="stable")]
    labels = np.searchsorted(ground_truth.class_category_ids, detections.category_ids[kept])
    truth_labels = np.searchsorted(ground_truth.class_category_ids, ground_truth.category_ids)
    boxes_xyxy, truth_xyxy = corners(detections.boxes_xywh[kept]), corners(ground_truth.boxes_xywh)
    left_out = ground_truth.crowd | ground_truth.difficult
    found_rows, truth_rows = by_image(detections.image_ids[kept]), by_image(ground_truth.image_ids)
    none = np.zeros(0, np.int64)
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image_id in {**found_rows, **truth_rows}:
        found, there = found_rows.get(image_id, none), truth_rows.get(image_id, none)
        iou, share = pairwise_overlap(boxes_xyxy[found], truth_xyxy[there])
        meets = np.where(ground_truth.crowd[there], share, iou)
        meets[meets < iou_threshold] = 0.0
        same = labels[found][:, None] == truth_labels[there][None]
        matched, dropped = _match(meets, same, left_out[there])
        hit = matched >= 0
        np.add.at(counts, (truth_labels[there[matched[hit]]], labels[found[hit]]), 1)
        np.add.at(counts[num_classes], labels[found[~hit & ~dropped]], 1)
        missed = ~left_out[there]
        missed[matched[hit]] = False
        np.add.at(counts[:, num_classes], truth_labels[there[missed]], 1)
    return ConfusionMatrix(counts, ground_truth.class_names, float(score_threshold), float(iou_threshold))


def _match(meets: Float64, same: Bool, left_out: Bool) -> tuple[Int64, Bool]:
    """Match the detections of one image, best first, with its objects.

    Args:
        meets: (D, T), the overlap, 0 where it is too little.
        same: (D, T), detection and object are of one class.
        left_out: (T,), crowds and difficult objects.

    Returns:
        (D,) the object of each detection or -1, and (D,) whether the detection counts nowhere.
    """
    matched = np.full(len(meets), -1, np.int64)
    dropped = np.zeros(len(meets), np.bool_)
    taken = left_out.copy()
    if not meets.any():
        return matched, dropped
    for allowed in (same, ~same):
        overlap = np.where(allowed, meets, 0.0)
        for row in np.flatnonzero((matched < 0) & ~dropped):
            free = np.where(taken, 0.0, overlap[row])
            best = int(free.argmax())
            if free[best] > 0:
                matched[row], taken[best] = best, True
        dropped |= (matched < 0) & (overlap[:, left_out] > 0).any(1)
    return matched, dropped
