"""JSON: reading what a user hands in, and writing it strictly, without NaN and Infinity."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

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
        UserError: it is not JSON, and the message names file, line and column; or nobody could read it.
    """
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not valid JSON: the text is not UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{path}: brackets are nested too deeply to be read") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file, one a line; empty lines count for nothing.

    Raises:
        UserError: the file cannot be read, or a line of it is not a JSON object.
    """
    records = []
    for number, line in enumerate(read_bytes(path).decode(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, one for each epoch")
        records.append(record)
    return records


def jsonable(value: Any) -> Any:
    """Return numbers and arrays as plain values for strict JSON: what is not finite is None."""
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [jsonable(one) for one in value]
    if isinstance(value, dict):
        return {key: jsonable(one) for key, one in value.items()}
    if isinstance(value, np.generic):
        return jsonable(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(content: dict[str, Any]) -> str:
    """Return indented JSON with each list of plain values on one line: no text in JSON holds a line break."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda match: re.sub(r"\n *", "", match[0]), text) + "\n"
