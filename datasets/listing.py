"""Image files of a folder, by their names without suffix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from effdense.datasets.images import IMAGE_SUFFIXES


def is_litter(path: PurePath) -> bool:
    """Whether a path is something that tools leave behind.

    That is what a name with a leading dot hides (``._a.xml`` of macOS, ``.ipynb_checkpoints``), and ``__MACOSX``.

    Args:
        path: relative to the folder of the data.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def list_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, list[str]]:
    """Return the images of a folder by their stem, those with an earlier suffix first; nothing if it is no folder."""
    by_stem: dict[str, list[str]] = {}
    if not folder.is_dir():
        return by_stem
    entries = [(os.path.splitext(entry), entry) for entry in sorted(os.listdir(folder))]
    images = [(stem, suffix.lower(), entry) for (stem, suffix), entry in entries if suffix.lower() in suffixes]
    for stem, _, entry in sorted(images, key=lambda image: suffixes.index(image[1])):
        by_stem.setdefault(stem, []).append(entry)
    return by_stem


def images_below(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, str]:
    """Return all images in a folder and the folders in it, by name: path without suffix to path, relative to it.

    Of files that differ by suffix alone, the one whose suffix comes first is taken; what tools leave behind is not.
    """
    found: dict[str, str] = {}
    visited: set[str] = set()
    for parent, folders, _ in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(place)
        relative = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        folders[:] = sorted(name for name in folders if not is_litter(PurePosixPath(name)))
        for stem, entries in list_images(Path(parent), suffixes).items():
            if not is_litter(PurePosixPath(entries[0])):
                found[(relative / stem).as_posix()] = (relative / entries[0]).as_posix()
    return dict(sorted(found.items()))
