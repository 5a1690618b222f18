"""A generated section of a Markdown file, between two comments that no reader sees."""

from __future__ import annotations

from pathlib import Path

from effdense.errors import UserError
from effdense.files import write_atomically


def markers(name: str) -> tuple[str, str]:
    """Return the comments before and after the section of this name."""
    return f"<!-- bench: {name} -->", f"<!-- end of bench: {name} -->"


def check_markers(path: Path, name: str) -> str:
    """Return the file's text.

    Raises:
        UserError: it cannot be read, or does not have both markers once, the first before the second.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); --write takes a Markdown file with markers") from None
    first, last = markers(name)
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise UserError(
            f"{path}: expected the lines '{first}' and '{last}' once each, in this order; the table goes between them"
        )
    return text


def replace_section(path: Path, name: str, content: str) -> None:
    """Put ``content`` where the section of this name is; the rest of the file stays as it is.

    Raises:
        UserError: as `check_markers`.
    """
    text = check_markers(path, name)
    first, last = markers(name)
    before, _, rest = text.partition(first)
    _, _, after = rest.partition(last)
    write_atomically(path, f"{before}{first}\n\n{content.strip()}\n\n{last}{after}")
