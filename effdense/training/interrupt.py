"""Ctrl-C and SIGTERM as a request that the loop answers at a good moment."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, NoReturn


class InterruptWatch:
    """A context that turns the first Ctrl-C or SIGTERM into ``requested``; the second stops at once.

    Outside the main thread, where Python delivers no signals, it watches nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> InterruptWatch:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def stop(self, message: str) -> NoReturn:
        """Raise KeyboardInterrupt with a text for the user."""
        self.restore()
        raise KeyboardInterrupt(message)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self.restore()
            raise KeyboardInterrupt("Stopped at once; --resume goes on from the state that was saved last.")
        self.requested = True
