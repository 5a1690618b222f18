from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from effdense.errors import UserError
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.metrics.voc_metrics import ap_11point, ap_area, pairwise_overlap, voc_metrics

BOX = (10.0, 10.0, 20.0, 20.0)
FAR = (200.0, 200.0, 20.0, 20.0)
EMPTY = (5.0, 5.0, 0.0, 0.0)


def truth(*objects: tuple[int, tuple[float, ...], bool], classes: int = 1) -> GroundTruthTable:
    """Objects as (category id, box, difficult), all in image 1."""
    boxes = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4)
    return GroundTruthTable(
        all_image_ids=np.array([1, 2]),
        class_category_ids=np.arange(classes),
        class_names=tuple(f"class {n}" for n in range(classes)),
        image_ids=np.ones(len(objects), np.int64),
        category_ids=np.array([category for category, _, _ in objects], np.int64),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(len(objects), np.bool_),
        difficult=np.array([difficult for _, _, difficult in objects], np.bool_),
    )


def found(*detections: tuple[int, tuple[float, ...], float], image_id: int = 1) -> DetectionTable:
    """Detections as (category id, box, score)."""
    return DetectionTable(
        np.full(len(detections), image_id, np.int64),
        np.array([category for category, _, _ in detections], np.int64),
        np.array([box for _, box, _ in detections], np.float64).reshape(-1, 4),
        np.array([score for _, _, score in detections], np.float64),
    )


@pytest.mark.parametrize(
    ("objects", "detections", "area", "points"),
    [
        pytest.param([(0, BOX, False)], [(0, BOX, 0.9)], 1.0, 1.0, id="found"),
        pytest.param([(0, BOX, False)], [], 0.0, 0.0, id="nothing found"),
        pytest.param([], [(0, BOX, 0.9)], np.nan, np.nan, id="nothing there"),
        pytest.param([(0, BOX, True)], [(0, BOX, 0.9)], np.nan, np.nan, id="only difficult"),
        pytest.param([(0, BOX, False), (0, FAR, True)], [(0, FAR, 0.9), (0, BOX, 0.5)], 1.0, 1.0, id="difficult found"),
        pytest.param([(0, BOX, False), (0, FAR, True)], [(0, BOX, 0.5)], 1.0, 1.0, id="difficult missed"),
        pytest.param([(0, BOX, False)], [(0, BOX, 0.9), (0, BOX, 0.8)], 1.0, 1.0, id="doubled, second worse"),
        pytest.param(
            [(0, BOX, False), (0, FAR, False)], [(0, BOX, 0.9), (0, BOX, 0.8), (0, FAR, 0.7)],
            0.5 + 0.5 * 2 / 3, (6 * 1 + 5 * 2 / 3) / 11, id="doubled counts as false",
        ),
        pytest.param(
            [(0, BOX, False), (0, FAR, False)], [(0, FAR, 0.9), (0, (90.0, 90.0, 5.0, 5.0), 0.95)],
            0.5 * 0.5, 6 * 0.5 / 11, id="false one first",
        ),
        pytest.param([(0, BOX, False)], [(0, (10.0, 10.0, 20.0, 10.0), 0.9)], 1.0, 1.0, id="IoU at the threshold"),
        pytest.param([(0, BOX, False)], [(0, (10.0, 10.0, 20.0, 9.9), 0.9)], 0.0, 0.0, id="IoU just below"),
        pytest.param([(0, EMPTY, False)], [(0, EMPTY, 0.9)], 0.0, 0.0, id="boxes of no area"),
    ],
)  # fmt: skip
def test_ap_of_small_cases_worked_by_hand(
    objects: list[tuple[int, tuple[float, ...], bool]],
    detections: list[tuple[int, tuple[float, ...], float]],
    area: float,
    points: float,
) -> None:
    result = voc_metrics(truth(*objects), found(*detections))
    assert result.ap_area[0, 0] == pytest.approx(area, nan_ok=True)
    assert result.ap_11point[0, 0] == pytest.approx(points, nan_ok=True)


def test_a_detection_of_another_class_or_image_finds_nothing() -> None:
    there = truth((0, BOX, False), classes=2)
    assert voc_metrics(there, found((1, BOX, 0.9))).ap_area[0, 0] == 0.0
    assert voc_metrics(there, found((0, BOX, 0.9), image_id=2)).ap_area[0, 0] == 0.0


def test_mean_ap_leaves_out_classes_without_objects() -> None:
    result = voc_metrics(truth((0, BOX, False), (2, FAR, False), classes=3), found((0, BOX, 0.9)))
    assert result.mean_ap() == pytest.approx(0.5)
    assert result.instances.tolist() == [1, 0, 1]
    assert result.to_dict()["at_iou"][0]["per_class"][1]["AP_area"] is None


def test_inclusive_pixels_widen_every_box_by_one() -> None:
    there, near = truth((0, (10.0, 10.0, 9.0, 0.0), False)), found((0, (15.0, 10.0, 9.0, 0.0), 0.9))
    inclusive = voc_metrics(there, near, inclusive_pixels=True, iou_thresholds=(1 / 3, 0.34))
    assert inclusive.ap_area[:, 0].tolist() == [1.0, 0.0]
    assert voc_metrics(there, near, iou_thresholds=(1 / 3,)).ap_area[0, 0] == 0.0


def test_the_order_of_detections_changes_nothing_but_ties() -> None:
    rng = np.random.default_rng(0)
    boxes = [tuple(box) for box in rng.uniform(1, 100, (40, 4)).tolist()]
    there = truth(*((n % 2, box, n % 7 == 0) for n, box in enumerate(boxes)), classes=2)
    near = found(
        *((n % 2, tuple(np.array(box) + rng.normal(0, 3, 4)), rng.random()) for n, box in enumerate(boxes * 3))
    )
    mixed = rng.permutation(len(near))
    other = DetectionTable(near.image_ids[mixed], near.category_ids[mixed], near.boxes_xywh[mixed], near.scores[mixed])
    first, second = (voc_metrics(there, table, iou_thresholds=(0.3, 0.5, 0.7)) for table in (near, other))
    np.testing.assert_array_equal(first.ap_area, second.ap_area)
    assert (np.diff(first.ap_area, axis=0) <= 0).all()
    recall, precision = first.curves[0][0]
    assert recall.shape == precision.shape
    assert (np.diff(recall) >= 0).all()


def test_eleven_points_lie_where_published_scores_have_them() -> None:
    recall = np.arange(1, 16) / 15
    assert ap_11point(recall[:9], np.ones(9)) == pytest.approx(6 / 11)  # 9 of 15 is a last bit short of 0.6
    assert ap_area(recall[:9], np.ones(9)) == pytest.approx(0.6)


def test_overlap_is_intersection_over_union_and_over_the_first() -> None:
    iou, share = pairwise_overlap(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 5, 2.0], [7, 7, 8, 8.0]]))
    assert iou.tolist() == [[2 / 10, 0.0]]
    assert share.tolist() == [[0.5, 0.0]]


def test_unknown_images_and_thresholds_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="name 1 image id"):
        voc_metrics(truth((0, BOX, False)), found((0, BOX, 0.9), image_id=3))
    for threshold in (0.0, 1.5):
        with pytest.raises(UserError, match="IoU threshold"):
            voc_metrics(truth((0, BOX, False)), found((0, BOX, 0.9)), iou_thresholds=(threshold,))


def read_texts(truth_dir: Path, found_dir: Path, *, corners: bool) -> tuple[GroundTruthTable, DetectionTable]:
    """Read one text file an image: "name [score] four numbers [difficult]" a line."""
    files = sorted(truth_dir.glob("*.txt"))

    def rows(folder: Path) -> list[tuple[int, str, list[float], bool]]:
        lines = [
            (n, line.split()) for n, one in enumerate(files) for line in (folder / one.name).read_text().splitlines()
        ]
        return [
            (n, words[0], [float(word) for word in words[1:] if word != "difficult"], "difficult" in words)
            for n, words in lines
        ]

    def xywh(boxes: list[list[float]]) -> np.ndarray:
        array = np.array(boxes)
        return np.concatenate([array[:, :2], array[:, 2:] - array[:, :2]], 1) if corners else array

    objects, detections = rows(truth_dir), rows(found_dir)
    names = sorted({name for _, name, _, _ in objects + detections})
    boxes = xywh([numbers for _, _, numbers, _ in objects])
    there = GroundTruthTable(
        np.arange(len(files)), np.arange(len(names)), tuple(names),
        np.array([n for n, _, _, _ in objects]), np.array([names.index(name) for _, name, _, _ in objects]),
        boxes, boxes[:, 2] * boxes[:, 3], np.zeros(len(objects), np.bool_),
        np.array([hard for _, _, _, hard in objects]),
    )  # fmt: skip
    table = DetectionTable(
        np.array([n for n, _, _, _ in detections]), np.array([names.index(name) for _, name, _, _ in detections]),
        xywh([numbers[1:] for _, _, numbers, _ in detections]),
        np.array([numbers[0] for _, _, numbers, _ in detections]),
    )  # fmt: skip
    return there, table


@pytest.fixture
def fixtures() -> Path:
    folder = os.environ.get("EFFDENSE_TEST_DATA")
    if not folder:
        pytest.skip("EFFDENSE_TEST_DATA is not set")
    return Path(folder) / "fixtures"


def test_seven_images_score_as_published_by_both_methods_at_four_ious(fixtures: Path) -> None:
    folder = fixtures / "voc_ap_case1"
    expected = json.loads((folder / "expected.json").read_text())
    there, near = read_texts(folder / "gts", folder / "dets", corners=False)
    result = voc_metrics(there, near, iou_thresholds=expected["iou"], inclusive_pixels=True)
    np.testing.assert_allclose(result.ap_11point[:, 0], expected["ap_11point"], atol=1e-9)
    np.testing.assert_allclose(result.ap_area[:, 0], expected["ap_area"], atol=1e-9)


def test_85_voc_images_score_as_published_for_every_class(fixtures: Path) -> None:
    folder = fixtures / "voc_ap_85img"
    expected = json.loads((folder / "expected.json").read_text())
    there, near = read_texts(folder / "ground-truth", folder / "detection-results", corners=True)
    result = voc_metrics(there, near, inclusive_pixels=True)
    assert round(100 * result.mean_ap(0.5, "area"), 2) == expected["mAP_percent"]
    by_name = {n: round(100 * ap, 2) for n, ap in zip(result.class_names, result.ap_area[0], strict=True) if ap == ap}
    assert by_name == expected["AP_percent"]
