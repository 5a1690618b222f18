from __future__ import annotations

import numpy as np
import pytest

from effdense.errors import UserError
from effdense.tasks.detection.metrics.confusion import confusion_matrix
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.metrics.voc_metrics import voc_metrics

Box = tuple[float, float, float, float]
A, B = (10.0, 10.0, 20.0, 20.0), (100.0, 100.0, 40.0, 40.0)
NEAR_A = (12.0, 10.0, 20.0, 20.0)
IN_B = (110.0, 110.0, 10.0, 10.0)
CAT, DOG = 2, 5


def truth(*objects: tuple[int, Box, str]) -> GroundTruthTable:
    """Objects as (category id, box, kind), kind being "", "crowd" or "difficult"; all in image 1."""
    boxes = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4)
    return GroundTruthTable(
        np.array([1, 2]), np.array([CAT, DOG]), ("cat", "dog"), np.ones(len(objects), np.int64),
        np.array([category for category, _, _ in objects], np.int64), boxes, boxes[:, 2] * boxes[:, 3],
        np.array([kind == "crowd" for _, _, kind in objects], np.bool_),
        np.array([kind == "difficult" for _, _, kind in objects], np.bool_),
    )  # fmt: skip


def found(*detections: tuple[int, Box, float], image_id: int = 1) -> DetectionTable:
    return DetectionTable(
        np.full(len(detections), image_id, np.int64),
        np.array([category for category, _, _ in detections], np.int64),
        np.array([box for _, box, _ in detections], np.float64).reshape(-1, 4),
        np.array([score for _, _, score in detections], np.float64),
    )


@pytest.mark.parametrize(
    ("objects", "detections", "expected"),
    [
        pytest.param([], [], {}, id="nothing at all"),
        pytest.param([(CAT, A, "")], [(CAT, A, 0.9)], {("cat", "cat"): 1}, id="right"),
        pytest.param([(CAT, A, "")], [(DOG, A, 0.9)], {("cat", "dog"): 1}, id="taken for another"),
        pytest.param([(CAT, A, "")], [], {("cat", "-"): 1}, id="missed"),
        pytest.param([], [(DOG, A, 0.9)], {("-", "dog"): 1}, id="invented"),
        pytest.param([(CAT, A, "")], [(CAT, B, 0.9)], {("cat", "-"): 1, ("-", "cat"): 1}, id="elsewhere"),
        pytest.param([(CAT, A, "")], [(CAT, A, 0.2)], {("cat", "-"): 1}, id="below the score threshold"),
        pytest.param([(CAT, A, "")], [(CAT, A, 0.25)], {("cat", "cat"): 1}, id="at the score threshold"),
        pytest.param(
            [(CAT, A, "")], [(CAT, A, 0.9), (CAT, A, 0.8)], {("cat", "cat"): 1, ("-", "cat"): 1}, id="doubled"
        ),
        pytest.param(
            [(CAT, A, "")], [(DOG, A, 0.9), (CAT, NEAR_A, 0.3)], {("cat", "cat"): 1, ("-", "dog"): 1},
            id="the right class goes first",
        ),
        pytest.param(
            [(CAT, A, ""), (CAT, NEAR_A, "")], [(CAT, NEAR_A, 0.9), (CAT, A, 0.8)], {("cat", "cat"): 2},
            id="side by side",
        ),
        pytest.param([(CAT, B, "crowd")], [], {}, id="a crowd is not missed"),
        pytest.param([(CAT, B, "crowd")], [(CAT, IN_B, 0.9), (CAT, IN_B, 0.8)], {}, id="on a crowd"),
        pytest.param([(CAT, B, "crowd")], [(DOG, IN_B, 0.9)], {}, id="another class on a crowd"),
        pytest.param([(CAT, B, "crowd")], [(CAT, A, 0.9)], {("-", "cat"): 1}, id="beside a crowd"),
        pytest.param([(CAT, A, "difficult")], [(CAT, A, 0.9), (CAT, NEAR_A, 0.8)], {}, id="on a difficult one"),
        pytest.param([(CAT, B, "difficult")], [(CAT, IN_B, 0.9)], {("-", "cat"): 1}, id="a part of a difficult one"),
        pytest.param(
            [(CAT, A, "difficult"), (CAT, NEAR_A, "")], [(CAT, A, 0.9)], {("cat", "cat"): 1},
            id="an object before ignoring",
        ),
        pytest.param([(CAT, (5.0, 5.0, 0.0, 0.0), "")], [(CAT, (5.0, 5.0, 0.0, 0.0), 0.9)],
                     {("cat", "-"): 1, ("-", "cat"): 1}, id="no area"),
    ],
)  # fmt: skip
def test_each_object_and_detection_is_counted_where_it_belongs(
    objects: list[tuple[int, Box, str]],
    detections: list[tuple[int, Box, float]],
    expected: dict[tuple[str, str], int],
) -> None:
    result = confusion_matrix(truth(*objects), found(*detections))
    names = [*result.class_names, "-"]
    there = {(names[row], names[column]): int(result.counts[row, column]) for row, column in np.argwhere(result.counts)}
    assert there == expected


def test_rows_sum_to_objects_columns_to_detections_and_the_diagonal_to_vocs_true_positives() -> None:
    rng = np.random.default_rng(0)
    count = 60
    boxes = rng.uniform(5, 200, (count, 4)).round()
    there = truth(*((int(rng.choice([CAT, DOG])), tuple(box), "") for box in boxes.tolist()))
    near = boxes[rng.integers(0, count, 150)] + rng.normal(0, 4, (150, 4))
    table = found(*((int(rng.choice([CAT, DOG])), tuple(box), float(rng.random())) for box in np.abs(near).tolist()))
    result = confusion_matrix(there, table, score_threshold=0.0)
    assert result.counts.sum(1)[:2].tolist() == [(there.category_ids == one).sum() for one in (CAT, DOG)]
    assert result.counts.sum(0)[:2].tolist() == [(table.category_ids == one).sum() for one in (CAT, DOG)]
    assert result.counts[2, 2] == 0
    voc = voc_metrics(there, table)
    for row in range(2):  # VOC never lets a detection take its second-best object, so it finds at most as many
        found_by_voc = round(float(voc.curves[0][row][0].max() * voc.instances[row]))
        assert 0 < found_by_voc <= result.counts[row, row]


def test_images_keep_to_themselves() -> None:
    result = confusion_matrix(truth((CAT, A, "")), found((CAT, A, 0.9), image_id=2))
    assert result.counts.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert result.to_dict()["classes"] == ["cat", "dog", "background"]


def test_unknown_classes_are_refused() -> None:
    with pytest.raises(UserError, match="category id"):
        confusion_matrix(truth((CAT, A, "")), found((3, A, 0.9)))
