from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from effdense.errors import UserError
from effdense.tasks.segmentation.metrics.boundary import BoundaryIou
from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.tasks.segmentation.metrics.folders import score_folders
from effdense.tasks.segmentation.metrics.report import per_class_table, summary_table, write_report
from effdense.tasks.segmentation.metrics.scores import SegmentationScores
from effdense.tasks.segmentation.plots import plot_class_iou, plot_confusion, plot_training
from effdense.types import UInt8


def case(num_classes: int, *, pixels: bool = True) -> tuple[SegmentationScores, BoundaryIou, CalibrationError]:
    """Random patches of all but the last class; names that try to break the pictures."""
    rng = np.random.default_rng(0)
    confusion, boundary, calibration = ConfusionMatrix(num_classes), BoundaryIou(num_classes), CalibrationError()
    if pixels:
        cells = rng.integers(0, max(num_classes - 1, 1), (16, 16), dtype=np.uint8)
        truth = np.kron(cells, np.ones((6, 6), np.uint8))
        predicted = np.where(rng.random(truth.shape) < 0.2, np.uint8(0), np.roll(truth, 1, 0))
        truth[0] = 255
        confusion.update(truth, predicted)
        boundary.update(truth, predicted)
        calibration.update(truth, predicted, rng.random(truth.shape, np.float32))
    names = [f"$x_{n} [b] {'long ' * (n % 9)}" for n in range(num_classes)]
    return SegmentationScores.of(confusion, names), boundary, calibration


def strict(path: Path) -> dict[str, object]:
    """Parse JSON that may hold no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in {path}")

    parsed: dict[str, object] = json.loads(path.read_text(), parse_constant=refuse)
    return parsed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("classes", "pixels"),
    [(1, True), (2, True), (80, True), (3, False)],
    ids=["one class", "two", "eighty", "nothing there"],
)
def test_a_report_holds_strict_json_a_table_and_pictures(classes: int, pixels: bool, tmp_path: Path) -> None:
    scores, boundary, calibration = case(classes, pixels=pixels)
    written = write_report(tmp_path / "new", scores, boundary, calibration, about={"model": "unet"})
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    content = strict(tmp_path / "new" / "metrics.json")
    assert sorted(content) == ["about", "boundary", "calibration", "confusion", "segmentation"]
    assert content["segmentation"]["metrics"]["mIoU"] == (scores.miou if pixels else None)  # type: ignore[index]
    assert content["confusion"]["pixels"] == scores.matrix.tolist()  # type: ignore[index]
    rows = list(csv.DictReader((tmp_path / "new" / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == list(scores.class_names)
    assert rows[0]["IoU"] == (str(scores.iou[0]) if pixels else "")
    if classes > 1:
        assert rows[-1]["IoU"] == rows[-1]["Boundary IoU"] == ""
    for name in ("per_class.png", "confusion.png", "reliability.png"):
        picture = cv2.imread(str(tmp_path / "new" / name))
        assert picture is not None
        assert picture.std() > 5, "the picture is blank"
        assert 300 < picture.shape[1] < 2400
        assert 150 < picture.shape[0] < 2600


def test_a_report_has_what_was_asked_for(tmp_path: Path) -> None:
    scores, _, _ = case(3)
    written = write_report(tmp_path / "all", scores)
    assert [path.name for path in written] == ["metrics.json", "per_class.csv", "per_class.png", "confusion.png"]
    written = write_report(tmp_path / "numbers", scores, plots=False)
    assert [path.name for path in written] == ["metrics.json", "per_class.csv"]
    assert sorted(written) == sorted((tmp_path / "numbers").iterdir())
    with pytest.raises(ValueError, match="4 classes, the scores 3"):
        write_report(tmp_path / "mixed", scores, BoundaryIou(4), plots=False)


def rendered(table: object) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_tables_show_every_number_class_and_note() -> None:
    scores, boundary, calibration = case(4)
    summary = rendered(summary_table(scores, boundary, calibration))
    for value in (*scores.summary().values(), boundary.miou, calibration.expected):
        assert f"{value:.4f}" in summary
    assert "neither in the truth nor predicted: $x_3 [b]" in summary
    lines = [line for line in rendered(per_class_table(scores, boundary)).splitlines() if "$x_" in line]
    assert len(lines) == 4
    assert all("[b]" in line for line in lines)
    assert "$x_3" in lines[-1]
    shown = [float(line.split("│")[3]) for line in lines[:-1]]
    assert shown == sorted(shown, reverse=True) != [round(iou, 3) for iou in scores.iou[:3]]
    assert lines[-1].count(" - ") == 5
    assert "Boundary" not in rendered(per_class_table(scores))
    empty = case(2, pixels=False)
    assert "no score" in rendered(summary_table(empty[0], empty[1], empty[2]))


def test_pictures_name_classes_and_give_shares() -> None:
    scores, boundary, _ = case(4)
    axes = plot_class_iou(scores, boundary).axes[0]
    assert len(axes.get_yticklabels()) == 3
    assert "1 of 4 classes" in axes.get_xlabel()
    assert len(plot_confusion(scores).axes[0].texts) > 0
    texts = [int(text.get_text()) for text in plot_confusion(scores).axes[0].texts]
    assert max(texts) <= 100
    assert not plot_confusion(case(80)[0]).axes[0].texts


def test_a_training_is_drawn_with_the_terms_and_scores_that_it_recorded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        {
            "epoch": n,
            "total": 1.5 / n,
            "ce": 1 / n,
            "dice": 0.5 / n,
            "lr": 1e-3,
            "mIoU": 0.2 * n,
            "pixel_accuracy": None,
        }
        for n in (1, 2, 3)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses, scores, _ = plot_training(path).axes
    assert [line.get_label() for line in losses.get_lines()] == ["total", "ce", "dice"]
    assert scores.get_lines()[0].get_label() == "mIoU"
    assert "best mIoU 0.600 in epoch 3" in scores.get_title()


def test_metrics_and_pictures_load_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, effdense.tasks.segmentation.plots, effdense.tasks.segmentation.metrics.report\n"
        "import effdense.tasks.segmentation.metrics.folders\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# --- folders


def save(path: Path, labels: UInt8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Forty pairs of masks in two folders, some of them in a folder within."""
    rng = np.random.default_rng(0)
    for n in range(40):
        truth = rng.integers(0, 3, (12, 10 + n), dtype=np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.8, truth, np.uint8(1))
        truth[0] = 255
        name = f"{'in/' if n % 2 else ''}{n}.png"
        save(tmp_path / "truth" / name, truth)
        save(tmp_path / "masks" / name, predicted)
    return tmp_path / "masks", tmp_path / "truth"


def test_folders_score_what_their_masks_score(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    confusion, boundary = ConfusionMatrix(3), BoundaryIou(3)
    for path in truth.rglob("*.png"):
        pair = np.array(Image.open(path)), np.array(Image.open(masks / path.relative_to(truth)))
        confusion.update(*pair)
        boundary.update(*pair)
    result = score_folders(masks, truth, 3, class_names=("a", "b", "c"))
    np.testing.assert_array_equal(result.scores.matrix, confusion.matrix)
    assert result.scores.class_names == ("a", "b", "c")
    assert result.boundary is not None
    np.testing.assert_array_equal(result.boundary.iou, boundary.iou)
    assert result.num_images == 40
    plain = score_folders(str(masks), str(truth), 3, boundary=False)
    assert plain.boundary is None
    assert plain.scores.class_names == ("0", "1", "2")


def test_palette_masks_are_read_as_indices(tmp_path: Path) -> None:
    labels = np.array([[0, 15], [20, 255]], np.uint8)
    image = Image.fromarray(labels)
    image.putpalette([(37 * n) % 256 for n in range(768)])
    (tmp_path / "truth").mkdir()
    image.save(tmp_path / "truth" / "a.png")
    save(tmp_path / "masks" / "a.png", np.minimum(labels, 20))
    scores = score_folders(tmp_path / "masks", tmp_path / "truth", 21).scores
    assert np.flatnonzero(scores.true_pixels).tolist() == [0, 15, 20]
    assert scores.miou == 1


def test_masks_without_a_truth_are_said_and_left_out(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    masks, truth = folders
    before = score_folders(masks, truth, 3).scores
    save(masks / "0more.png", np.full((5, 5), 77, np.uint8))
    with caplog.at_level(logging.WARNING):
        after = score_folders(masks, truth, 3).scores
    np.testing.assert_array_equal(before.matrix, after.matrix)
    assert "1 masks have no truth" in caplog.text
    assert "more.png" in caplog.text


FAULTS = {
    "missing": (None, r"masks: 1 of 40 masks are missing, the first for .*truth/in/7\.png"),
    "of another size": (np.zeros((12, 16), np.uint8), r"in/7\.png: the truth is 12 x 17 and the prediction 12 x 16"),
    "no class": (np.full((12, 17), 9, np.uint8), r"in/7\.png: the prediction has the label 9, .* at x 0, y 1\)"),
    "unlabelled": (np.full((12, 17), 255, np.uint8), r"in/7\.png: the prediction leaves pixels .* without a class"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_faulty_prediction_is_named(fault: str, folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    content, said = FAULTS[fault]
    (masks / "in" / "7.png").unlink()
    if content is not None:
        save(masks / "in" / "7.png", content)
    with pytest.raises(UserError, match=said):
        score_folders(masks, truth, 3)


def test_a_label_of_the_truth_that_is_no_class_and_a_broken_file_are_named(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    with pytest.raises(UserError, match=r"truth/.*\.png: the truth has the label 2, .*the classes are 0 to 1"):
        score_folders(masks, truth, 2)
    (truth / "4.png").write_bytes((truth / "4.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"truth/4\.png"):
        score_folders(masks, truth, 3)


def test_folders_without_masks_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "full" / "a.png", np.zeros((2, 2), np.uint8))
    for masks, truth, said in (
        ("empty", "full", "--predictions .*empty holds no masks"),
        ("full", "empty", "--annotations .*empty holds no masks"),
        ("nowhere", "full", "--predictions .*nowhere is no folder"),
        ("full/a.png", "full", "is no folder"),
    ):
        with pytest.raises(UserError, match=said):
            score_folders(tmp_path / masks, tmp_path / truth, 2)
    with pytest.raises(UserError, match="1 class names for 2 classes"):
        score_folders(tmp_path / "full", tmp_path / "full", 2, class_names=["a"])


def test_masks_of_0_and_255_are_scored_only_once_it_is_said_what_255_means(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 2:6] = 255
    save(tmp_path / "truth" / "a.png", labels)
    save(tmp_path / "masks" / "a.png", np.roll(labels, 1, 0))
    save(tmp_path / "zeros" / "a.png", labels * 0)
    with pytest.raises(UserError, match="binary"):
        score_folders(tmp_path / "zeros", tmp_path / "truth", 2)
    save(tmp_path / "ones" / "a.png", labels * 0 + 1)
    caplog.clear()
    assert score_folders(tmp_path / "ones", tmp_path / "truth", 2).scores.matrix.tolist() == [[0, 48], [0, 0]]
    assert "--binary-masks" in caplog.text
    scores = score_folders(tmp_path / "masks", tmp_path / "truth", 2, binary=True).scores
    assert scores.matrix.tolist() == [[44, 4], [4, 12]]
    save(tmp_path / "masks" / "a.png", labels // 255)
    with pytest.raises(UserError, match="value 1 at x 2, y 2"):
        score_folders(tmp_path / "masks", tmp_path / "truth", 2, binary=True)
    with pytest.raises(UserError, match="binary masks have 2 classes, not 3"):
        score_folders(tmp_path / "masks", tmp_path / "truth", 3, binary=True)
