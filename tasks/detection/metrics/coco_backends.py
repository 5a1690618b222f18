"""The two programs that match detections with ground truth by COCO's protocol: hotcoco (Rust) and pycocotools.

Both return the same arrays to the last bit; everything after them (means, tables, pictures) is one code. pycocotools
prints as it goes; here it is silent.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effdense.errors import UserError
from effdense.json_files import parse_json, read_bytes
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable, complete_coco
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.types import Int64

Float64 = npt.NDArray[np.float64]
_SAMPLE = 1_000_000
"""Bytes at the head of a results file in which ids are looked up before hotcoco sees it. hotcoco finds every unknown
id, but says so on stderr; the head is enough to notice the wrong split's file, and to look further costs a fifth."""

GroundTruth = dict[str, Any] | Path | GroundTruthTable


@dataclass(frozen=True, eq=False)
class Matched:
    """What COCO's protocol accumulates, over 10 IoU thresholds, 101 recalls, K classes, 4 area ranges, 3 limits.

    Attributes:
        precision: (10, 101, K, 4, 3); -1 where a class has no object in the area range.
        recall: (10, K, 4, 3); -1 likewise.
        scores: (10, 101, K, 4, 3), the lowest score with which that recall is reached; 0 where it is not.
        category_ids: (K,), ascending.
        class_names: (K,).
        instances: (K,), objects that count, crowds left out.
        num_images: images of the ground truth.
        num_detections: detections handed in.
    """

    precision: Float64
    recall: Float64
    scores: Float64
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    instances: Int64
    num_images: int
    num_detections: int


def run_hotcoco(
    ground_truth: GroundTruth, detections: DetectionTable | Path, iou_type: str, max_detections: Sequence[int]
) -> Matched:
    """Match with hotcoco; files are read by it too, without a Python object per detection.

    Whether a file is in order is first asked in ways that cost next to nothing (the ids it names, how often a key
    occurs, hotcoco's own complaints). Where anything is odd the file is read again in Python, entry by entry, so that
    the error names the entry.
    """
    import hotcoco

    truth = _open_truth(ground_truth, iou_type)
    image_ids, category_ids = truth.get_img_ids(), sorted(truth.get_cat_ids())
    found, count = _open_detections(truth, detections, iou_type)
    evaluation = hotcoco.COCOeval(truth, found, iou_type)
    evaluation.params.max_dets = list(max_detections)
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    assert arrays is not None
    categories = truth.cats
    return Matched(
        precision=arrays["precision"],
        recall=arrays["recall"],
        scores=arrays["scores"],
        category_ids=tuple(category_ids),
        class_names=tuple(str(categories[category]["name"]) for category in category_ids),
        instances=_count_instances(truth, category_ids),
        num_images=len(image_ids),
        num_detections=count,
    )


def run_pycocotools(
    ground_truth: GroundTruth, detections: DetectionTable | Path, iou_type: str, max_detections: Sequence[int]
) -> Matched:
    """Match with pycocotools, the reference."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    source = ground_truth.to_coco() if isinstance(ground_truth, GroundTruthTable) else ground_truth
    dataset, name = complete_coco(source, iou_type=iou_type)
    _check_not_empty(len(dataset["images"]), name)
    entries = _entries(detections, dataset, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        if entries:
            found = truth.loadRes(entries)
        else:  # loadRes looks at the first entry
            found = COCO()
            found.dataset = {**dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    category_ids = [int(category) for category in evaluation.params.catIds]
    counted = [one for one in truth.loadAnns(truth.getAnnIds(imgIds=truth.getImgIds())) if not one["iscrowd"]]
    per_category = np.array([one["category_id"] for one in counted], np.int64)
    return Matched(
        precision=evaluation.eval["precision"],
        recall=evaluation.eval["recall"],
        scores=evaluation.eval["scores"],
        category_ids=tuple(category_ids),
        class_names=tuple(str(truth.cats[category]["name"]) for category in category_ids),
        instances=np.array([(per_category == category).sum() for category in category_ids], np.int64),
        num_images=len(dataset["images"]),
        num_detections=len(entries),
    )


def _count_instances(truth: Any, category_ids: list[int]) -> Int64:
    """Return how many objects of each category count, (K,); crowds and those of unlisted images do not."""
    only: dict[str, Any] = {"iscrowd": False}
    if len(truth.get_ann_ids(img_ids=truth.get_img_ids())) != len(truth.get_ann_ids()):
        only["img_ids"] = truth.get_img_ids()  # costs time, and is rarely needed
    return np.array([len(truth.get_ann_ids(cat_ids=[one], **only)) for one in category_ids], np.int64)


def _open_truth(source: GroundTruth, iou_type: str) -> Any:
    """Return hotcoco's COCO of the ground truth."""
    import hotcoco

    if isinstance(source, GroundTruthTable):
        content = source.to_coco()
        _check_not_empty(len(content["images"]), source.source)
        return hotcoco.COCO(content)
    if isinstance(source, Path):
        truth = _open_truth_file(source, iou_type)
        if truth is not None:
            return truth
    dataset, name = complete_coco(source, iou_type=iou_type)
    _check_not_empty(len(dataset["images"]), name)
    return _rejecting(lambda: hotcoco.COCO(dataset), name)


def _open_truth_file(path: Path, iou_type: str) -> Any | None:
    """Return hotcoco's COCO of a file in which nothing is missing, or None where that is in doubt."""
    import hotcoco

    content = read_bytes(path)
    if b'"name"' not in content or _has_odd_values(content):
        return None
    try:
        truth = hotcoco.COCO(str(path))
    except ValueError:
        return None
    count = len(truth.get_ann_ids())
    shape_key = b'"bbox"' if iou_type == "bbox" else b'"segmentation"'
    complete = min(content.count(shape_key), content.count(b'"area"')) >= count and not truth.load_warnings
    return truth if complete and truth.get_cat_ids() and truth.get_img_ids() else None


def _open_detections(truth: Any, source: DetectionTable | Path, iou_type: str) -> tuple[Any, int]:
    """Return hotcoco's COCO of the detections, and how many they are."""
    if isinstance(source, DetectionTable):
        _check_has_masks(iou_type)
        source.check_against(np.array(truth.get_img_ids()), np.array(truth.get_cat_ids()))
        columns = (source.image_ids, source.boxes_xywh, source.scores, source.category_ids)
        return truth.load_res(np.column_stack(columns).astype(np.float64)), len(source)
    content = read_bytes(source)
    if content.lstrip()[:1] == b"[" and not _has_odd_values(content) and _names_only_known(content[:_SAMPLE], truth):
        with contextlib.suppress(ValueError):
            found = truth.load_res(str(source))
            count = len(found.get_ann_ids())
            shape_key = b'"bbox"' if iou_type == "bbox" else b'"segmentation"'
            in_order = content.count(b'"score"') == content.count(shape_key) == count and not found.load_warnings
            if in_order:
                return found, count
    dataset = {
        "images": [{"id": one} for one in truth.get_img_ids()],
        "categories": [{"id": one} for one in truth.get_cat_ids()],
    }
    entries = _entries(source, dataset, iou_type)
    return _rejecting(lambda: truth.load_res(entries), str(source)), len(entries)


def _has_odd_values(content: bytes) -> bool:
    """Tell whether a JSON text may hold what is no number; hotcoco takes all of these for null, and null for absent.

    A single letter is found many times faster than a word, and most results files hold none of these three.
    """
    words = ((b"u", b"null"), (b"N", b"NaN"), (b"I", b"Infinity"))
    return any(letter in content and word in content for letter, word in words)


def _names_only_known(content: bytes, truth: Any) -> bool:
    """Tell whether the ids in a results file, where they are written in the usual way, are all known."""
    import re

    for key, known in (("image_id", truth.get_img_ids()), ("category_id", truth.get_cat_ids())):
        named = set(re.findall(rb'"%s": ?(\d+)[,} ]' % key.encode(), content))
        if not {int(one) for one in named} <= set(known):
            return False
    return True


def _entries(source: DetectionTable | Path, dataset: dict[str, Any], iou_type: str) -> list[dict[str, Any]]:
    """Return detections as COCO's results file has them, each one checked."""
    images = np.array([image["id"] for image in dataset["images"]], np.int64)
    categories = np.array([category["id"] for category in dataset["categories"]], np.int64)
    if isinstance(source, DetectionTable):
        _check_has_masks(iou_type)
        source.check_against(images, categories)
        columns = (source.image_ids, source.category_ids, source.boxes_xywh, source.scores)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in rows]
    entries = parse_json(read_bytes(source), source)
    with_boxes = entries
    if iou_type == "segm" and isinstance(entries, list):
        for index, entry in enumerate(entries):
            if isinstance(entry, dict) and not isinstance(entry.get("segmentation"), (dict, list)):
                raise UserError(f"{source}: entry {index} has no 'segmentation', which iou_type 'segm' compares")
        with_boxes = [{"bbox": [0, 0, 0, 0], **one} if isinstance(one, dict) else one for one in entries]
    DetectionTable.from_entries(with_boxes, source=str(source)).check_against(images, categories)
    return list(entries)


def _check_has_masks(iou_type: str) -> None:
    if iou_type == "segm":
        raise UserError("a DetectionTable holds boxes only; hand in the results file itself for iou_type 'segm'")


def _check_not_empty(num_images: int, name: str) -> None:
    if not num_images:
        raise UserError(f"{name}: lists no image, so there is nothing to evaluate")


def _rejecting(open_it: Any, name: str) -> Any:
    """Call, and say of which file it is that hotcoco complains."""
    try:
        return open_it()
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{name}: cannot be evaluated: {error}") from error
