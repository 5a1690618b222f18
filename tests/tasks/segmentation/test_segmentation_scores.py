from __future__ import annotations

import json
import math

import numpy as np
import pytest

from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.tasks.segmentation.metrics.scores import SegmentationScores

NAMES = ("sky", "sea", "sand", "gull")


def scores(matrix: list[list[int]], names: tuple[str, ...] = NAMES) -> SegmentationScores:
    return SegmentationScores(np.array(matrix, np.int64), names[: len(matrix)])


def test_numbers_worked_out_by_hand() -> None:
    result = scores([[6, 2], [1, 11]])
    assert result.iou.tolist() == pytest.approx([6 / 9, 11 / 14])
    assert result.dice.tolist() == pytest.approx([12 / 15, 22 / 25])
    assert result.accuracy.tolist() == pytest.approx([6 / 8, 11 / 12])
    assert result.precision.tolist() == pytest.approx([6 / 7, 11 / 13])
    assert result.true_pixels.tolist() == [8, 12]
    assert result.predicted_pixels.tolist() == [7, 13]
    assert result.correct_pixels.tolist() == [6, 11]
    assert result.num_pixels == 20
    assert result.miou == pytest.approx((6 / 9 + 11 / 14) / 2)
    assert result.mean_dice == pytest.approx((12 / 15 + 22 / 25) / 2)
    assert result.mean_accuracy == pytest.approx((6 / 8 + 11 / 12) / 2)
    assert result.pixel_accuracy == pytest.approx(17 / 20)
    assert result.fwiou == pytest.approx((8 * 6 / 9 + 12 * 11 / 14) / 20)
    assert result.notes == ()


def test_a_class_that_occurs_nowhere_is_left_out_of_the_means_and_named() -> None:
    result = scores([[6, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 11]])
    assert result.miou == scores([[6, 2], [1, 11]]).miou
    assert result.mean_dice == scores([[6, 2], [1, 11]]).mean_dice
    assert result.mean_accuracy == scores([[6, 2], [1, 11]]).mean_accuracy
    assert result.fwiou == scores([[6, 2], [1, 11]]).fwiou
    for column in (result.iou, result.dice, result.accuracy, result.precision):
        assert np.isnan(column[1:3]).all()
    assert result.notes == ("Left out of every mean, being neither in the truth nor predicted: sea, sand.",)


def test_a_class_that_is_predicted_but_not_there_counts_with_0_and_is_named() -> None:
    result = scores([[6, 2], [0, 0]])
    assert result.iou.tolist() == [0.75, 0.0]
    assert result.miou == 0.375
    assert result.dice[1] == result.precision[1] == 0
    assert math.isnan(result.accuracy[1])
    assert result.mean_accuracy == 0.75
    assert result.notes == ("Predicted but not in the truth, hence in the means of IoU and Dice with 0: sea.",)


def test_a_class_that_is_there_and_never_predicted_counts_with_0() -> None:
    result = scores([[6, 0], [2, 0]])
    assert result.iou.tolist() == [0.75, 0.0]
    assert result.accuracy.tolist() == [1.0, 0.0]
    assert math.isnan(result.precision[1])
    assert result.notes == ()


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.filterwarnings("error")
def test_without_a_pixel_there_is_no_score_and_that_is_said(classes: int) -> None:
    result = scores(np.zeros((classes, classes), np.int64).tolist())
    means = (result.miou, result.mean_dice, result.mean_accuracy, result.pixel_accuracy, result.fwiou)
    assert all(math.isnan(value) for value in means)
    assert set(result.summary().values()) == {None}
    assert len(result.notes) == 1
    assert "no score" in result.notes[0]
    assert json.loads(json.dumps(result.jsonable(), allow_nan=False))["per_class"][0]["IoU"] is None


def test_a_perfect_prediction_scores_1_everywhere() -> None:
    result = scores([[5, 0], [0, 3]])
    assert set(result.summary().values()) == {1.0}


def test_many_absent_classes_are_named_up_to_a_dozen() -> None:
    matrix = np.zeros((80, 80), np.int64)
    matrix[0, 0] = 1
    note = SegmentationScores(matrix, tuple(f"c{n}" for n in range(80))).notes[0]
    assert note.endswith("c11, c12 and 67 more.")


def test_what_is_written_holds_every_class_and_is_strict() -> None:
    content = json.loads(json.dumps(scores([[6, 0, 2], [0, 0, 0], [1, 0, 11]]).jsonable(), allow_nan=False))
    assert content["metrics"]["mIoU"] == pytest.approx((6 / 9 + 11 / 14) / 2)
    assert [row["name"] for row in content["per_class"]] == ["sky", "sea", "sand"]
    assert content["per_class"][1] == {
        "name": "sea", "IoU": None, "Dice": None, "accuracy": None, "precision": None,
        "true_pixels": 0, "predicted_pixels": 0,
    }  # fmt: skip
    assert content["notes"]


def test_scores_stay_as_they_were_when_counting_goes_on() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    before = SegmentationScores.of(confusion, ["sky", "sea"])
    confusion.update(np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    assert before.miou == 1.0
    assert SegmentationScores.of(confusion, ["sky", "sea"]).miou == 0.25
    with pytest.raises(ValueError, match="3 class names"):
        SegmentationScores.of(confusion, NAMES[:3])
