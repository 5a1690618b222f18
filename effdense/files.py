"""Write files beside their place and rename them, so that a crash or a full disk leaves the old one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from effdense.errors import UserError

_FREE_SPACE = "free some space or choose another folder"
_HINTS = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "that disk is read-only, choose a folder on another",
    errno.ENOENT: "no file or folder can be made there, choose another folder",
    errno.ENOTDIR: "a file is where a folder should be, choose another folder",
    errno.EEXIST: "a file is where a folder should be, choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What to do about what the system says."""


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
        raise UserError(f"{path} cannot be written ({reason}); nothing was changed: {_hint(error)}") from error
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


def require_writable(folder: Path) -> None:
    """See that a folder can be made and takes a file, before the work whose results are to go there.

    Nothing is left behind: neither the file nor folders that were not there.

    Raises:
        UserError: says why not, and what to do.
    """
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    probe = folder / f".{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror or error}): {_hint(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()


def _hint(error: Exception) -> str:
    """Return what to do about an error; those of safetensors and torch, which have no number, are of full disks."""
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC
    return _HINTS.get(number or errno.ENOSPC, "choose another folder")


def _is_write_error(error: RuntimeError) -> bool:
    """Whether torch.save failed for want of space: its writer then raises a RuntimeError of its own."""
    return "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
