"""How data sets lie on disk: what splits are called, and what a folder holds when it is not what was expected."""

from __future__ import annotations

from pathlib import Path

from effdense.errors import UserError

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""What files and folders of a split are called; the first is our name for it."""

_SHOWN = 10


def existing_folder(root: Path, what: str = "data root") -> Path:
    """Return ``root``, once seen to be a folder.

    Args:
        root: what the user named.
        what: what it is called in the message.

    Raises:
        UserError: it does not exist, or is a file.
    """
    if root.is_dir():
        return root
    if root.exists():
        raise UserError(f"{what} {root} is a file; name the folder that holds the data")
    nearest = next((parent for parent in root.absolute().parents if parent.is_dir()), Path("/"))
    raise UserError(f"{what} {root} does not exist; {nearest} does. {what_is_there(nearest)}")


def what_is_there(folder: Path) -> str:
    """Say what a folder holds, its first entries by name."""
    entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"Found there: {', '.join(entries[:_SHOWN]) or 'nothing'}{more}."


def default_root(name: str) -> Path:
    """Return the folder in which a data set is looked for, and put by --download, where none is named."""
    return Path("data") / name
