"""classes.txt: one reading of it for boxes and for masks.

Either one name a line, or a number and a name a line. A number is the value that the class has in mask files; without
numbers the lines count from 0. "background" at 0 is a class of masks and none of boxes; a name such as "void" at 255
is a class of neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from effdense.datasets.splits import read_lines
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX

CLASSES_FILE = "classes.txt"
BACKGROUND = "background"

_BACKGROUND_NAMES = (BACKGROUND, "__background__", "_background_")
_SHOWN = 10
_VOID_NAMES = ("void", "ignore", "ignored", "__ignore__", "unlabelled", "unlabeled", "border")


@dataclass(frozen=True)
class ClassFile:
    """What a classes.txt says.

    Attributes:
        path: the file.
        numbered: whether it numbers its classes itself.
        names: by number, in the order of the numbers; without the void of 255.
    """

    path: Path
    numbered: bool
    names: dict[int, str]

    @property
    def has_background(self) -> bool:
        """Whether the class of number 0 is the background."""
        return self.names.get(0, "").lower() in _BACKGROUND_NAMES

    @property
    def object_names(self) -> tuple[str, ...]:
        """The classes that boxes can have."""
        return tuple(name for number, name in self.names.items() if number or not self.has_background)


def read_class_file(folder: Path) -> ClassFile | None:
    """Read the classes.txt of a folder, or return None where it has none.

    Raises:
        UserError: a name or a number comes twice, or the text is not UTF-8.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    rows = [line.strip() for line in read_lines(path) if line.strip()]
    numbered = all(row.split()[0].isdecimal() and len(row.split()) > 1 for row in rows)
    if numbered:
        pairs = sorted((int(number), name.strip()) for number, name in (row.split(maxsplit=1) for row in rows))
    else:
        pairs = list(enumerate(rows))
    pairs = [(number, name) for number, name in pairs if number != IGNORE_INDEX or name.lower() not in _VOID_NAMES]
    refuse_twice((name for _, name in pairs), path)
    if twice := _repeated(str(number) for number, _ in pairs):
        raise UserError(f"{path} gives a number twice: {', '.join(twice)}")
    return ClassFile(path, numbered, dict(pairs))


def refuse_twice(names: Iterable[str], source: object) -> None:
    """Raise UserError if a name comes more than once.

    Args:
        names: class names.
        source: where they come from, for the text.
    """
    if twice := _repeated(names):
        raise UserError(f"{source} names a class twice: {', '.join(twice)}")


def refuse_strangers(names: Sequence[str], source: object, wanted: Sequence[str], wanted_by: object) -> None:
    """Raise UserError if there are names that are not wanted; the text shows what only either side has.

    Args:
        names: class names of a data set.
        source: where they come from.
        wanted: class names of another data set, or of a model.
        wanted_by: where those come from.
    """
    if strangers := [name for name in names if name not in wanted]:
        missing = [name for name in wanted if name not in names]
        only_there = f"; only {wanted_by} has {_quoted(missing)}" if missing else ""
        raise UserError(
            f"the classes differ: only {source} has {_quoted(strangers)}{only_there}; "
            "use data with the same class names"
        )


def renumbering_note(source: object, wanted_by: object, added: Sequence[str]) -> str:
    """Return the sentence that tells of classes that were renumbered by name.

    Args:
        source: where the classes come from.
        wanted_by: whose numbers they get.
        added: the classes that only the latter has.
    """
    lacking = f"; it does not list {_quoted(added)}" if added else ""
    return f"{source}: classes renumbered by name to those of {wanted_by}{lacking}"


def _quoted(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


def _repeated(texts: Iterable[str]) -> list[str]:
    listed = list(texts)
    return sorted({text for text in listed if listed.count(text) > 1})
