"""The scores of a segmentation, beside torchmetrics and hotcoco.semantic: the same numbers to 1e-9.

torchmetrics divides in float32, which alone makes a difference of 1e-7; here it is made to divide in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hotcoco.semantic import SemanticEval
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
)
from torchmetrics.functional.segmentation import dice_score

from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.tasks.segmentation.metrics.scores import SegmentationScores
from effdense.types import UInt8

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def _divide_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(value: object) -> object:
    return pytest.approx(value, rel=0, abs=1e-9, nan_ok=True)


def random_maps(
    seed: int, num_classes: int, *, ignored: float = 0.1, absent: tuple[int, ...] = (), invented: tuple[int, ...] = ()
) -> tuple[UInt8, UInt8]:
    """Maps (6, 40, 50) that agree in two thirds of the pixels.

    Args:
        seed: of the generator.
        num_classes: K.
        ignored: share of pixels whose truth is 255.
        absent: classes in neither map.
        invented: classes in the prediction alone.
    """
    rng = np.random.default_rng(seed)
    shape = (6, 40, 50)
    real = np.setdiff1d(np.arange(num_classes), (*absent, *invented)).astype(np.uint8)
    said = np.setdiff1d(np.arange(num_classes), absent).astype(np.uint8)
    truth = rng.choice(real, shape)
    predicted = np.where(rng.random(shape) < 0.67, truth, rng.choice(said, shape)).astype(np.uint8)
    truth[rng.random(shape) < ignored] = 255
    return truth, predicted


CASES: dict[str, Callable[[], tuple[UInt8, UInt8, int]]] = {
    "all occur": lambda: (*random_maps(0, 21), 21),
    "nothing ignored": lambda: (*random_maps(1, 5, ignored=0.0), 5),
    "150 classes": lambda: (*random_maps(2, 150), 150),
    "two classes": lambda: (*random_maps(3, 2), 2),
    "absent from both": lambda: (*random_maps(4, 9, absent=(0, 4, 8)), 9),
    "invented by the prediction": lambda: (*random_maps(5, 7, invented=(2,)), 7),
    "absent and invented": lambda: (*random_maps(6, 12, absent=(1, 11), invented=(0, 5)), 12),
    "all right": lambda: (*(random_maps(7, 4, ignored=0.0)[0],) * 2, 4),
    "nearly all ignored": lambda: (*random_maps(8, 3, ignored=0.999), 3),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[UInt8, UInt8, SegmentationScores]:
    truth, predicted, num_classes = CASES[request.param]()
    confusion = ConfusionMatrix(num_classes)
    for one_truth, one_prediction in zip(truth, predicted, strict=True):
        confusion.update(one_truth, one_prediction)
    return truth, predicted, SegmentationScores.of(confusion, [f"c{n}" for n in range(num_classes)])


def test_torchmetrics_scores_the_same(case: tuple[UInt8, UInt8, SegmentationScores]) -> None:
    truth, predicted, scores = case
    classes = len(scores.iou)
    maps = (torch.from_numpy(predicted).long(), torch.from_numpy(truth).long())
    matrix = multiclass_confusion_matrix(*maps, classes, ignore_index=255)
    np.testing.assert_array_equal(scores.matrix, matrix.numpy())

    def theirs(function: Callable[..., Tensor], average: str) -> object:
        return near(function(*maps, num_classes=classes, average=average, ignore_index=255).numpy())

    assert np.nan_to_num(scores.iou) == theirs(multiclass_jaccard_index, "none")
    assert scores.miou == theirs(multiclass_jaccard_index, "macro")
    assert scores.fwiou == theirs(multiclass_jaccard_index, "weighted")
    assert np.nan_to_num(scores.dice) == theirs(multiclass_f1_score, "none")
    assert scores.mean_dice == theirs(multiclass_f1_score, "macro")
    assert np.nan_to_num(scores.accuracy) == theirs(multiclass_accuracy, "none")
    assert scores.pixel_accuracy == theirs(multiclass_accuracy, "micro")
    assert np.nan_to_num(scores.precision) == theirs(multiclass_precision, "none")
    if ((scores.true_pixels > 0) == (scores.predicted_pixels > 0)).all():
        # torchmetrics counts 0 for the accuracy of a class that has no pixel to find; hotcoco and mmsegmentation do not
        assert scores.mean_accuracy == theirs(multiclass_accuracy, "macro")


def test_torchmetrics_has_the_same_dice_of_masks(case: tuple[UInt8, UInt8, SegmentationScores]) -> None:
    truth, predicted, scores = case
    labels = torch.arange(len(scores.iou))[:, None, None]
    said, there = (  # (6, K, 40, 50); an ignored pixel is in no mask
        (torch.from_numpy(np.where(truth == 255, 255, one)).long()[:, None] == labels).long()
        for one in (predicted, truth)
    )
    dice = dice_score(said, there, num_classes=len(scores.iou), average="none", aggregation_level="global")
    assert np.nan_to_num(scores.dice) == near(np.nan_to_num(dice.numpy().reshape(-1)))


def test_hotcoco_scores_the_same(case: tuple[UInt8, UInt8, SegmentationScores]) -> None:
    truth, predicted, scores = case
    evaluation = SemanticEval(len(scores.iou))
    evaluation.update(truth, predicted)
    theirs = evaluation.results()
    assert (theirs["mIoU"], theirs["fwIoU"], theirs["mAcc"], theirs["aAcc"]) == near(
        (scores.miou, scores.fwiou, scores.mean_accuracy, scores.pixel_accuracy)
    )
    for key, ours in (("IoU", scores.iou), ("Acc", scores.accuracy)):
        values = [math.nan if row[key] < 0 else row[key] for row in theirs["per_class"]]
        assert ours.tolist() == near(values)
    for key, counts in (
        ("tp", scores.correct_pixels), ("gt_area", scores.true_pixels), ("pred_area", scores.predicted_pixels)
    ):  # fmt: skip
        assert counts.tolist() == [row[key] for row in theirs["per_class"]]


def random_probabilities(seed: int, num_classes: int, sharpness: float) -> tuple[UInt8, npt.NDArray[np.float64]]:
    """Truth (4, 30, 20) with ignored pixels, and probabilities (4, K, 30, 20)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (4, num_classes, 30, 20))
    truth = np.where(rng.random((4, 30, 20)) < 0.5, logits.argmax(1), rng.integers(0, num_classes, (4, 30, 20)))
    truth = truth.astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth, torch.from_numpy(logits).softmax(1).numpy()


@pytest.mark.parametrize("bins", [15, 1, 10])
@pytest.mark.parametrize(
    ("num_classes", "sharpness"), [(2, 1.0), (21, 3.0), (21, 0.1), (150, 8.0)], ids=["two", "sure", "unsure", "many"]
)
def test_torchmetrics_has_the_same_calibration_error(num_classes: int, sharpness: float, bins: int) -> None:
    truth, probabilities = random_probabilities(0, num_classes, sharpness)
    assert probabilities.max() < 1
    ours = CalibrationError(bins)
    for one, some in zip(truth, probabilities, strict=True):
        ours.update(one, some.argmax(0).astype(np.uint8), some.max(0))
    norms: tuple[tuple[Literal["l1", "max"], float], ...] = (("l1", ours.expected), ("max", ours.greatest))
    for norm, value in norms:
        theirs = multiclass_calibration_error(
            torch.from_numpy(probabilities), torch.from_numpy(truth).long(), num_classes, bins, norm, ignore_index=255
        )
        assert value == near(theirs.item())


def test_where_a_probability_is_1_torchmetrics_has_a_bin_too_many() -> None:
    probabilities = torch.tensor([[1.0, 0.0]] * 4 + [[0.95, 0.05]] * 4, dtype=torch.float64)
    truth = torch.tensor([0] * 4 + [1] * 4)
    theirs = multiclass_calibration_error(probabilities, truth, 2, 15, "l1").item()
    ours = CalibrationError(15)
    ours.update(truth.byte(), torch.zeros(8, dtype=torch.uint8), probabilities[:, 0])
    assert theirs == near((4 * 0.0 + 4 * 0.95) / 8)  # two bins, though both lie between 14/15 and 1
    assert ours.expected == near((4 * 1.0 + 4 * 0.95) / 8 - 0.5)
