"""Reading JSON that a user hands in."""

from __future__ import annotations

import json
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
