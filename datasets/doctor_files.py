"""What the doctors of all tasks look at and how they say it: files, their threads, doubles, and the report's lines."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from effdense.cores import available_cores
from effdense.datasets.images import Header
from effdense.datasets.index import Names
from effdense.errors import UserError
from effdense.types import Int64

SHOWN = 10
"""How many of anything a sentence lists, and how many errors are raised at once."""

_HEAD_BYTES = 65_536
_Found = TypeVar("_Found")


class Images(Protocol):
    """What is asked of an index here."""

    def __len__(self) -> int: ...

    def path(self, position: int, /) -> Path:
        """Return the image file at a position."""
        ...


def report_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], sentences: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return a table, then sentences behind their kind, as lines of text.

    Args:
        columns: headings.
        rows: cells; each row has as many as there are headings.
        sentences: by kind: "note", "warning", "error".
    """
    return table_lines(columns, rows) + [f"{kind}: {line}" for kind, lines in sentences.items() for line in lines]


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of text, every column aligned to the right."""
    table = [columns, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(columns))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]


def raise_first(errors: Sequence[str]) -> None:
    """Raise UserError with the first ten errors, if there are any; what two splits share is said once."""
    once = list(dict.fromkeys(errors))
    if once:
        more = [f"and {len(once) - SHOWN} more errors"] if len(once) > SHOWN else []
        raise UserError("\n".join([*once[:SHOWN], *more]))


def listed(names: Iterable[str], most: int = SHOWN, comma: str = ", ") -> str:
    """Return texts one after the other, and how many there are beyond ``most``."""
    texts = list(names)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return comma.join(texts[:most]) + more


def duplicate_ids(source: Path, ids_of: Mapping[str, Int64]) -> list[str]:
    """Return a sentence for each kind of ids that has some more than once."""
    return [
        f"{source}: {what} ids must be unique, but {listed(map(str, twice))} come more than once"
        for what, ids in ids_of.items()
        if len(twice := _repeated(ids))
    ]


def _repeated(ids: Int64) -> list[int]:
    values, counts = np.unique(ids, return_counts=True)
    return [int(value) for value in values[counts > 1]]


def duplicate_files(file_names: Names, split: str) -> list[str]:
    """Return a sentence for files that a split lists more than once."""
    names, counts = np.unique(file_names, return_counts=True)
    twice = [name.decode() for name in names[counts > 1].tolist()]
    return [f"{split} lists {len(twice)} files more than once: {listed(twice)}"] if twice else []


def look_at_each(look: Callable[[int], _Found], count: int, *, decode: bool) -> list[_Found | UserError]:
    """Return what is found at each position, or the error that kept it from being found; by threads.

    Args:
        look: given a position.
        count: how many there are.
        decode: pixels are read, which keeps a core busy; else a thread mostly waits for the disk.
    """

    def outcome(position: int) -> _Found | UserError:
        try:
            return look(position)
        except UserError as error:
            return error

    cores = available_cores()
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, cores if decode else 4 * cores)) as pool:
        warnings.simplefilter("ignore")  # Pillow's advice on palettes and odd tags
        return list(pool.map(outcome, range(count)))


def left_out(split: str, faults: Sequence[str]) -> str:
    """Return the sentence on broken files that are left out."""
    return f"{split}: {len(faults)} broken images are left out: {listed(faults, 3, '; ')}"


def shared_images(
    first: str, index: Images, headers: Sequence[Header], second: str, other: Images, others: Sequence[Header]
) -> list[str]:
    """Return a sentence on images of the same bytes in both splits, if there are any.

    A file is read in full only where length and beginning agree with those of another.
    """
    mine: list[tuple[Path, object]] = [(index.path(i), header.num_bytes) for i, header in enumerate(headers)]
    theirs: list[tuple[Path, object]] = [(other.path(i), header.num_bytes) for i, header in enumerate(others)]
    paths, other_paths = _agreeing(mine, theirs)
    with ThreadPoolExecutor(min(16, 4 * available_cores())) as pool:
        for num_bytes in (_HEAD_BYTES, -1):
            digest = functools.partial(_digest, num_bytes=num_bytes)
            mine = list(zip(paths, pool.map(digest, paths), strict=True))
            theirs = list(zip(other_paths, pool.map(digest, other_paths), strict=True))
            paths, other_paths = _agreeing(mine, theirs)
    if not other_paths:
        return []
    return [
        f"{len(other_paths)} images of {second} are in {first} too, so its scores will flatter: "
        f"{listed([path.name for path in other_paths], 3)}"
    ]


def _agreeing(
    mine: Sequence[tuple[Path, object]], theirs: Sequence[tuple[Path, object]]
) -> tuple[list[Path], list[Path]]:
    """Return the paths on either side whose key is found on the other side too."""
    common = {key for _, key in mine} & {key for _, key in theirs}
    return [path for path, key in mine if key in common], [path for path, key in theirs if key in common]


def _digest(path: Path, num_bytes: int) -> bytes:
    """Return a hash of a file's first bytes, of the whole file with -1."""
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(num_bytes), digest_size=16).digest()
