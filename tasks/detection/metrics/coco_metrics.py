"""COCO's twelve numbers, per-class AP and precision-recall curves.

Protocol: Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and the detection page of cocodataset.org, as
pycocotools computes it. Where pycocotools says -1 (no object to find) the value here is NaN, and null in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.errors import UserError, nearest
from effdense.json_files import jsonable
from effdense.tasks.detection.metrics.coco_backends import GroundTruth, Matched, run_hotcoco, run_pycocotools
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.types import Int64

Float64 = npt.NDArray[np.float64]
_BACKENDS = {"hotcoco": run_hotcoco, "pycocotools": run_pycocotools}
_AREAS = ("", "small", "medium", "large")
_AT_50, _AT_75 = 0, 5  # positions in the IoU thresholds 0.50, 0.55 ... 0.95


@dataclass(frozen=True, eq=False)
class CocoResult:
    """What COCO's protocol says of a set of detections. NaN stands for "no object to find".

    Attributes:
        metrics: AP, AP50, AP75, APsmall, APmedium, APlarge, AR1, AR10, AR100, ARsmall, ARmedium, ARlarge, in 0..1; the
            numbers in AR1, AR10, AR100 are ``max_detections``.
        class_names: (K,), in ascending order of category id.
        category_ids: (K,).
        instances: (K,), objects that count (crowds left out).
        ap: (K,), mean over IoU 0.50:0.95.
        ap50: (K,), at IoU 0.5.
        ap75: (K,), at IoU 0.75.
        ar: (K,), mean over IoU 0.50:0.95, at the largest of ``max_detections``.
        recall_grid: (101,), 0, 0.01 ... 1.
        precision50: (101, K), at IoU 0.5.
        precision_mean: (101, K), mean over IoU 0.50:0.95.
        scores50: (101, K), the score threshold that reaches a recall at IoU 0.5; 0 where it is out of reach.
        iou_type: "bbox" or "segm".
        backend: "hotcoco" or "pycocotools".
        max_detections: the most detections an image, three times.
        num_images: images evaluated.
        num_detections: detections handed in.
        notes: what a reader of the numbers must know.
    """

    metrics: dict[str, float]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    instances: Int64
    ap: Float64
    ap50: Float64
    ap75: Float64
    ar: Float64
    recall_grid: Float64
    precision50: Float64
    precision_mean: Float64
    scores50: Float64
    iou_type: str
    backend: str
    max_detections: tuple[int, int, int]
    num_images: int
    num_detections: int
    notes: tuple[str, ...] = ()

    @property
    def map(self) -> float:
        """AP, the mean over IoU 0.50:0.95; 0 where there is no object to find."""
        return float(np.nan_to_num(self.metrics["AP"]))

    @property
    def map50(self) -> float:
        """AP at IoU 0.5; 0 where there is no object to find."""
        return float(np.nan_to_num(self.metrics["AP50"]))

    @property
    def numbers(self) -> dict[str, float | None]:
        """The twelve, as JSON has them: None where there is no object to find."""
        return {key: None if math.isnan(value) else value for key, value in self.metrics.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON: NaN is None."""
        per_class = zip(
            self.class_names, self.category_ids, self.instances.tolist(),
            *(jsonable(column) for column in (self.ap, self.ap50, self.ap75, self.ar)), strict=True,
        )  # fmt: skip
        keys = ("name", "category_id", "instances", "AP", "AP50", "AP75", "AR")
        return {
            "metrics": self.numbers,
            "per_class": [dict(zip(keys, row, strict=True)) for row in per_class],
            "iou_type": self.iou_type,
            "backend": self.backend,
            "max_detections": list(self.max_detections),
            "images": self.num_images,
            "detections": self.num_detections,
            "notes": list(self.notes),
            "curves": {
                "recall": jsonable(self.recall_grid),
                "precision50": jsonable(self.precision50.T),
                "precision_mean": jsonable(self.precision_mean.T),
                "score50": jsonable(self.scores50.T),
            },
        }


def coco_metrics(
    ground_truth: GroundTruth | str,
    detections: DetectionTable | Path | str,
    *,
    backend: str = "hotcoco",
    iou_type: str = "bbox",
    max_detections: Sequence[int] = (1, 10, 100),
) -> CocoResult:
    """Evaluate detections by COCO's protocol. Prints nothing.

    Args:
        ground_truth: COCO instances as a file, as their parsed content, or a GroundTruthTable.
        detections: a table, or a COCO results file. The quickest way is two files: hotcoco reads both by itself.
        backend: "hotcoco" or "pycocotools"; the same numbers to the last bit.
        iou_type: "bbox", or "segm" (masks; both from files).
        max_detections: three ascending limits on the detections an image that count, the best first, for each class.
            AP and the AR by size are taken at the last one. COCO says 1, 10, 100; with a larger last limit crowded
            images can be recalled in full and AP can only rise, so that numbers no longer compare with published
            ones. ``notes`` then says so.

    Raises:
        UserError: a file that cannot be read or parsed (file and line), entries without their keys, ids that the
            ground truth does not have, an unknown backend or iou_type.
    """
    if backend not in _BACKENDS:
        raise UserError(f"unknown evaluation backend {backend!r}{nearest(backend, list(_BACKENDS))}; "
                        f"there are {' and '.join(_BACKENDS)}")  # fmt: skip
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"unknown iou_type {iou_type!r}{nearest(iou_type, ['bbox', 'segm'])}; there are bbox and segm")
    limits = tuple(int(limit) for limit in max_detections)
    if len(limits) != 3 or not 0 < limits[0] < limits[1] < limits[2]:
        raise UserError(
            f"max_detections must be three ascending numbers such as 1, 10, 100; got {list(max_detections)}"
        )
    truth = Path(ground_truth) if isinstance(ground_truth, str) else ground_truth
    found = Path(detections) if isinstance(detections, str) else detections
    matched = _BACKENDS[backend](truth, found, iou_type, limits)
    return _summarise(matched, backend, iou_type, (limits[0], limits[1], limits[2]))


def _summarise(matched: Matched, backend: str, iou_type: str, limits: tuple[int, int, int]) -> CocoResult:
    precision, recall = matched.precision, matched.recall
    metrics = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[[_AT_50]][..., 0, -1]),
        "AP75": _mean(precision[[_AT_75]][..., 0, -1]),
    }
    metrics |= {f"AP{_AREAS[area]}": _mean(precision[..., area, -1]) for area in (1, 2, 3)}
    metrics |= {f"AR{limit}": _mean(recall[..., 0, position]) for position, limit in enumerate(limits)}
    metrics |= {f"AR{_AREAS[area]}": _mean(recall[..., area, -1]) for area in (1, 2, 3)}
    at_all = np.where(precision[..., 0, -1] > -1, precision[..., 0, -1], np.nan)  # (10, 101, K)
    recall_at_all = np.where(recall[..., 0, -1] > -1, recall[..., 0, -1], np.nan)  # (10, K)
    notes: tuple[str, ...] = ()
    if limits != (1, 10, 100):
        notes = (
            f"AP and AR count up to {limits[2]} detections an image and class, where COCO's protocol says 100: "
            "these numbers do not compare with published ones.",
        )
    return CocoResult(
        metrics=metrics,
        class_names=matched.class_names,
        category_ids=matched.category_ids,
        instances=matched.instances,
        ap=at_all.mean((0, 1)),
        ap50=at_all[_AT_50].mean(0),
        ap75=at_all[_AT_75].mean(0),
        ar=recall_at_all.mean(0),
        recall_grid=np.linspace(0.0, 1.0, 101),
        precision50=at_all[_AT_50],
        precision_mean=at_all.mean(0),
        scores50=np.where(precision[_AT_50, :, :, 0, -1] > -1, matched.scores[_AT_50, :, :, 0, -1], np.nan),
        iou_type=iou_type,
        backend=backend,
        max_detections=limits,
        num_images=matched.num_images,
        num_detections=matched.num_detections,
        notes=notes,
    )


def _mean(values: Float64) -> float:
    """Mean over what is there, in the order in which pycocotools adds up, so that no bit differs."""
    there = values[values > -1]
    return float(np.mean(there)) if there.size else math.nan
