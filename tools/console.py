"""What the tools print: the library's log lines, tables, and where the files are."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from effdense.tasks.detection.score import Scores
    from effdense.tasks.multitask.score import Scores as MultitaskScores
    from effdense.tasks.segmentation.score import Scores as SegmentationScores


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Log lines as plain sentences on stderr; warnings stand out."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            return text
        mark = "WARNING: "
        return f"\033[1;33m{mark}{text}\033[0m" if sys.stderr.isatty() else mark + text


def show_log() -> None:
    """Show what effdense logs."""
    logger = logging.getLogger("effdense")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in [one for one in logger.handlers if isinstance(one, _Handler)]:
        logger.removeHandler(handler)  # it may write to a stderr that was replaced since
    logger.addHandler(_Handler())


def show_training_result(best: Path, shown: Mapping[str, str]) -> None:
    """Say where the best model is and how good it is.

    Args:
        best: the model's file, beside the run's metrics.jsonl.
        shown: scores of an epoch and what to call them; the first decides which is the best.
    """
    records = [json.loads(line) for line in (best.parent / "metrics.jsonl").read_text().splitlines()]
    deciding = next(iter(shown))
    scored = [record for record in records if record.get(deciding) is not None]
    if scored:
        top = max(scored, key=lambda record: record[deciding])
        scores = [f"{name} {top[key]:.4f}" for key, name in shown.items() if top.get(key) is not None]
        print(f"best epoch {top['epoch']}: {', '.join(scores)}")
    print(f"model: {best}")


def show_segmentation_scores(scores: SegmentationScores) -> None:
    """Print the classes, the means, and what was written."""
    from effdense.tasks.segmentation.metrics.report import per_class_table, summary_table

    console = _console()
    console.print(per_class_table(scores.scores, scores.boundary))
    console.print(summary_table(scores.scores, scores.boundary, scores.calibration))
    _show_files(console, scores.files)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file or a pipe has no edge to wrap at


def _show_files(console: Console, files: list[Path]) -> None:
    for path in files:
        console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)


def show_scores(scores: Scores) -> None:
    """Print the twelve numbers, the classes, and what was written."""
    from effdense.tasks.detection.metrics.report import per_class_table, summary_table

    console = _console()
    console.print(per_class_table(scores.coco, scores.voc))
    console.print(summary_table(scores.coco))
    if scores.voc is not None:
        console.print(
            f"VOC AP50: {scores.voc.mean_ap(0.5):.4f} (area), {scores.voc.mean_ap(0.5, '11point'):.4f} (11 points)"
        )
    for note in scores.coco.notes:
        console.print(note, markup=False)
    _show_files(console, scores.files)


def show_comparison(report: Path) -> None:
    """Print what a compare.json says: both tasks alone and together, and in words what sharing costs."""
    from effdense.tasks.multitask.transfer import read_transfer

    console = _console()
    table, sentences = read_transfer(report)
    console.print(table)
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False)
    _show_files(console, [report.with_suffix(".md"), report])


def show_multitask_scores(scores: MultitaskScores) -> None:
    """Print the tables of both tasks, one after the other, each with what was written."""
    if scores.detection is not None:
        show_scores(scores.detection)
    if scores.segmentation is not None:
        show_segmentation_scores(scores.segmentation)
