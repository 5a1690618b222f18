"""The transfer report: what sharing a backbone costs and saves, as JSON, Markdown, sentences and one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from effdense.files import write_atomically
from effdense.json_files import json_text, jsonable, parse_json, read_bytes
from effdense.tasks.multitask.budget import RULE

if TYPE_CHECKING:
    from rich.table import Table

    from effdense.tasks.multitask.costs import Costs

JSON, MARKDOWN = "compare.json", "compare.md"

HEADINGS = ("", "alone", "together", "difference")

_EQUAL = 0.05
"""Points below which two scores are the same: half of the last digit that is shown."""


@dataclass(frozen=True)
class Compared:
    """One task, trained alone and together with the other.

    Attributes:
        task: ``detection`` or ``segmentation``.
        score: what its score is called.
        alone: score on the validation split, 0..1, trained alone.
        together: score on the same images, trained on a shared backbone.
        images_alone: labelled images seen in training.
        images_together: those of the shared run.
        best_epoch_alone: the epoch that was scored, of ``epochs_alone``.
        epochs_alone: passes over the labelled images.
        batch_size_alone: images in a batch.
    """

    task: str
    score: str
    alone: float
    together: float
    images_alone: int
    images_together: int
    best_epoch_alone: int
    epochs_alone: int
    batch_size_alone: int

    @property
    def points(self) -> float:
        """What the score gains together, in points: hundredths."""
        return 100 * (self.together - self.alone)

    def sentence(self) -> str:
        """Return in words what sharing does to the score."""
        scores = f"{100 * self.together:.1f} instead of {100 * self.alone:.1f}"
        if abs(self.points) < _EQUAL:
            return f"{self.score} is the same together as alone, {100 * self.alone:.1f}: sharing costs nothing here."
        if self.points > 0:
            return f"{self.score} is {self.points:.1f} points higher together, {scores}: sharing costs nothing here."
        return f"{self.score} is {-self.points:.1f} points lower together, {scores}: here sharing costs accuracy."


@dataclass(frozen=True)
class Transfer:
    """All that is known of a comparison.

    Attributes:
        tasks: detection and segmentation.
        costs: of the two models in turn, and of the shared pass.
        seed: of all three runs.
        files: the best models, beside the report: by what they are, their paths.
        unlike: in sentences, what is not the same alone and together, budgets aside.
    """

    tasks: tuple[Compared, ...]
    costs: Costs
    seed: int
    files: dict[str, str]
    unlike: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """Return in words what sharing does to each score and to the costs, and how far that can be trusted."""
        costs = self.costs
        return [
            *(task.sentence() for task in self.tasks),
            f"An image of {costs.image_size} px takes {costs.shared.predict_ms:.1f} ms in one shared pass and "
            f"{costs.in_turn.predict_ms:.1f} ms by the two models in turn ({costs.ratio('predict_ms'):.2f} times), and "
            f"{_mib(costs.shared.peak_bytes)} of memory instead of {_mib(costs.in_turn.peak_bytes)} "
            f"({costs.ratio('peak_bytes'):.2f} times).",
            *self.unlike,
            f"All of this is one seed ({self.seed}): scores move from seed to seed, so repeat the comparison with "
            "other values of --seed before relying on a small difference.",
        ]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the table: what is measured, alone, together, and the difference."""
        rows = [
            (one.score, f"{one.alone:.4f}", f"{one.together:.4f}", f"{one.points:+.1f} points") for one in self.tasks
        ]
        for name, attribute, shown in (
            ("parameters", "parameters", _millions),
            ("latency", "predict_ms", _ms),
            ("of it the network", "network_ms", _ms),
            ("peak memory", "peak_bytes", _mib),
        ):
            alone, shared = (shown(getattr(cost, attribute)) for cost in (self.costs.in_turn, self.costs.shared))
            rows.append((name, alone, shared, f"x {self.costs.ratio(attribute):.2f}"))
        for one in self.tasks:
            name = f"images with {'boxes' if one.task == 'detection' else 'masks'} seen"
            ratio = one.images_together / max(one.images_alone, 1)
            rows.append((name, f"{one.images_alone:,}", f"{one.images_together:,}", f"x {ratio:.2f}"))
        return rows

    def notes(self) -> list[str]:
        """Return what has to be known to read the table."""
        costs = self.costs
        where = (
            f"a CPU with {costs.threads} thread{'s' * (costs.threads > 1)}" if costs.device == "cpu" else costs.device
        )
        runs = " and ".join(
            f"{one.task} alone {one.epochs_alone} epochs in batches of {one.batch_size_alone}" for one in self.tasks
        )
        return [
            f"Scores are of the validation split, each run at its best epoch by its own score. {RULE} That is {runs}.",
            f"Costs are of one image of {costs.image_size} px on {where}, from pixels to detections and label map, the "
            f"median of {costs.repeats} runs that alternate; alone is both models in memory and one run after the "
            "other; memory is the most bytes of tensors at one time, weights included.",
        ]


def write_transfer(folder: Path, transfer: Transfer) -> Path:
    """Write compare.json and compare.md into a folder, each beside its place and renamed.

    Returns:
        The path of compare.json.

    Raises:
        UserError: a file cannot be written.
    """
    content = {
        "sentences": transfer.sentences(),
        "notes": transfer.notes(),
        "table": [HEADINGS, *transfer.rows()],
        "seed": transfer.seed,
        "tasks": {one.task: {**asdict(one), "points": one.points} for one in transfer.tasks},
        "costs": asdict(transfer.costs),
        "files": transfer.files,
    }
    write_atomically(folder / MARKDOWN, markdown(transfer))
    write_atomically(folder / JSON, json_text(jsonable(content)))
    return folder / JSON


def markdown(transfer: Transfer) -> str:
    """Return the report as Markdown."""
    lines = ["# Alone and together", ""]
    lines += [f"- {sentence}" for sentence in transfer.sentences()]
    lines += ["", _line(HEADINGS), "|---|--:|--:|--:|"]
    lines += [_line(row) for row in transfer.rows()]
    for note in transfer.notes():
        lines += ["", note]
    lines += ["", *(f"- {name}: `{path}`" for name, path in transfer.files.items())]
    return "\n".join(lines) + "\n"


def read_transfer(path: Path) -> tuple[Table, list[str]]:
    """Return the table of a compare.json for the terminal, and its sentences.

    Raises:
        UserError: the file cannot be read.
    """
    from rich.table import Table

    content = parse_json(read_bytes(path), path)
    headings, *rows = content["table"]
    table = Table(title="alone and together", title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*row)
    return table, content["sentences"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms"


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
