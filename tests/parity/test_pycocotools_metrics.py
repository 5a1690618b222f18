"""hotcoco, pycocotools and pycocotools' own summary: the same numbers, bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effdense.tasks.detection.metrics.coco_metrics import CocoResult, coco_metrics
from effdense.tasks.detection.metrics.ground_truth import complete_coco
from effdense.tasks.detection.metrics.tables import DetectionTable

pytestmark = pytest.mark.parity
ARRAYS = ("ap", "ap50", "ap75", "ar", "precision50", "precision_mean", "scores50", "instances")


@pytest.fixture
def fixtures() -> Path:
    folder = os.environ.get("EFFDENSE_TEST_DATA")
    if not folder:
        pytest.skip("EFFDENSE_TEST_DATA is not set")
    return Path(folder) / "fixtures"


def random_case(
    seed: int, *, images: int = 12, classes: int = 5, objects: int = 60, found: int = 400, grid: int = 1
) -> tuple[dict[str, Any], DetectionTable]:
    """Objects with crowds and empty images, and detections near them with tied scores."""
    rng = np.random.default_rng(seed)
    categories = rng.permutation(np.arange(1, 10 * classes))[:classes]
    image_ids = rng.permutation(np.arange(0, 5 * images))[:images]
    corner = rng.uniform(0, 400, (objects, 2))
    boxes = np.concatenate([corner, np.exp(rng.uniform(np.log(3), np.log(300), (objects, 2)))], 1).round(grid)
    truth = {
        "images": [{"id": int(one), "width": 640, "height": 640, "file_name": f"{one}.jpg"} for one in image_ids],
        "categories": [{"id": int(one), "name": f"class {one}"} for one in categories],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(rng.choice(image_ids[:-2])),
                "category_id": int(rng.choice(categories[:-1])),
                "bbox": box,
                "area": box[2] * box[3] * rng.uniform(0.5, 1.0),
                "iscrowd": int(rng.random() < 0.1),
            }
            for n, box in enumerate(boxes.tolist())
        ],
    }
    near = rng.integers(0, objects, found) if objects else np.zeros(found, np.int64)
    all_boxes = boxes if objects else rng.uniform(10, 50, (1, 4))
    annotations = truth["annotations"]
    shaken = all_boxes[near] + rng.normal(0, 6, (found, 4))
    shaken[:, 2:] = np.abs(shaken[:, 2:])
    owner_image = [annotations[n]["image_id"] for n in near] if objects else rng.choice(image_ids, found).tolist()
    owner_class = [annotations[n]["category_id"] for n in near] if objects else rng.choice(categories, found).tolist()
    wrong = rng.random(found) < 0.2
    table = DetectionTable(
        np.array(owner_image, np.int64),
        np.where(wrong, rng.choice(categories, found), np.array(owner_class, np.int64)).astype(np.int64),
        shaken.round(grid),
        rng.random(found).round(2),
    )
    return truth, table


def pycocotools_stats(truth: dict[str, Any], table: DetectionTable) -> list[float]:
    """What a user of pycocotools gets from evaluate, accumulate, summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = zip(table.image_ids, table.category_ids, table.boxes_xywh.tolist(), table.scores.tolist(), strict=True)
    entries = [{"image_id": int(i), "category_id": int(c), "bbox": b, "score": s} for i, c, b, s in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO()
        ours.dataset = complete_coco(truth)[0]
        ours.createIndex()
        evaluation = COCOeval(ours, ours.loadRes(entries), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def assert_same(first: CocoResult, second: CocoResult) -> None:
    assert list(first.metrics) == list(second.metrics)
    for key, value in first.metrics.items():
        assert value == second.metrics[key] or (np.isnan(value) and np.isnan(second.metrics[key])), key
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for name in ("class_names", "category_ids", "num_images", "num_detections", "max_detections", "iou_type"):
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize(
    ("seed", "sizes"),
    [
        pytest.param(0, {}, id="mixed"),
        pytest.param(1, {"grid": 6}, id="fractional boxes"),
        pytest.param(2, {"images": 3, "classes": 2, "objects": 30, "found": 900}, id="more than 100 of a class"),
        pytest.param(3, {"images": 40, "classes": 12, "objects": 200, "found": 1500}, id="many classes"),
        pytest.param(4, {"images": 3, "classes": 2, "objects": 1, "found": 1}, id="single"),
        pytest.param(5, {"images": 4, "classes": 3, "objects": 0, "found": 20}, id="nothing there"),
    ],
)
def test_both_backends_and_pycocotools_own_summary_agree_to_the_last_bit(
    seed: int, sizes: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    truth, table = random_case(seed, **sizes)
    fast, reference = (coco_metrics(truth, table, backend=one) for one in ("hotcoco", "pycocotools"))
    assert_same(fast, reference)
    values = [-1.0 if np.isnan(value) else value for value in reference.metrics.values()]
    assert values == pycocotools_stats(truth, table)
    assert capfd.readouterr() == ("", "")


def test_both_backends_agree_beyond_100_detections() -> None:
    truth, table = random_case(2, images=3, classes=2, objects=30, found=900)
    limits = (1, 10, 300)
    fast, reference = (coco_metrics(truth, table, backend=b, max_detections=limits) for b in ("hotcoco", "pycocotools"))
    assert_same(fast, reference)
    assert list(fast.metrics)[6:9] == ["AR1", "AR10", "AR300"]
    assert "300" in fast.notes[0]
    assert fast.metrics["AR300"] >= coco_metrics(truth, table).metrics["AR100"]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_files_and_memory_give_the_same_numbers(tmp_path: Path, backend: str) -> None:
    truth, table = random_case(7)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    table.to_json(tmp_path / "found.json")
    memory = coco_metrics(truth, table, backend=backend)
    assert_same(memory, coco_metrics(tmp_path / "truth.json", tmp_path / "found.json", backend=backend))
    (tmp_path / "spaced.json").write_text(json.dumps(json.loads((tmp_path / "found.json").read_text()), indent=2))
    assert_same(memory, coco_metrics(tmp_path / "truth.json", tmp_path / "spaced.json", backend=backend))


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize(("iou_type", "results"), [("bbox", "fakebbox100"), ("segm", "fakesegm100")])
def test_coco_val2014_gives_the_twelve_published_numbers(
    fixtures: Path, backend: str, iou_type: str, results: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = fixtures / "coco_val2014_100"
    printed = (folder / "expected_pycocotools.txt").read_text().split(f"type={iou_type}")[1].split("type=")[0]
    expected = [float(value) for value in re.findall(r"\] = (-?\d\.\d+)", printed)]
    assert len(expected) == 12
    result = coco_metrics(
        folder / "instances_val2014_100.json",
        folder / f"instances_val2014_{results}_results.json",
        backend=backend,
        iou_type=iou_type,
    )
    assert [round(value, 3) for value in result.metrics.values()] == expected
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("iou_type", "results"), [("bbox", "fakebbox100"), ("segm", "fakesegm100")])
def test_both_backends_agree_on_coco_val2014(fixtures: Path, iou_type: str, results: str) -> None:
    truth = fixtures / "coco_val2014_100" / "instances_val2014_100.json"
    found = fixtures / "coco_val2014_100" / f"instances_val2014_{results}_results.json"
    assert_same(*(coco_metrics(truth, found, backend=b, iou_type=iou_type) for b in ("hotcoco", "pycocotools")))


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_coco_with_box_areas_gives_the_expected_twelve(fixtures: Path, backend: str) -> None:
    folder = fixtures / "coco_box_area_100"
    expected = json.loads((folder / "expected.json").read_text())
    tolerance = expected.pop("tol")
    truth = folder / "gts" / "sampled_gts_bbox_area.json"
    result = coco_metrics(truth, folder / "cocoapi_results.json", backend=backend)
    assert result.metrics == pytest.approx(expected, abs=tolerance)
