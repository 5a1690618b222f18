"""Reading JSON that a user hands in, and writing files that are whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from effdense.errors import UserError


def read_bytes(path: Path) -> bytes:
    """Return the file's bytes.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_json(content: bytes, path: Path) -> Any:
    """Return what a JSON text says.

    Raises:
        UserError: it is not JSON; the message names file, line and column.
    """
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not valid JSON: the text is not UTF-8") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside and rename, so that ``path`` holds the old content or the whole of the new; folders are made.

    Raises:
        UserError: the folder cannot be written to or the disk is full; nothing new is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; a result is an ordinary file
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
