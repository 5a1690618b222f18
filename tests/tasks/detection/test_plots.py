from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from effdense.errors import UserError
from effdense.plots import save_figure
from effdense.tasks.detection.metrics.coco_metrics import CocoResult, coco_metrics
from effdense.tasks.detection.metrics.confusion import confusion_matrix
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable
from effdense.tasks.detection.metrics.report import per_class_table, summary_table, write_report
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.metrics.voc_metrics import voc_metrics
from effdense.tasks.detection.plots import plot_class_ap, plot_confusion, plot_precision_recall, plot_training


def case(classes: int, *, objects: int = 40) -> tuple[GroundTruthTable, DetectionTable]:
    """Random boxes of all but the last class, half of them found; names that try to break the pictures."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(5, 200, (objects, 4))
    names = tuple(f"$x_{n} [b] {'long ' * (n % 9)}" for n in range(classes))
    category_ids = rng.integers(0, max(classes - 1, 1), objects)
    truth = GroundTruthTable(
        np.arange(4), np.arange(classes), names,
        rng.integers(0, 4, objects), category_ids, boxes, boxes[:, 2] * boxes[:, 3],
        np.zeros(objects, np.bool_), np.zeros(objects, np.bool_),
    )  # fmt: skip
    half = slice(0, objects // 2)
    found = DetectionTable(truth.image_ids[half], category_ids[half], boxes[half] + 1, rng.random(objects // 2))
    return truth, found


def size_wh(path: Path) -> tuple[int, int]:
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.std() > 5, "the picture is blank"
    return picture.shape[1], picture.shape[0]


def strict(path: Path) -> dict[str, object]:
    """Parse JSON that may hold no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in {path}")

    parsed: dict[str, object] = json.loads(path.read_text(), parse_constant=refuse)
    return parsed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("classes", "objects"), [(1, 40), (3, 40), (80, 300), (3, 0)], ids=["one class", "three", "eighty", "nothing there"]
)
def test_a_report_holds_strict_json_a_table_and_pictures(classes: int, objects: int, tmp_path: Path) -> None:
    truth, found = case(classes, objects=objects)
    coco, voc, confusion = coco_metrics(truth, found), voc_metrics(truth, found), confusion_matrix(truth, found)
    written = write_report(tmp_path / "new", coco, voc, confusion, about={"model": "d0"})
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    content = strict(tmp_path / "new" / "metrics.json")
    assert sorted(content) == ["about", "coco", "confusion", "voc"]
    assert len(content["coco"]["per_class"]) == classes  # type: ignore[index]
    if classes > 1:
        assert content["coco"]["per_class"][-1]["AP"] is None  # type: ignore[index]
    assert len((tmp_path / "new" / "per_class.csv").read_text().splitlines()) == classes + 1
    for name in ("precision_recall.png", "class_ap.png", "confusion.png"):
        width, height = size_wh(tmp_path / "new" / name)
        assert 300 < width < 2400
        assert 150 < height < 2600


def test_a_report_without_pictures_has_the_numbers_alone(tmp_path: Path) -> None:
    truth, found = case(3)
    written = write_report(tmp_path, coco_metrics(truth, found), plots=False)
    assert [path.name for path in written] == ["metrics.json", "per_class.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "per_class.csv"]


def rendered(table: object) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.fixture(scope="module")
def result() -> CocoResult:
    return coco_metrics(*case(4))


def test_tables_show_every_number_and_class(result: CocoResult) -> None:
    summary = rendered(summary_table(result))
    for value in result.metrics.values():
        assert ("-" if math.isnan(value) else f"{value:.3f}") in summary
    lines = rendered(per_class_table(result, voc_metrics(*case(4)))).splitlines()
    shown = [line for line in lines if "$x_" in line]
    assert len(shown) == 4
    assert "[b]" in shown[0]
    assert "$x_3" in shown[-1]
    assert shown[-1].count(" - ") == 6


def test_a_table_says_so_when_numbers_are_not_by_coco_s_limits() -> None:
    notes = rendered(summary_table(coco_metrics(*case(2), max_detections=(1, 10, 300))))
    assert "do not compare" in notes
    assert "AR, 300 per image" in notes


def test_pictures_name_the_classes_they_can(result: CocoResult) -> None:
    few = plot_precision_recall(result).axes[1].get_legend().get_texts()
    assert len(few) == 3 + 1
    many = plot_precision_recall(coco_metrics(*case(80, objects=600))).axes[1].get_legend().get_texts()
    assert len(many) == 8 + 1
    labels = [label.get_text() for label in plot_class_ap(result).axes[0].get_yticklabels()]
    assert len(labels) == 3
    axes = plot_confusion(confusion_matrix(*case(4))).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()][-1] == "background"


def test_a_training_is_drawn_as_far_as_it_has_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"epoch": n, "total": 1 / n, "class": 0.5 / n, "lr": 1e-3, "AP": None if n < 3 else 0.1 * n} for n in (1, 2, 3)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = plot_training(path)
    losses, scores, rates = figure.axes
    assert [line.get_label() for line in losses.get_lines()] == ["total", "class"]
    assert scores.get_lines()[0].get_xdata().tolist() == [3.0]
    assert len(rates.get_lines()) == 1
    save_figure(figure, tmp_path / "training.png")
    assert size_wh(tmp_path / "training.png")[0] > 1000
    path.write_text("")
    save_figure(plot_training(path), tmp_path / "empty.png")
    size_wh(tmp_path / "empty.png")


@pytest.mark.parametrize("line", ["{broken", "[1]"])
def test_a_broken_line_of_a_training_log_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:3"):
        plot_training(path)


def test_neither_pyplot_nor_matplotlib_comes_with_the_import() -> None:
    code = (
        "import sys, effdense.tasks.detection.plots as p, effdense.tasks.detection.metrics.report\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules\n"
        "p.new_figure(1, 1).subplots()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
