"""What is left of an evaluation: metrics.json, per_class.csv, pictures, and tables for the terminal."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effdense.files import write_atomically
from effdense.json_files import json_text
from effdense.tasks.segmentation.metrics.boundary import BoundaryIou
from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.tasks.segmentation.metrics.scores import SegmentationScores

if TYPE_CHECKING:
    from rich.table import Table


def write_report(
    folder: Path | str,
    scores: SegmentationScores,
    boundary: BoundaryIou | None = None,
    calibration: CalibrationError | None = None,
    *,
    plots: bool = True,
    about: dict[str, Any] | None = None,
) -> list[Path]:
    """Write everything that is known of an evaluation into a folder, each file beside and renamed.

    metrics.json is strict JSON: a number that does not exist (IoU of a class that does not occur) is null.

    Args:
        folder: made where missing.
        scores: what the confusion matrix says, and the matrix.
        boundary: Boundary IoU, if wanted.
        calibration: how far the probabilities can be trusted, if wanted.
        plots: also draw pictures.
        about: anything else to keep in metrics.json under "about": the model, the data, the time.

    Returns:
        The files written: metrics.json, per_class.csv and, where asked for, per_class.png, confusion.png and, with
        calibration, reliability.png.

    Raises:
        UserError: a file cannot be written.
    """
    folder = Path(folder)
    content: dict[str, Any] = {"about": about or {}, "segmentation": scores.jsonable()}
    if boundary is not None:
        content["boundary"] = boundary.jsonable()
    if calibration is not None:
        content["calibration"] = calibration.jsonable()
    content["confusion"] = {
        "rows": "ground truth",
        "columns": "predicted",
        "classes": list(scores.class_names),
        "pixels": scores.matrix.tolist(),
    }
    written = [folder / "metrics.json", folder / "per_class.csv"]
    write_atomically(written[0], json_text(content))
    write_atomically(written[1], _per_class_csv(scores, boundary))
    if plots:
        from effdense.plots import save_figure
        from effdense.tasks.segmentation.plots import plot_class_iou, plot_confusion, plot_reliability

        figures = {"per_class.png": plot_class_iou(scores, boundary), "confusion.png": plot_confusion(scores)}
        if calibration is not None:
            figures["reliability.png"] = plot_reliability(calibration)
        for name, figure in figures.items():
            save_figure(figure, folder / name)
            written.append(folder / name)
    return written


def summary_table(
    scores: SegmentationScores, boundary: BoundaryIou | None = None, calibration: CalibrationError | None = None
) -> Table:
    """Return the means as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    columns = {
        "mIoU": scores.miou,
        "pixel accuracy": scores.pixel_accuracy,
        "mean accuracy": scores.mean_accuracy,
        "fwIoU": scores.fwiou,
        "mean Dice": scores.mean_dice,
    }
    if boundary is not None:
        columns["Boundary mIoU"] = boundary.miou
    if calibration is not None:
        columns["calibration error"] = calibration.expected
    table = Table(title=f"{scores.num_pixels:,} pixels, {len(scores.class_names)} classes", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*(_number(value, 4) for value in columns.values()))
    if scores.notes:
        table.caption = escape(" ".join(scores.notes))
    return table


def per_class_table(scores: SegmentationScores, boundary: BoundaryIou | None = None) -> Table:
    """Return the scores of each class, best IoU first, as a table for the terminal; absent classes come last."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="by class", title_justify="left")
    table.add_column("class", overflow="fold")
    headings, columns = _columns(scores, boundary)
    for heading in headings:
        table.add_column(heading, justify="right")
    key = [-math.inf if math.isnan(iou) else iou for iou in scores.iou.tolist()]
    for row in sorted(range(len(key)), key=lambda row: (-key[row], row)):
        cells = [f"{column[row]:,}" if isinstance(column[row], int) else _number(column[row]) for column in columns]
        table.add_row(escape(scores.class_names[row]), *cells)
    return table


def _columns(scores: SegmentationScores, boundary: BoundaryIou | None) -> tuple[list[str], list[list[Any]]]:
    headings = ["pixels", "IoU", "Dice", "accuracy", "precision"]
    columns = [scores.true_pixels, scores.iou, scores.dice, scores.accuracy, scores.precision]
    if boundary is not None:
        if boundary.num_classes != len(scores.class_names):
            raise ValueError(f"Boundary IoU is of {boundary.num_classes} classes, the scores {len(scores.class_names)}")
        headings.append("Boundary IoU")
        columns.append(boundary.iou)
    return headings, [column.tolist() for column in columns]


def _per_class_csv(scores: SegmentationScores, boundary: BoundaryIou | None) -> str:
    headings, columns = _columns(scores, boundary)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", "label", *headings])
    for row, name in enumerate(scores.class_names):
        cells = [column[row] for column in columns]
        shown = ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]
        writer.writerow([name, row, *shown])
    return buffer.getvalue()


def _number(value: float, decimals: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"
