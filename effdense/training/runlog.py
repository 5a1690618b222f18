"""What a run says while it runs: metrics.jsonl, TensorBoard, a progress bar, and the watch over the loss."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from effdense.errors import UserError
from effdense.files import write_atomically


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


class LossMeter:
    """Sums each loss term over an epoch and stops the run when one is not finite.

    Reading a loss waits for the GPU, so the terms are kept on the device and read every ``every`` steps. A step need
    not have every term; the mean of a term is over the steps that had it.

    Args:
        every: steps between two reads; 1 on a CPU, where reading is free.
        path_of: the file of an image by its id, where the user does not know the ids.
    """

    def __init__(self, every: int = 1, path_of: Callable[[int], Path] | None = None) -> None:
        self.every = every
        self.path_of = path_of
        self.sums: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        self._waiting: list[tuple[int, tuple[int, ...], dict[str, torch.Tensor]]] = []

    def add(self, step: int, image_ids: tuple[int, ...], losses: dict[str, torch.Tensor]) -> None:
        """Note the terms of one step."""
        self._waiting.append((step, image_ids, {name: value.detach() for name, value in losses.items()}))
        if len(self._waiting) >= self.every:
            self.read()

    def read(self) -> None:
        """Read the terms still on the device.

        Raises:
            NonFiniteLossError: naming step, images and every term.
        """
        waiting = [value.float() for _, _, losses in self._waiting for value in losses.values()]
        values = iter(torch.stack(waiting).tolist() if waiting else [])  # all at once: the device waits once
        for step, image_ids, losses in self._waiting:
            row = {name: next(values) for name in losses}
            if not all(math.isfinite(value) for value in row.values()):
                terms = ", ".join(f"{name} {value:g}" for name, value in row.items())
                raise NonFiniteLossError(
                    f"the loss is not finite at step {step} ({terms}; {self._in_words(image_ids)}): "
                    "lower --lr, raise --warmup-epochs, or look at those images; the files of the run are as the last "
                    "finished epoch left them"
                )
            for name, value in row.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.steps[name] = self.steps.get(name, 0) + 1
        self._waiting.clear()

    def _in_words(self, image_ids: tuple[int, ...]) -> str:
        if self.path_of is None:
            return f"image ids {list(image_ids)}"
        return f"images {', '.join(str(self.path_of(image_id)) for image_id in image_ids)}"

    def means(self) -> dict[str, float]:
        """Return the mean of each term so far."""
        self.read()
        return self.known_means()

    def known_means(self) -> dict[str, float]:
        """Return the mean of each term as far as it was read already, without waiting for the device."""
        return {name: value / self.steps[name] for name, value in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        self.read()
        return {"sums": dict(self.sums), "steps": dict(self.steps)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; one number of steps, of an earlier version, is that of every term."""
        self.sums, steps = dict(state["sums"]), state["steps"]
        self.steps = dict.fromkeys(self.sums, steps) if isinstance(steps, int) else dict(steps)


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended as the run goes.

    Args:
        path: the file; made when missing.
        lines: on resuming, the number of lines that the saved state knows; later ones are cut.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, lines: int = 0) -> None:
        kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.is_file() else []
        write_atomically(path, b"".join(kept))
        self.path = path
        self.lines = len(kept)

    def append(self, record: dict[str, Any]) -> None:
        """Append one record; NaN becomes null.

        Raises:
            UserError: the line cannot be written; the file is as it was.
        """
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = json.dumps(clean, allow_nan=False) + "\n"
        size = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with open(self.path, "ab") as handle:
                handle.write(line.encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise UserError(
                f"{self.path} cannot be written ({error.strerror or error}); free some space, then go on with --resume"
            ) from error
        self.lines += 1


class Board:
    """TensorBoard events where tensorboard is installed, else nothing."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write named numbers at a step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what was written."""
        if self._writer is not None:
            self._writer.close()


def write_record(
    record: dict[str, Any], losses: Collection[str], *, metrics: MetricsFile, board: Board, step: int
) -> None:
    """Write an epoch's numbers, and when it ended, as a line of metrics.jsonl and at a step of TensorBoard.

    Args:
        record: the numbers by name; None is one that there is nothing to measure for.
        losses: names of those that are loss terms, which TensorBoard groups.
        metrics: the file.
        board: TensorBoard.
        step: optimizer steps taken.

    Raises:
        UserError: the line cannot be written.
    """
    metrics.append({**record, "time": time.time()})
    scalars = {name: value for name, value in record.items() if name not in ("epoch", "step") and value is not None}
    board.scalars({f"loss/{name}" if name in losses else name: value for name, value in scalars.items()}, step)


class EpochBar:
    """A progress bar of one epoch on a terminal; silent where the output is a file.

    Args:
        title: shown on the left.
        steps: of the epoch.
        done: steps done before, after a resume within the epoch.
    """

    def __init__(self, title: str, steps: int, done: int = 0) -> None:
        self._progress: Any = None
        self.images, self._started = 0, time.perf_counter()
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=steps, completed=done, note="")
        self._progress.start()

    def __enter__(self) -> EpochBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, images: int, losses: dict[str, float]) -> None:
        """Count one step of ``images`` images and show the mean losses."""
        self.images += images
        if self._progress is not None:
            terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self._progress.update(self._task, advance=1, note=f"{terms}  {self.images_per_second():.1f} img/s")

    def images_per_second(self) -> float:
        """Images a second since the bar was made."""
        return self.images / max(1e-9, time.perf_counter() - self._started)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
