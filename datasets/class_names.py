"""classes.txt: one reading of it for boxes and for masks.

Either one name a line, or a number and a name a line. A number is the value that the class has in mask files; without
numbers the lines count from 0. "background" at 0 is a class of masks and none of boxes; a name such as "void" at 255
is a class of neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from effdense.datasets.splits import read_lines
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX

CLASSES_FILE = "classes.txt"
BACKGROUND = "background"

_BACKGROUND_NAMES = (BACKGROUND, "__background__", "_background_")
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


def _repeated(texts: Iterable[str]) -> list[str]:
    listed = list(texts)
    return sorted({text for text in listed if listed.count(text) > 1})
