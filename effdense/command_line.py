"""What every tool does around its work: errors for people, exit codes, Ctrl-C, a full disk, a closed pipe."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence

from effdense.errors import UserError

USER_ERROR = 2
"""Exit code where the user can put it right."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""
PIPE_CLOSED = 141
"""Exit code where the reader of our output left: 128 + SIGPIPE, as of any other filter."""


def run_tool(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a tool's ``main(argv=None) -> int`` so that what went wrong reads as one sentence.

    A UserError is printed alone and exits with 2; a full disk likewise; Ctrl-C prints the interrupt's own text
    (where the tool gave it one, such as how to resume) and exits with 130; a closed output ends the tool silently.
    Every other exception is a fault of effdense and keeps its traceback.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        try:
            try:
                code = main(argv)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except UserError as error:
            return _complain(str(error), USER_ERROR)
        except KeyboardInterrupt as interrupt:
            return _complain(str(interrupt) or "Stopped by Ctrl-C.", INTERRUPTED)
        except BrokenPipeError:
            _silence_output()
            return PIPE_CLOSED
        except Exception as error:
            if not is_disk_full(error):
                raise
            return _complain(disk_full_message(error), USER_ERROR)
        return code

    return guarded


def is_disk_full(error: BaseException) -> bool:
    """Return whether an exception means that nothing more fits on the disk, or in the user's quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors and torch report the system's error as text only
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def disk_full_message(error: BaseException) -> str:
    """Return the sentence for a full disk, with the path where the exception has one."""
    path = error.filename if isinstance(error, OSError) and error.filename else None
    what = f"{path} cannot be written" if path else f"a file cannot be written ({error})"
    return f"The disk is full: {what}; free some space or choose a folder on another disk."


def _complain(message: str, code: int) -> int:
    if sys.stderr is not None:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    return code


def _silence_output() -> None:
    """Send what is left in stdout's buffer nowhere, so that the interpreter does not complain on its way out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
