"""Data sets named in one word, KIND:FOLDER, where boxes and masks come from different ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from effdense.errors import UserError, nearest

KINDS = {"detection": ("demo", "coco", "voc"), "segmentation": ("demo", "coco", "voc", "folder")}
"""What has boxes, and what has masks."""

_LABELS = {"detection": "boxes", "segmentation": "masks"}


@dataclass(frozen=True)
class DataSource:
    """A data set.

    Attributes:
        name: what kind: "demo", "coco", "voc" or "folder".
        root: its folder; None is the demo set's cache.
    """

    name: str
    root: Path | None


def parse_source(word: str, task: str) -> DataSource:
    """Read ``voc:DIR``, ``coco:DIR``, ``folder:DIR`` or ``demo``.

    Args:
        word: what the user gave.
        task: "detection" or "segmentation": for which labels.

    Raises:
        UserError: no such kind, a kind without such labels, or no folder.
    """
    name, colon, folder = word.partition(":")
    kinds = KINDS[task]
    if name not in kinds:
        known = ", ".join(f"{kind}:FOLDER" for kind in kinds if kind != "demo")
        raise UserError(
            f"{word!r} names no data set with {_LABELS[task]}: expected {known} or demo{nearest(name, kinds)}"
        )
    if name == "demo":
        if colon:
            raise UserError(f"{word!r}: the demo set has no folder of yours; write demo")
        return DataSource(name, None)
    if not folder:
        raise UserError(f"{word!r} names no folder: write {name}:FOLDER")
    return DataSource(name, Path(folder).expanduser())  # no shell does it after a colon
