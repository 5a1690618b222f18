"""Everything behind ``predict`` for a detector: images in, drawn images and a COCO results file out."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from effdense.datasets.images import IMAGE_SUFFIXES
from effdense.datasets.index import DetectionIndex
from effdense.datasets.opening import match_classes, open_dataset
from effdense.drawing import contact_sheet, draw_detections, fit_into_cell
from effdense.errors import UserError
from effdense.files import write_atomically
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.predict import Detector, as_sample, load_detector
from effdense.tasks.detection.predict_config import PredictConfig
from effdense.training.device import choose_device
from effdense.types import Detections, Sample, UInt8

log = logging.getLogger(__name__)

RESULTS, IMAGES, OVERVIEW = "detections.json", "images.json", "overview.jpg"

_SHOWN = 12
"""Pictures on the overview."""


@dataclass
class Predicted:
    """What was written, and what was left out.

    Attributes:
        drawn: one picture an image.
        results: the COCO results file, with every detection, also those too weak to be drawn.
        objects: how many detections were drawn.
        broken: images that could not be read.
    """

    results: Path
    drawn: list[Path] = field(default_factory=list)
    objects: int = 0
    broken: list[Path] = field(default_factory=list)


def find_images(inputs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Return the image files that the inputs name: files as they are, folders with all images in them, sorted.

    What is hidden in a folder, or comes from an archive's ``__MACOSX``, was not put there to be looked at: left out.

    Args:
        inputs: files and folders.
        out: where drawn pictures go; those of an earlier call, in and below it, are left out of the folders.

    Raises:
        UserError: an input does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
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
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def predict_files(
    detector: Detector,
    images: Sequence[Path] | DetectionIndex,
    out: Path,
    *,
    draw_above: float = 0.3,
    batch_size: int = 8,
    skip_broken: bool = False,
) -> Predicted:
    """Detect in image files; write a picture of each and one COCO results file.

    Args:
        detector: what to detect with.
        images: files, which get the image ids 1, 2, ... in this order (images.json says which); or a data set, whose
            ids are kept.
        out: folder for the pictures, overview.jpg with the first twelve, detections.json and images.json.
        draw_above: least score of what is drawn; detections.json has everything.
        batch_size: images in a forward pass.
        skip_broken: leave out images that cannot be read, and count them.

    Raises:
        UserError: an image cannot be read, or a file cannot be written; pictures already drawn stay.
    """
    result = Predicted(out / RESULTS)
    if isinstance(images, DetectionIndex):
        paths = [images.path(i) for i in range(len(images))]
        category_ids = images.category_ids
    else:
        paths, category_ids = list(images), detector.category_ids
    names = picture_names(paths)
    _refuse_to_overwrite(paths, [out / name for name in (*names, OVERVIEW)])
    found: list[Detections] = []
    image_ids: list[int] = []
    first: list[UInt8] = []
    for group in _groups(images, paths, batch_size, skip_broken, result.broken):
        detections = detector.predict_samples([sample for _, sample in group], batch_size=batch_size)
        for (position, sample), one in zip(group, detections, strict=True):
            strong = one.above(draw_above)
            picture = draw_detections(sample.image, strong)
            write_picture(out / names[position], picture)
            if len(first) < _SHOWN:
                first.append(fit_into_cell(picture))
            result.drawn.append(out / names[position])
            result.objects += len(strong)
            found.append(one)
            image_ids.append(sample.image_id)
    DetectionTable.from_detections(found, image_ids, category_ids).to_json(result.results)
    if first:
        write_picture(out / OVERVIEW, contact_sheet(first))
    write_image_list(out / IMAGES, image_ids, _read(paths, result.broken), category_ids, detector.class_names)
    return result


def write_image_list(
    path: Path, image_ids: Sequence[int], files: Sequence[Path], category_ids: Sequence[int], class_names: Sequence[str]
) -> None:
    """Write which file has which image id, and which class which category id, in COCO's words."""
    images = [{"id": int(number), "file_name": str(file)} for number, file in zip(image_ids, files, strict=True)]
    categories = [{"id": int(i), "name": name} for i, name in zip(category_ids, class_names, strict=True)]
    write_atomically(path, json.dumps({"images": images, "categories": categories}, indent=1))


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


def _refuse_to_overwrite(inputs: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Raise UserError where a drawn picture would take the place of an image that is read, whatever it is called."""
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


def write_picture(path: Path, image: UInt8) -> None:
    """Write an RGB image (H, W, 3) as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    write_atomically(path, data.tobytes(), durable=False)


def _groups(
    images: Sequence[Path] | DetectionIndex, paths: Sequence[Path], size: int, skip_broken: bool, broken: list[Path]
) -> Iterator[list[tuple[int, Sample]]]:
    """Yield positions and samples, ``size`` at a time, so that only so many images are in memory."""
    group: list[tuple[int, Sample]] = []
    for position, path in enumerate(paths):
        try:
            if isinstance(images, DetectionIndex):
                sample = images.sample(position)
            else:
                sample = as_sample(path).replace(image_id=position + 1)
        except UserError:
            if not skip_broken:
                raise
            log.warning("left out: %s cannot be read", path)
            broken.append(path)
            continue
        group.append((position, sample))
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _read(paths: Sequence[Path], broken: Sequence[Path]) -> list[Path]:
    left_out = set(broken)
    return [path for path in paths if path not in left_out]


def run_prediction(config: PredictConfig) -> Predicted:
    """Do what the settings say.

    Raises:
        UserError: anything about the model, the images or the disk that the user can mend.
    """
    detector = load_detector(config.model).to(choose_device(config.device))
    images: Sequence[Path] | DetectionIndex
    if config.dataset == "none":
        images = find_images(config.images, config.out)
    else:
        index = open_dataset(config.dataset, config.data_root, config.split)
        images = match_classes(index, detector.class_names, config.model)
    return predict_files(
        detector,
        images,
        config.out,
        draw_above=config.draw_above,
        batch_size=config.batch_size,
        skip_broken=config.skip_broken,
    )
