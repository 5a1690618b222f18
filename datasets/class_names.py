"""classes.txt: one reading of it for boxes and for masks.

Either one name a line, or a number and a name a line. A number is the value that the class has in mask files; without
numbers the lines count from 0. "background" at 0 is a class of masks and none of boxes. A numbered name such as "void"
or "unlabeled" is a class of neither, whatever its number: those pixels of masks are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from effdense.datasets.splits import read_lines
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX

CLASSES_FILE = "classes.txt"
BACKGROUND = "background"

_BACKGROUND_NAMES = (BACKGROUND, "bg")
_SHOWN = 10
_VOID_NAMES = ("void", "ignore", "ignored", "__ignore__", "unlabelled", "unlabeled")
_BORDER = "border"
"""Void at 255 alone: of cells, say, the border is a class."""
_NUMBERED = re.compile(r"(-?\d+)\s+(\S.*)", re.ASCII)


@dataclass(frozen=True)
class ClassFile:
    """What a classes.txt says.

    Attributes:
        path: the file.
        numbered: whether it numbers its classes itself.
        names: by number, in the order of the numbers; without the void.
        void_values: numbers other than 255 that the file calls void.
        notes: what was decided.
    """

    path: Path
    numbered: bool
    names: dict[int, str]
    void_values: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_background(self) -> bool:
        """Whether the class of number 0 is the background."""
        return is_background(self.names.get(0, ""))

    @property
    def object_names(self) -> tuple[str, ...]:
        """The classes that boxes can have."""
        return tuple(name for number, name in self.names.items() if number or not self.has_background)


def is_background(name: str) -> bool:
    """Whether a class is the background by its name: "background", "__background__", "BG" and the like."""
    return name.strip().strip("_").casefold() in _BACKGROUND_NAMES


def read_class_file(folder: Path) -> ClassFile | None:
    """Read the classes.txt of a folder, or return None where it has none.

    Raises:
        UserError: a name or a number comes twice, a number is negative, or the text is not UTF-8.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    rows = [line.strip() for line in read_lines(path) if line.strip()]
    matches = [_NUMBERED.fullmatch(row) for row in rows]
    numbered = all(match is not None for match in matches)
    pairs = sorted((int(match[1]), match[2]) for match in matches if match) if numbered else list(enumerate(rows))
    void = [(number, name) for number, name in pairs if _is_void(number, name)]
    classes = [pair for pair in pairs if pair not in void] if numbered else pairs
    refuse_twice((name for _, name in classes), path)
    if twice := _repeated(str(number) for number, _ in pairs):
        raise UserError(f"{path} gives a number twice: {', '.join(twice)}")
    if classes and classes[0][0] < 0:
        number, name = classes[0]
        raise UserError(f"{path} gives {name!r} the number {number}, which no mask can hold: take the line out")
    if not numbered:
        return ClassFile(path, numbered, dict(classes), notes=_unnumbered_void_notes(void, path))
    values = tuple(number for number, _ in void if 0 <= number < IGNORE_INDEX)
    return ClassFile(path, numbered, dict(classes), values, _void_notes(void, path))


def _is_void(number: int, name: str) -> bool:
    return name.lower() in _VOID_NAMES or (number == IGNORE_INDEX and name.lower() == _BORDER)


def _void_notes(void: Sequence[tuple[int, str]], path: Path) -> tuple[str, ...]:
    shown = [f"{number} {name}" for number, name in void if 0 <= number < IGNORE_INDEX]
    said = f"{path}: {', '.join(shown)} {'is' if len(shown) == 1 else 'are'} no class by name: such pixels are void"
    return (said,) if shown else ()


def _unnumbered_void_notes(void: Sequence[tuple[int, str]], path: Path) -> tuple[str, ...]:
    return tuple(
        f"{path}: {name!r} is class {number}, as it is listed; if it means pixels that do not count, number the lines "
        f"of the file ({number} {name} and so on)"
        for number, name in void
    )


def refuse_twice(names: Iterable[str], source: object) -> None:
    """Raise UserError if a name comes more than once.

    Args:
        names: class names.
        source: where they come from, for the text.
    """
    if twice := _repeated(names):
        raise UserError(f"{source} names a class twice: {', '.join(twice)}")


class ClassesDiffer(UserError):
    """Class names that two sides do not have in common."""


@contextmanager
def classes_explained(*, head: str = "", demo: bool = False) -> Iterator[None]:
    """Say of classes that differ whose they are.

    Args:
        head: for which the data are, where there are two.
        demo: they are the built-in scenes, which are taken where nobody names a data set.

    Raises:
        ClassesDiffer: as it was raised, and more.
    """
    try:
        yield
    except ClassesDiffer as error:
        which = f"for the {head} head, " if head else ""
        named = "; these are the demo scenes: name a data set of your own by --dataset and --data-root" if demo else ""
        raise ClassesDiffer(f"{which}{error}{named}") from error


def refuse_strangers(names: Sequence[str], source: object, wanted: Sequence[str], wanted_by: object) -> None:
    """Raise ClassesDiffer if there are names that are not wanted; the text shows what only either side has.

    Args:
        names: class names of a data set.
        source: where they come from.
        wanted: class names of another data set, or of a model.
        wanted_by: where those come from.
    """
    if strangers := [name for name in names if name not in wanted]:
        missing = [name for name in wanted if name not in names]
        only_there = f"; only {wanted_by} has {_quoted(missing)}" if missing else ""
        raise ClassesDiffer(
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
