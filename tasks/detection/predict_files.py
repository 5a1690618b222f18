"""Everything behind ``predict`` for a detector: images in, drawn images and a COCO results file out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from effdense.datasets.index import DetectionIndex
from effdense.datasets.opening import match_classes, open_dataset
from effdense.datasets.prediction_files import (
    OVERVIEW,
    Overview,
    find_images,
    open_images,
    picture_names,
    refuse_to_overwrite,
    root_of,
    sample_groups,
)
from effdense.drawing import draw_detections
from effdense.files import require_writable, write_atomically
from effdense.pictures import write_picture
from effdense.prediction import PredictSettings
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.opening import AnyDetector, open_detector
from effdense.tasks.detection.predict_config import PredictConfig
from effdense.types import Detections

RESULTS, IMAGES = "detections.json", "images.json"


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


def predict_files(
    detector: AnyDetector,
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
    category_ids = images.category_ids if isinstance(images, DetectionIndex) else detector.category_ids
    paths, read = open_images(images)
    names = picture_names(paths)
    refuse_to_overwrite(paths, [out / name for name in (*names, OVERVIEW)])
    found: list[Detections] = []
    image_ids: list[int] = []
    overview = Overview()
    for group in sample_groups(paths, read, batch_size, skip_broken=skip_broken, broken=result.broken):
        detections = detector.predict_samples([sample for _, sample in group], batch_size=batch_size)
        for (position, sample), one in zip(group, detections, strict=True):
            strong = one.above(draw_above)
            picture = draw_detections(sample.image, strong)
            write_picture(out / names[position], picture)
            overview.add(picture)
            result.drawn.append(out / names[position])
            result.objects += len(strong)
            found.append(one)
            image_ids.append(sample.image_id)
    if (sheet := overview.sheet()) is not None:
        write_picture(out / OVERVIEW, sheet)
    table = DetectionTable.from_detections(found, image_ids, category_ids)
    write_results(out, table, image_ids, left_of(paths, result.broken), category_ids, detector.class_names)
    return result


def write_results(
    out: Path,
    table: DetectionTable,
    image_ids: Sequence[int],
    files: Sequence[Path],
    category_ids: Sequence[int],
    class_names: Sequence[str],
) -> list[Path]:
    """Write detections as a COCO results file, and which file has which image id and which class which category id.

    Args:
        out: folder for detections.json and images.json.
        table: every detection.
        image_ids: (n,), also of images in which nothing was detected.
        files: (n,), the images.
        category_ids: (K,).
        class_names: (K,).

    Returns:
        The files written.

    Raises:
        UserError: a file cannot be written.
    """
    table.to_json(out / RESULTS)
    images = [{"id": int(number), "file_name": str(file)} for number, file in zip(image_ids, files, strict=True)]
    categories = [{"id": int(i), "name": name} for i, name in zip(category_ids, class_names, strict=True)]
    write_atomically(out / IMAGES, json.dumps({"images": images, "categories": categories}, indent=1))
    return [out / RESULTS, out / IMAGES]


def left_of(paths: Sequence[Path], broken: Sequence[Path]) -> list[Path]:
    """Return the files that could be read."""
    left_out = set(broken)
    return [path for path in paths if path not in left_out]


def open_split(settings: PredictSettings, class_names: Sequence[str]) -> DetectionIndex:
    """Return the images of the split that is named, with its image ids, and its category ids of a model's classes.

    Raises:
        UserError: there is no such data set, or it has classes that the model does not know.
    """
    index = open_dataset(settings.dataset, root_of(settings, "detection"), settings.split)
    return match_classes(index, class_names, settings.model)


def run_prediction(config: PredictConfig) -> Predicted:
    """Do what the settings say.

    Raises:
        UserError: anything about the model, the images or the disk that the user can mend.
    """
    require_writable(config.out)
    detector = open_detector(config.model, device=config.device, runtime=config.runtime, threads=config.threads)
    images: Sequence[Path] | DetectionIndex
    if config.dataset == "none":
        images = find_images(config.images, config.out)
    else:
        images = open_split(config, detector.class_names)
    return predict_files(
        detector,
        images,
        config.out,
        draw_above=config.draw_above,
        batch_size=config.batch_size,
        skip_broken=config.skip_broken,
    )
