"""Write files beside their place and rename them, so that a crash or a full disk leaves the old one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from effdense.errors import UserError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place on success and is removed on failure.

    The folder is made where it is missing. The temporary name depends on ``path`` alone, so that a process that is
    killed leaves at most one stale file, which the next write replaces; two processes that write one path at the same
    time are not kept apart.

    Args:
        path: what is to be written.
        durable: wait until the disk has it, so that it outlives a power cut; costs milliseconds a file.

    Raises:
        UserError: the disk is full or the folder cannot be written to; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # some writers make private files; a result is an ordinary one
        if durable:
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, UserError) or (isinstance(error, RuntimeError) and not _is_write_error(error)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be written ({reason}); nothing was changed: free some space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a text or bytes file whole or not at all; folders are made.

    Args:
        path: the file.
        content: text is written as UTF-8.
        durable: as for ``replacing``.

    Raises:
        UserError: it cannot be written; nothing new is left behind.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _is_write_error(error: RuntimeError) -> bool:
    """Whether torch.save failed for want of space: its writer then raises a RuntimeError of its own."""
    return "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
