"""Which classes the values of mask files are: what the user says, else a classes.txt, else the format itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from effdense.datasets.class_names import BACKGROUND, CLASSES_FILE, ClassFile, read_class_file, refuse_twice
from effdense.datasets.index import Names
from effdense.datasets.mask_files import FOREGROUND_VALUE, MaskFiles, read_values
from effdense.datasets.segmentation_index import MAX_CLASSES
from effdense.errors import UserError
from effdense.types import IGNORE_INDEX

BINARY_CLASSES = (BACKGROUND, "foreground")

_LOOKED_AT = 20
"""Masks that are looked at where they decide something on opening."""


@dataclass(frozen=True)
class MaskClasses:
    """The classes of mask files.

    Attributes:
        names: (K,).
        values: (K,), the number of each in the files.
        notes: what was decided.
        void_values: further numbers in the files that mean void.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    notes: tuple[str, ...] = ()
    void_values: tuple[int, ...] = ()


def given_classes(classes: Sequence[str], *, binary: bool) -> MaskClasses:
    """Return the classes that the user names, numbered from 0; of binary masks, 0 and 255.

    Raises:
        UserError: none, too many, one twice, or other than two for binary masks.
    """
    names = tuple(classes)
    _check(names, "--classes")
    if binary and len(names) != len(BINARY_CLASSES):
        raise UserError(
            f"binary masks have two classes, --classes names {len(names)}: {', '.join(names)}; "
            f"name what 0 and what {FOREGROUND_VALUE} is"
        )
    return MaskClasses(names, (0, FOREGROUND_VALUE) if binary else tuple(range(len(names))))


def found_classes(
    root: Path, *, binary: bool, usual: Sequence[str] | None, background_is_implied: bool
) -> MaskClasses | None:
    """Return the classes of a folder's classes.txt, or the usual ones where it has none.

    Args:
        root: the folder.
        binary: the masks hold 0 and 255, which are classes.
        usual: the format's own classes, or None where it has none.
        background_is_implied: 0 is the background even where classes.txt, which boxes share, does not list it.

    Returns:
        The classes, or None where nothing names them.

    Raises:
        UserError: a classes.txt that cannot be used.
    """
    listed = read_class_file(root)
    if binary:
        names = BINARY_CLASSES if listed is None else _with_background(listed, background_is_implied)[0]
        if len(names) != len(BINARY_CLASSES):
            raise UserError(
                f"binary masks have two classes, {root / CLASSES_FILE} names {len(names)}: {', '.join(names)}; "
                "leave out --binary-masks, or name the two with --classes"
            )
        return MaskClasses(names, (0, FOREGROUND_VALUE))
    if listed is None:
        if usual is None:
            return None
        taken = f"{root} has no {CLASSES_FILE}: the classes are taken to be Pascal VOC's own {len(usual)}"
        return MaskClasses(tuple(usual), tuple(range(len(usual))), notes=(taken,))
    names, values, note = _with_background(listed, background_is_implied)
    _check(names, listed.path)
    if values[-1] >= IGNORE_INDEX:
        hint = f"; if the masks hold 0 and {FOREGROUND_VALUE} alone, give --binary-masks"
        raise UserError(
            f"{listed.path} gives {names[-1]!r} the number {values[-1]}; classes are numbered from 0 to "
            f"{IGNORE_INDEX - 1}, and {IGNORE_INDEX} is void{hint if values == (0, FOREGROUND_VALUE) else ''}"
        )
    return MaskClasses(names, values, listed.notes + note, listed.void_values)


def _with_background(listed: ClassFile, implied: bool) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """Return names, values and notes of a classes.txt."""
    names = listed.names
    if not implied or listed.has_background or (listed.numbered and (0 in names or 0 in listed.void_values)):
        return tuple(names.values()), tuple(names), ()
    shift = 0 if listed.numbered else 1
    names = {0: BACKGROUND} | {number + shift: name for number, name in names.items()}
    note = f"{listed.path} lists no background: it is taken to be class 0 of the masks, as in Pascal VOC"
    return tuple(names.values()), tuple(names), (note,)


def _check(names: Sequence[str], source: object) -> None:
    if not names or not all(name.strip() for name in names):
        raise UserError(f"{source} names no class" if not names else f"{source} holds a class without a name")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{source} names {len(names)} classes; a label map has room for {MAX_CLASSES}")
    refuse_twice(names, source)


def no_classes(masks: MaskFiles, root: Path) -> UserError:
    """Return the error for mask files whose classes nothing names; says which values a few of them hold."""
    seen: set[int] = set()
    for position in _spread(len(masks.file_names))[:_LOOKED_AT]:
        seen |= _values_in(masks, position)
    shown = f" (they hold {', '.join(map(str, sorted(seen)))})" if seen else ""
    return UserError(
        f"nothing says what the values of the masks in {masks.folder} are{shown}: write {root / CLASSES_FILE} with a "
        "line '0 background' and so on for each class, or name the classes from 0 on with --classes; "
        "for masks of 0 and 255 alone give --binary-masks"
    )


def refuse_binary(masks: MaskFiles, others: Names) -> None:
    """Raise UserError if masks that are to be read as label maps hold nothing but 0 and 255.

    As label maps they would be background and void, and nothing could be learnt. A few masks are looked at; the
    rest only for as long as these are so. What cannot be read is passed over, for the doctor to tell.

    Args:
        masks: those of a split.
        others: the masks of all splits, relative to the same folder. A small split may well show nothing but
            background and void while they show classes.
    """
    if not masks.binary and _looks_binary(masks) and _looks_binary(replace(masks, file_names=others)):
        raise UserError(binary_sentence(masks))


def _looks_binary(masks: MaskFiles) -> bool:
    seen: set[int] = set()
    for position in _spread(len(masks.file_names)):
        seen |= _values_in(masks, position)
        if not seen <= {0, FOREGROUND_VALUE}:
            return False
    return seen == {0, FOREGROUND_VALUE}


def binary_sentence(masks: MaskFiles) -> str:
    """Return the sentence for masks that hold nothing but 0 and 255."""
    return (
        f"the masks in {masks.folder} look binary: they hold only 0 and {FOREGROUND_VALUE}, and {IGNORE_INDEX} is void "
        f"in a label map, so there is nothing to learn. Give --binary-masks to read {FOREGROUND_VALUE} as class 1, "
        f"{BINARY_CLASSES[1]!r}"
    )


def _spread(count: int) -> list[int]:
    """Return all positions, beginning with a few that lie evenly among them."""
    first = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64)).tolist() if count else []
    return [*first, *sorted(set(range(count)) - set(first))]


def _values_in(masks: MaskFiles, position: int) -> set[int]:
    try:
        values = read_values(masks.path(position))
    except UserError:
        return set()
    return set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())
