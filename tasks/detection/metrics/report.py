"""What is left of an evaluation: metrics.json, per_class.csv, pictures, and tables for the terminal."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effdense.files import write_atomically
from effdense.json_files import json_text
from effdense.tasks.detection.metrics.coco_metrics import CocoResult
from effdense.tasks.detection.metrics.confusion import ConfusionMatrix
from effdense.tasks.detection.metrics.voc_metrics import VocResult

if TYPE_CHECKING:
    from rich.table import Table


def write_report(
    folder: Path | str,
    coco: CocoResult,
    voc: VocResult | None = None,
    confusion: ConfusionMatrix | None = None,
    *,
    plots: bool = True,
    about: dict[str, Any] | None = None,
) -> list[Path]:
    """Write everything that is known of an evaluation into a folder, each file beside and renamed.

    metrics.json is strict JSON: a number that does not exist (AP of a class without an object, where pycocotools says
    -1) is null.

    Args:
        folder: made where missing.
        coco: COCO's numbers.
        voc: Pascal VOC's, if wanted.
        confusion: which class is taken for which, if wanted.
        plots: also draw pictures.
        about: anything else to keep in metrics.json under "about": the model, the data, the time.

    Returns:
        The files written: metrics.json, per_class.csv and, where asked for, precision_recall.png, class_ap.png and
        confusion.png.

    Raises:
        UserError: a file cannot be written.
    """
    folder = Path(folder)
    content: dict[str, Any] = {"about": about or {}, "coco": coco.to_dict()}
    if voc is not None:
        content["voc"] = voc.to_dict()
    if confusion is not None:
        content["confusion"] = confusion.to_dict()
    written = [folder / "metrics.json", folder / "per_class.csv"]
    write_atomically(written[0], json_text(content))
    write_atomically(written[1], _per_class_csv(coco, voc))
    if plots:
        from effdense.plots import save_figure
        from effdense.tasks.detection.plots import plot_class_ap, plot_confusion, plot_precision_recall

        figures = {"precision_recall.png": plot_precision_recall(coco), "class_ap.png": plot_class_ap(coco)}
        if confusion is not None:
            figures["confusion.png"] = plot_confusion(confusion)
        for name, figure in figures.items():
            save_figure(figure, folder / name)
            written.append(folder / name)
    return written


def summary_table(coco: CocoResult) -> Table:
    """Return the twelve numbers as a table for the terminal."""
    from rich.table import Table

    what = "boxes" if coco.iou_type == "bbox" else "masks"
    table = Table(
        title=f"COCO {what}: {coco.num_images} images, {coco.num_detections} detections", title_justify="left"
    )
    for heading in ("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large"):
        table.add_column(heading, justify="right" if heading else "left")
    value = coco.metrics
    table.add_row("AP", *(_number(value[key]) for key in ("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge")))
    by_size = [_number(value[f"AR{size}"]) for size in ("small", "medium", "large")]
    for limit in coco.max_detections:
        last = limit == coco.max_detections[-1]
        table.add_row(f"AR, {limit} per image", _number(value[f"AR{limit}"]), "", "", *(by_size if last else [""] * 3))
    if coco.notes:
        table.caption = " ".join(coco.notes)
    return table


def per_class_table(coco: CocoResult, voc: VocResult | None = None) -> Table:
    """Return AP of each class, best first, as a table for the terminal; classes without objects come last.

    Args:
        coco: COCO's numbers.
        voc: adds VOC's AP by area and by 11 points at the first of its IoU thresholds.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="by class", title_justify="left")
    table.add_column("class", overflow="fold")
    headings, columns = _columns(coco, voc)
    for heading in headings:
        table.add_column(heading, justify="right")
    key = [-math.inf if math.isnan(ap) else ap for ap in coco.ap.tolist()]
    for row in sorted(range(len(key)), key=lambda row: (-key[row], row)):
        cells = [str(column[row]) if isinstance(column[row], int) else _number(column[row]) for column in columns]
        table.add_row(escape(coco.class_names[row]), *cells)
    return table


def _columns(coco: CocoResult, voc: VocResult | None) -> tuple[list[str], list[list[Any]]]:
    headings = ["objects", "AP", "AP50", "AP75", "AR"]
    columns = [column.tolist() for column in (coco.instances, coco.ap, coco.ap50, coco.ap75, coco.ar)]
    if voc is not None:
        if voc.class_names != coco.class_names:
            raise ValueError("COCO's and VOC's results are of different classes")
        at = f"{voc.iou_thresholds[0]:g}"
        headings += [f"VOC AP{at} area", f"VOC AP{at} 11-point"]
        columns += [voc.ap_area[0].tolist(), voc.ap_11point[0].tolist()]
    return headings, columns


def _per_class_csv(coco: CocoResult, voc: VocResult | None) -> str:
    headings, columns = _columns(coco, voc)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", "category_id", *headings])
    for row, (name, category_id) in enumerate(zip(coco.class_names, coco.category_ids, strict=True)):
        cells = [column[row] for column in columns]
        shown = ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]
        writer.writerow([name, category_id, *shown])
    return buffer.getvalue()


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
