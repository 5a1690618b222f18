"""Image files to predict on, and where the pictures of what was found go: the same for every task."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from effdense.datasets.image_inputs import as_sample
from effdense.datasets.images import IMAGE_SUFFIXES
from effdense.datasets.listing import is_litter
from effdense.datasets.roots import ready_root
from effdense.drawing import contact_sheet, fit_into_cell
from effdense.errors import UserError
from effdense.prediction import PredictSettings
from effdense.types import Sample, UInt8

log = logging.getLogger(__name__)

OVERVIEW = "overview.jpg"

_SHOWN = 12
"""Pictures on the overview."""


class ImageIndex(Protocol):
    """What prediction asks of a data set."""

    def __len__(self) -> int:
        """Count the images."""
        ...

    def path(self, position: int) -> Path:
        """Return the file of an image."""
        ...

    def sample(self, position: int) -> Sample:
        """Read an image."""
        ...


def find_images(inputs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Return the image files that the inputs name: files as they are, folders with all images in them, sorted.

    What is hidden in a folder, or comes from an archive's ``__MACOSX``, was not put there to be looked at: left out.

    Args:
        inputs: files and folders.
        out: where drawn pictures go; those of an earlier call, in and below it, are left out of the folders.

    Raises:
        UserError: an input does not exist, ``out`` is a folder that is searched, or there is no image at all.
    """
    found: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
            if out is not None and out.resolve() == entry.resolve():
                raise UserError(
                    f"--out {out} is the folder of the images: what is drawn would lie among them and be taken for "
                    "images the next time; name another folder, which may lie in this one"
                )
            inside = sorted(p for p in entry.rglob("*") if _is_image_below(entry, p))
            nested = out is not None and entry.resolve() in out.resolve().parents
            found += [p for p in inside if not (nested and out and out.resolve() in p.resolve().parents)]
        elif entry.is_file():
            found.append(entry)
        else:
            raise UserError(f"there is no image or folder {entry}")
    if not found:
        raise UserError(
            f"no image in {', '.join(map(str, inputs))}: looked for files ending in {' '.join(IMAGE_SUFFIXES)}"
        )
    return found


def _is_image_below(folder: Path, path: Path) -> bool:
    return not is_litter(path.relative_to(folder)) and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def picture_names(paths: Sequence[Path]) -> list[str]:
    """Return a file name for the picture of each image; images of one name in several folders get a number.

    Names that differ in upper and lower case alone count as one: on some file systems they are.
    """
    used = {OVERVIEW}
    last: dict[str, int] = {}
    names = []
    for path in paths:
        stem = path.stem.casefold()
        name, number = f"{path.stem}.jpg", last.get(stem, 1)
        while name.casefold() in used:
            number += 1
            name = f"{path.stem}-{number}.jpg"
        last[stem] = number
        used.add(name.casefold())
        names.append(name)
    return names


def refuse_to_overwrite(inputs: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Stop before a drawn picture takes the place of an image that is read, whatever it is called.

    Raises:
        UserError: names the picture.
    """
    read = {_identity(path) for path in inputs} - {None}
    for picture in pictures:
        if _identity(picture) in read:
            raise UserError(f"the drawn picture {picture} would overwrite the image itself: choose another --out")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what ``os.path.samefile`` compares, so that thousands can be compared at once; None for no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def root_of(settings: PredictSettings, task: str) -> Path | None:
    """Return the folder of the data set that is named: the one given, or where --download puts it.

    Args:
        settings: of the prediction.
        task: "detection" or "segmentation", for how the folder must look.

    Raises:
        UserError: there is nothing in it.
    """
    return ready_root(settings.dataset, settings.data_root, task, can_download=False)


def open_images(images: Sequence[Path] | ImageIndex) -> tuple[list[Path], Callable[[int], Sample]]:
    """Return the files, and what reads the one at a position as a Sample.

    Args:
        images: files, which get the image ids 1, 2, ... in this order; or a data set, whose ids are kept.
    """
    if not isinstance(images, Sequence):
        return [images.path(i) for i in range(len(images))], images.sample
    paths = list(images)
    return paths, lambda position: as_sample(paths[position]).replace(image_id=position + 1)


def sample_groups(
    paths: Sequence[Path], read: Callable[[int], Sample], size: int, *, skip_broken: bool, broken: list[Path]
) -> Iterator[list[tuple[int, Sample]]]:
    """Yield positions and samples, ``size`` at a time, so that only so many images are in memory.

    Args:
        paths: the files, for the messages.
        read: returns the sample at a position.
        size: most images a group.
        skip_broken: leave out images that cannot be read, and note them in ``broken``.
        broken: is added to.

    Raises:
        UserError: an image cannot be read, and ``skip_broken`` is not set.
    """
    group: list[tuple[int, Sample]] = []
    for position, path in enumerate(paths):
        try:
            sample = read(position)
        except UserError as error:
            if not skip_broken:
                raise UserError(f"{error}; --skip-broken goes on without it") from error
            log.warning("left out: %s cannot be read", path)
            broken.append(path)
            continue
        group.append((position, sample))
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class Overview:
    """The first pictures side by side, held no larger than they are shown."""

    def __init__(self) -> None:
        self._cells: list[UInt8] = []

    @property
    def is_full(self) -> bool:
        """Whether a further picture would not be shown."""
        return len(self._cells) >= _SHOWN

    def add(self, picture: UInt8) -> None:
        """Take a picture, RGB (H, W, 3), if there is room for it."""
        if not self.is_full:
            self._cells.append(fit_into_cell(picture))

    def sheet(self) -> UInt8 | None:
        """Return the pictures side by side, RGB, or None where there is none."""
        return contact_sheet(self._cells) if self._cells else None
