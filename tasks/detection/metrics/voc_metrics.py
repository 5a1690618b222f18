"""Pascal VOC's average precision, by 11 points (until 2009) and by area (since 2010).

Protocol: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", 2010, section 4.2, and the development
kit: detections of a class are taken over all images in descending score; each looks at the one object of its class that
it overlaps most; a difficult object makes the detection count nowhere, a free one makes it true, one that is taken
already makes it false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.errors import UserError
from effdense.json_files import jsonable
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.types import Bool, Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VocResult:
    """Average precision at T IoU thresholds for K classes; NaN where a class has no object that is not difficult.

    Attributes:
        iou_thresholds: (T,).
        class_names: (K,).
        instances: (K,), objects that are not difficult.
        ap_11point: (T, K).
        ap_area: (T, K).
        curves: [T][K], recall and precision after each detection, both (D,), best score first.
        inclusive_pixels: whether a box from 3 to 5 was taken to be 3 pixels wide.
    """

    iou_thresholds: tuple[float, ...]
    class_names: tuple[str, ...]
    instances: Int64
    ap_11point: Float64
    ap_area: Float64
    curves: tuple[tuple[tuple[Float64, Float64], ...], ...]
    inclusive_pixels: bool = False

    def mean_ap(self, iou_threshold: float = 0.5, method: str = "area") -> float:
        """Return the mean over the classes that have objects; NaN where none has.

        Args:
            iou_threshold: one of ``iou_thresholds``.
            method: "area" or "11point".
        """
        row = self.iou_thresholds.index(iou_threshold)
        values = {"area": self.ap_area, "11point": self.ap_11point}[method][row]
        there = values[np.isfinite(values)]
        return float(there.mean()) if there.size else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return all but the curves as plain values for JSON: NaN is None."""
        return {
            "inclusive_pixels": self.inclusive_pixels,
            "at_iou": [
                {
                    "iou": threshold,
                    "mAP_area": jsonable(self.mean_ap(threshold, "area")),
                    "mAP_11point": jsonable(self.mean_ap(threshold, "11point")),
                    "per_class": [
                        {"name": name, "instances": count, "AP_area": area, "AP_11point": points}
                        for name, count, area, points in zip(
                            self.class_names, self.instances.tolist(), jsonable(self.ap_area[row]),
                            jsonable(self.ap_11point[row]), strict=True,
                        )
                    ],
                }
                for row, threshold in enumerate(self.iou_thresholds)
            ],
        }  # fmt: skip


def voc_metrics(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    *,
    iou_thresholds: Sequence[float] = (0.5,),
    inclusive_pixels: bool = False,
) -> VocResult:
    """Evaluate detections by Pascal VOC's protocol.

    Crowds, which VOC does not know, are left out as difficult objects are.

    Args:
        ground_truth: what is there.
        detections: what was found; equal scores keep their order.
        iou_thresholds: a detection hits with at least this IoU; each in (0, 1].
        inclusive_pixels: the development kit's way with its 1-based corners: the last pixel belongs to the box, width =
            right - left + 1. A box written here as x, y, w, h is then w + 1 wide. Leave it off for boxes that already
            have an exclusive right edge, as effdense reads VOC's.

    Raises:
        UserError: detections of unknown images or categories, a threshold outside (0, 1].
    """
    detections.check_against(ground_truth.all_image_ids, ground_truth.class_category_ids)
    for threshold in iou_thresholds:
        if not 0 < threshold <= 1:
            raise UserError(f"an IoU threshold must lie above 0 and be at most 1; got {threshold}")
    order = np.argsort(-detections.scores, kind="stable")
    category_ids, image_ids = detections.category_ids[order], detections.image_ids[order]
    boxes_xyxy = corners(detections.boxes_xywh[order])
    truth_xyxy = corners(ground_truth.boxes_xywh)
    left_out = ground_truth.difficult | ground_truth.crowd
    extra = 1.0 if inclusive_pixels else 0.0
    instances, curves_by_class = [], []
    for category_id in ground_truth.class_category_ids:
        found = category_ids == category_id
        there = np.flatnonzero(ground_truth.category_ids == category_id)
        best, best_iou = _most_overlapped(
            image_ids[found], boxes_xyxy[found], ground_truth.image_ids[there], truth_xyxy[there], extra
        )
        num_positive = int((~left_out[there]).sum())
        instances.append(num_positive)
        curves_by_class.append(
            [_curve(best, best_iou, left_out[there], num_positive, threshold) for threshold in iou_thresholds]
        )
    shape = (len(instances), len(iou_thresholds))
    return VocResult(
        iou_thresholds=tuple(float(threshold) for threshold in iou_thresholds),
        class_names=ground_truth.class_names,
        instances=np.array(instances, np.int64),
        ap_11point=np.array([[ap_11point(*c) for c in curves] for curves in curves_by_class]).reshape(shape).T,
        ap_area=np.array([[ap_area(*c) for c in curves] for curves in curves_by_class]).reshape(shape).T,
        curves=tuple(tuple(curves[row] for curves in curves_by_class) for row in range(len(iou_thresholds))),
        inclusive_pixels=inclusive_pixels,
    )


def ap_11point(recall: Float64, precision: Float64) -> float:
    """Mean over the recalls 0, 0.1 ... 1 of the best precision at that recall or beyond; NaN for an undefined curve.

    The recalls are multiples of the floating-point 0.1, as in every implementation that scores were published with;
    three of them (0.3, 0.6, 0.7) thereby lie a last bit higher than the fraction, and 9 of 15 found do not reach 0.6.
    """
    if np.isnan(recall).any():
        return float("nan")
    beyond = [precision[recall >= step] for step in np.linspace(0.0, 1.0, 11)]
    return float(np.mean([values.max() if values.size else 0.0 for values in beyond]))


def ap_area(recall: Float64, precision: Float64) -> float:
    """Area under the curve after precision was made to fall monotonically; NaN for an undefined curve."""
    if np.isnan(recall).any():
        return float("nan")
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def corners(boxes_xywh: Float64) -> Float64:
    """Return boxes as left, top, right, bottom, (N, 4)."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def pairwise_overlap(first_xyxy: Float64, second_xyxy: Float64, extra: float = 0.0) -> tuple[Float64, Float64]:
    """Return IoU, and intersection over the area of the first, both (N, M); 0 where an area is 0.

    Args:
        first_xyxy: (N, 4).
        second_xyxy: (M, 4).
        extra: added to every width and height; 1 where right and bottom edge belong to the box.
    """
    low = np.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    high = np.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    intersection = np.clip(high - low + extra, 0.0, None).prod(-1)  # (N, M)
    first_area = (first_xyxy[:, 2:] - first_xyxy[:, :2] + extra).clip(0.0).prod(-1)[:, None]
    second_area = (second_xyxy[:, 2:] - second_xyxy[:, :2] + extra).clip(0.0).prod(-1)[None]
    union = first_area + second_area - intersection
    nothing = np.zeros_like(intersection)
    iou = np.divide(intersection, union, out=nothing.copy(), where=union > 0)
    share = np.divide(intersection, first_area, out=nothing, where=np.broadcast_to(first_area > 0, intersection.shape))
    return iou, share


def by_image(image_ids: Int64) -> dict[int, Int64]:
    """Return the rows of each image, in their order."""
    if not len(image_ids):
        return {}
    order = np.argsort(image_ids, kind="stable")
    ids, starts = np.unique(image_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))


def _most_overlapped(
    image_ids: Int64, boxes_xyxy: Float64, truth_image_ids: Int64, truth_xyxy: Float64, extra: float
) -> tuple[Int64, Float64]:
    """Return for each detection of a class the object of its image that it overlaps most, and the IoU; -1 for none."""
    best = np.full(len(image_ids), -1, np.int64)
    best_iou = np.zeros(len(image_ids))
    truth_rows = by_image(truth_image_ids)
    for image_id, rows in by_image(image_ids).items():
        if image_id in truth_rows:
            there = truth_rows[image_id]
            iou, _ = pairwise_overlap(boxes_xyxy[rows], truth_xyxy[there], extra)
            best[rows] = there[iou.argmax(1)]
            best_iou[rows] = iou.max(1)
    return best, best_iou


def _curve(
    best: Int64, best_iou: Float64, left_out: Bool, num_positive: int, threshold: float
) -> tuple[Float64, Float64]:
    """Return recall and precision after each detection, best score first; those on difficult objects are skipped."""
    hits = (best >= 0) & (best_iou >= threshold)
    counts = np.ones(len(best), np.bool_)
    counts[hits] = ~left_out[best[hits]]
    rows = np.flatnonzero(hits & counts)
    _, firsts = np.unique(best[rows], return_index=True)  # the best-scored detection of each object
    true = np.zeros(len(best), np.bool_)
    true[rows[firsts]] = True
    true_so_far = np.cumsum(true[counts]).astype(np.float64)
    precision = true_so_far / np.arange(1, len(true_so_far) + 1)
    if num_positive == 0:
        return np.full(max(1, len(true_so_far)), np.nan), np.full(max(1, len(true_so_far)), np.nan)
    return true_so_far / num_positive, precision
