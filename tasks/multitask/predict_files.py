"""Everything behind ``predict`` for a model of both tasks: images in; pictures, index PNGs and a COCO results file out.

In a picture the boxes lie over the coloured classes, in the colour of their class where its pixels have one; the legend
below names the classes of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from effdense.datasets.index import DetectionIndex
from effdense.datasets.prediction_files import find_images, open_images, sample_groups
from effdense.drawing import Color, class_color, draw_detections, mask_color
from effdense.files import require_writable
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.predict_files import RESULTS, left_of, open_split, write_results
from effdense.tasks.multitask.opening import AnyMultitask, open_multitask_model
from effdense.tasks.multitask.predict_config import PredictConfig
from effdense.tasks.segmentation.predict_files import MASKS, Folder
from effdense.types import Detections


@dataclass
class Predicted:
    """What was written, and what was left out.

    Attributes:
        drawn: one picture an image.
        results: the COCO results file, with every detection, also those too weak to be drawn.
        masks: folder of the label maps, index PNGs with VOC's colour map as palette.
        objects: how many detections were drawn.
        broken: images that could not be read.
    """

    results: Path
    masks: Path
    drawn: list[Path] = field(default_factory=list)
    objects: int = 0
    broken: list[Path] = field(default_factory=list)


def predict_files(
    multitask: AnyMultitask,
    images: Sequence[Path] | DetectionIndex,
    out: Path,
    *,
    draw_above: float = 0.3,
    opacity: float = 0.5,
    batch_size: int = 8,
    skip_broken: bool = False,
    save_probabilities: bool = False,
) -> Predicted:
    """Detect and label image files, each in one pass; write a picture of both, an index PNG, and all detections.

    Args:
        multitask: what to predict with.
        images: files, which get the image ids 1, 2, ... in this order (images.json says which); or a data set, whose
            ids are kept.
        out: folder for what the single tasks leave: the pictures, overview.jpg, detections.json, images.json, masks/
            and classes.txt.
        draw_above: least score of the boxes that are drawn; detections.json has everything.
        opacity: how strongly classes are coloured, 0..1.
        batch_size: images in a forward pass.
        skip_broken: leave out images that cannot be read, and count them.
        save_probabilities: write probabilities/NAME.npz too, with ``probabilities`` (K, H, W) in float16.

    Raises:
        UserError: ``out`` holds a data set, or masks that no earlier prediction left; an image cannot be read, a file
            cannot be written, or there is too little memory, and what was written before stays.
    """
    result = Predicted(out / RESULTS, out / MASKS)
    category_ids = images.category_ids if isinstance(images, DetectionIndex) else multitask.detector.category_ids
    paths, read = open_images(images)
    folder = Folder(out, paths, multitask.seg_class_names, opacity=opacity)
    colors = box_colors(multitask.class_names, multitask.seg_class_names)
    found: list[Detections] = []
    image_ids: list[int] = []
    for group in sample_groups(paths, read, batch_size, skip_broken=skip_broken, broken=result.broken):
        both = multitask.stream_samples([sample for _, sample in group], batch_size, save_probabilities)
        for (position, sample), one in zip(group, both, strict=True):
            strong = one.detections.above(draw_above)
            over = partial(draw_detections, detections=strong, colors=colors)
            result.drawn.append(folder.write(position, sample.image, one.segmentation, over))
            result.objects += len(strong)
            found.append(one.detections)
            image_ids.append(sample.image_id)
    folder.finish()
    table = DetectionTable.from_detections(found, image_ids, category_ids)
    write_results(out, table, image_ids, left_of(paths, result.broken), category_ids, multitask.class_names)
    return result


def box_colors(class_names: Sequence[str], seg_class_names: Sequence[str]) -> list[Color]:
    """Return the colour of the boxes of each class: that of its pixels, where these are a class of the same name."""
    pixels = {name: mask_color(label) for label, name in enumerate(seg_class_names)}
    return [pixels.get(name, class_color(label)) for label, name in enumerate(class_names)]


def run_prediction(config: PredictConfig) -> Predicted:
    """Do what the settings say.

    Raises:
        UserError: anything about the model, the images or the disk that the user can mend.
    """
    require_writable(config.out)
    multitask = open_multitask_model(config.model, device=config.device, runtime=config.runtime, threads=config.threads)
    images: Sequence[Path] | DetectionIndex
    if config.dataset == "none":
        images = find_images(config.images, config.out)
    else:
        images = open_split(config, multitask.class_names)
    return predict_files(
        multitask,
        images,
        config.out,
        draw_above=config.draw_above,
        opacity=config.opacity,
        batch_size=config.batch_size,
        skip_broken=config.skip_broken,
        save_probabilities=config.save_probabilities,
    )
