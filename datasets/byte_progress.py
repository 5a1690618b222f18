"""How far a long copy is: a bar on a terminal, else a line in the log every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

_LOG = logging.getLogger("effdense")
SECONDS_BETWEEN_LINES = 10.0


class ByteProgress:
    """Counts bytes while a ``with`` block runs.

    Args:
        title: what is being done, "fetching x.zip".
        total: bytes in all, None where not known.
        done: bytes done before.
    """

    def __init__(self, title: str, total: int | None, done: int = 0) -> None:
        self.title, self.total, self.done = title, total, done
        self._started, self._at_start = time.monotonic(), done
        self._said = self._started
        self._bar: Any = None
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> ByteProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, num_bytes: int) -> None:
        """Count bytes."""
        self.done += num_bytes
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            _LOG.info("%s", self.line())

    def line(self) -> str:
        """Say how far it is, how fast, and how long it will take."""
        rate = (self.done - self._at_start) / max(1e-9, time.monotonic() - self._started)
        if not self.total:
            return f"{self.title}: {self.done / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s"
        text = f"{self.title}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s"
        return f"{text}, {(self.total - self.done) / rate / 60:.0f} min left" if rate > 0 else text


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
