"""Which images belong to a split: those of a list, or else those that the hash of their name puts there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath

from effdense.datasets.layout import SPLIT_NAMES
from effdense.datasets.listing import is_litter
from effdense.errors import UserError, nearest

UNLISTED_SPLITS = ("train", "val", "trainval")
"""What can be opened where a data set says nothing of splits."""

_SHOWN = 10
_TRAIN_SHARE = 0.8
_USUAL = ("train", "val", "trainval", "test")
_DATA_FOLDERS = (
    "jpegimages", "images", "annotations", "segmentationclass", "segmentationclasspng", "masks", "labels",
)  # fmt: skip
"""In lower case, folders that a line of a list may name though names of images lack them."""


def find_lists(root: Path, folders: Sequence[str]) -> dict[str, Path]:
    """Return the list of each split, by its name: those of the first of these folders that has any."""
    for folder in folders:
        paths = sorted(path for path in (root / folder).glob("*.txt") if not is_litter(PurePath(path.name)))
        if lists := {path.stem: path for path in paths if path.is_file()}:
            return lists
    return {}


def lists_of_split(lists: Mapping[str, Path], split: str) -> list[Path]:
    """Return the lists that make up a split: one, or those of train and val for a trainval that has none; or none."""
    paths = [lists[name] for name in split_names(split) if name in lists][:1]
    if not paths and split == "trainval":
        paths = [path for part in ("train", "val") for path in lists_of_split(lists, part)]
    return paths


def split_names(split: str) -> tuple[str, ...]:
    """Return what files and folders of a split may be called."""
    return SPLIT_NAMES.get(split, (split,))


def in_order(splits: Iterable[str]) -> list[str]:
    """Return splits with the usual ones first; lists of a single class, such as aeroplane_train, are left out."""
    found = list(splits)
    others = [split for split in found if split.rpartition("_")[2] not in _USUAL]
    return [split for split in _USUAL if split in found] + others


def listed_rows(path: Path, names: Sequence[str], lacks: Callable[[str], str], remedy: str) -> list[int]:
    """Return the positions among ``names`` of those that a list names, in its order.

    A line holds a name, which may carry a file extension, or a name and more behind it (VOC's flag of 1 or -1; the
    mask's path behind the image's). It may begin with the folder of the images (JPEGImages/x.jpg), and with folders
    above it where the path is absolute or they are the list's own. Backslashes are as good as slashes.

    Args:
        path: the list.
        names: all there are.
        lacks: says of a name that is not there what is missing.
        remedy: what to do about it.

    Raises:
        UserError: names that are not there, with their lines.
    """
    row_of = {name: row for row, name in enumerate(names)}
    rows, faults = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not (text := line.strip()):
            continue
        spellings = (spelling for written in (text, text.split()[0]) for spelling in _spellings(written, path))
        row = next((row_of[spelling] for spelling in spellings if spelling in row_of), None)
        if row is None:
            faults.append(f"{path}:{number}: {text!r} {lacks(text)}")
        else:
            rows.append(row)
    if faults:
        more = f"\nand {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError("\n".join(faults[:_SHOWN]) + more + "\n" + remedy)
    return rows


def _spellings(written: str, path: Path) -> Iterator[str]:
    """Yield what a path in a list may be called as an image, what is nearest to it first.

    Only folders that are known to hold images are dropped: ``b/x`` is not ``x``.
    """
    parts = PurePosixPath(written.replace("\\", "/")).parts
    candidates = [written, "/".join(parts)]
    for place, part in enumerate(parts[:-1]):
        if part.lower() not in _DATA_FOLDERS:
            continue
        candidates.append("/".join((*parts[:place], *parts[place + 1 :])))  # train/images/x is the image train/x
        if _leads_to(parts[:place], path):
            candidates.append("/".join(parts[place + 1 :]))
    for candidate in candidates:
        yield candidate
        yield os.path.splitext(candidate)[0]


def _leads_to(above: tuple[str, ...], path: Path) -> bool:
    """Whether folders before that of the images may be dropped: none but such, an absolute path, or the list's own."""
    if all(part.lower() in _DATA_FOLDERS or part == ".." for part in above):
        return True
    return above[0] == "/" or above[0].endswith(":") or above[-1] in path.resolve().parent.parts


def hashed_rows(names: Sequence[str], split: str) -> tuple[list[int], int]:
    """Return the positions of the names that a split has where no list says so, and how many of all are train.

    Args:
        names: all there are. Four fifths of them, those with the smaller hash, are train and the rest val.
        split: one of ``UNLISTED_SPLITS``.
    """
    assert split in UNLISTED_SPLITS
    train = [_hash_share(name) < _TRAIN_SHARE for name in names]
    rows = [row for row, is_train in enumerate(train) if split == "trainval" or is_train == (split == "train")]
    return rows, sum(train)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        UserError: it cannot be read, or the text is not UTF-8; names the line.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: the text is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def no_split(root: Path, split: str, known: Sequence[str]) -> UserError:
    """Return the error for a split that a data set does not have."""
    shown = ", ".join(known[:_SHOWN]) + (" ..." if len(known) > _SHOWN else "")
    return UserError(f"{root} has no split {split!r}, only {shown}{nearest(split, list(known))}")


def _hash_share(name: str) -> float:
    """Return a number in [0, 1) that depends on the file's name alone."""
    digest = hashlib.blake2b(PurePosixPath(name).name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
