"""Everything behind ``predict`` for a segmenter: images in, coloured pictures and index PNGs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from effdense.datasets.class_names import is_background
from effdense.datasets.image_lists import open_image_list
from effdense.datasets.prediction_files import (
    OVERVIEW,
    ImageIndex,
    Overview,
    find_images,
    open_images,
    picture_names,
    refuse_to_overwrite,
    root_of,
    sample_groups,
)
from effdense.drawing import Color, draw_mask, mask_color, with_legend
from effdense.errors import UserError
from effdense.files import replacing, require_writable, write_atomically
from effdense.pictures import write_index_png, write_picture
from effdense.tasks.segmentation.opening import AnySegmenter, open_segmenter
from effdense.tasks.segmentation.predict_config import PredictConfig
from effdense.types import Int64, Segmentation, UInt8

MASKS, PROBABILITIES, CLASSES = "masks", "probabilities", "classes.txt"

_IMAGE_FOLDERS = ("images", "JPEGImages")
"""What a data set keeps its images in, beside masks/ and classes.txt of its own."""

_UNCOLOURED: Color = (255, 255, 255)


@dataclass
class Predicted:
    """What was written, and what was left out.

    Attributes:
        masks: folder of the label maps, index PNGs with VOC's colour map as palette.
        drawn: one picture an image.
        broken: images that could not be read.
    """

    masks: Path
    drawn: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)


def predict_files(
    segmenter: AnySegmenter,
    images: Sequence[Path] | ImageIndex,
    out: Path,
    *,
    opacity: float = 0.5,
    batch_size: int = 8,
    skip_broken: bool = False,
    save_probabilities: bool = False,
) -> Predicted:
    """Label image files; write a picture and an index PNG of each.

    Args:
        segmenter: what to label with.
        images: files; or a data set.
        out: folder for the pictures, overview.jpg with the first twelve, masks/ and classes.txt, which names the
            values of the masks, one a line from 0 on.
        opacity: how strongly classes are coloured, 0..1.
        batch_size: images, or windows, in a forward pass.
        skip_broken: leave out images that cannot be read, and count them.
        save_probabilities: write probabilities/NAME.npz too, with ``probabilities`` (K, H, W) in float16.

    Raises:
        UserError: ``out`` holds a data set, or masks that no earlier prediction left; an image cannot be read, a file
            cannot be written, or there is too little memory, and what was written before stays.
    """
    result = Predicted(out / MASKS)
    paths, read = open_images(images)
    folder = Folder(out, paths, segmenter.class_names, opacity=opacity)
    size = segmenter.images_per_batch(batch_size)
    for group in sample_groups(paths, read, size, skip_broken=skip_broken, broken=result.broken):
        samples = [sample.replace(mask=None) for _, sample in group]  # an index may have masks, of no use here
        found = segmenter.stream_samples(samples, batch_size=batch_size, probabilities=save_probabilities)
        for (position, sample), one in zip(group, found, strict=True):
            result.drawn.append(folder.write(position, sample.image, one))
    folder.finish()
    return result


class Folder:
    """What a prediction leaves of label maps: a picture and an index PNG of each image, overview.jpg, classes.txt."""

    def __init__(self, out: Path, paths: Sequence[Path], class_names: Sequence[str], *, opacity: float) -> None:
        """Choose the names of all files, and write none yet.

        Args:
            out: the folder.
            paths: the images.
            class_names: (K,), in the order of the labels.
            opacity: how strongly classes are coloured, 0..1.

        Raises:
            UserError: an image or a mask that a person has drawn would be overwritten.
        """
        self.out, self.class_names, self.opacity = out, class_names, opacity
        self.files = [Files.named(out, name) for name in picture_names(paths)]
        written = [out / OVERVIEW, *(path for one in self.files for path in (one.picture, one.mask))]
        refuse_to_overwrite(paths, written)
        refuse_to_replace_truth(out, self.files, class_names)
        self._overview, self._shown = Overview(), np.zeros(len(class_names), np.int64)

    def write(
        self, position: int, image: UInt8, found: Segmentation, draw: Callable[[UInt8], UInt8] | None = None
    ) -> Path:
        """Write what was found in the image at a position, and return the file of its picture.

        Args:
            position: in ``paths``.
            image: RGB, (H, W, 3).
            found: the label map, and the probabilities if they are to be written.
            draw: returns the picture with something drawn over the classes.

        Raises:
            UserError: a file cannot be written.
        """
        background = background_of(self.class_names)
        picture = draw_mask(image, found.mask, opacity=self.opacity, background=background, outlined=True)
        if draw is not None:
            picture = draw(picture)
        counts = np.bincount(found.mask.ravel(), minlength=len(self.class_names))
        write_files(self.files[position], picture, found, counts)
        if not self._overview.is_full:
            self._overview.add(picture)
            self._shown += counts
        return self.files[position].picture

    def finish(self) -> None:
        """Write what there is one of: the overview and the names of the classes.

        Raises:
            UserError: a file cannot be written.
        """
        if (sheet := self._overview.sheet()) is not None:
            write_picture(self.out / OVERVIEW, with_legend(sheet, legend_of(self._shown, self.class_names)))
        write_atomically(self.out / CLASSES, _listed(self.class_names))


@dataclass(frozen=True)
class Files:
    """Where the results of one image go."""

    picture: Path
    mask: Path
    probabilities: Path

    @staticmethod
    def named(out: Path, picture_name: str) -> Files:
        """Return the files in the folder ``out`` that go with a picture's name."""
        stem = picture_name.removesuffix(".jpg")
        return Files(out / picture_name, out / MASKS / f"{stem}.png", out / PROBABILITIES / f"{stem}.npz")


def refuse_to_replace_truth(out: Path, files: Sequence[Files], class_names: Sequence[str]) -> None:
    """Stop before a label map takes the place of a mask that a person has drawn.

    Beside each mask of an earlier prediction lies its picture, and beside its classes.txt the overview.

    Raises:
        UserError: names the file or folder.
    """
    remedy = f"and --out {out} would write label maps among them: choose another --out"
    for name in _IMAGE_FOLDERS:
        if (out / name).is_dir():
            raise UserError(f"{out / name} holds the images of a data set, {remedy}")
    for one in files:
        if one.mask.exists() and not one.picture.exists():
            raise UserError(f"{one.mask} is a mask that no earlier prediction left, {remedy}")
    classes = out / CLASSES
    if classes.exists() and not (out / OVERVIEW).exists() and classes.read_bytes() != _listed(class_names).encode():
        raise UserError(f"{classes} names the classes of other masks, {remedy}")


def _listed(class_names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in class_names)


def write_files(files: Files, picture: UInt8, found: Segmentation, counts: Int64) -> None:
    """Write what was found in one image.

    Args:
        files: where to.
        picture: the image with its classes coloured, RGB (H, W, 3).
        found: the label map, and the probabilities if they are to be written.
        counts: (K,), pixels of each class.

    Raises:
        UserError: a file cannot be written.
    """
    write_picture(files.picture, with_legend(picture, legend_of(counts, found.class_names)))
    write_index_png(files.mask, found.mask)
    if found.probabilities is not None:
        with replacing(files.probabilities, durable=False) as temporary, temporary.open("wb") as file:
            np.savez(file, probabilities=found.probabilities.astype(np.float16))


def background_of(class_names: Sequence[str]) -> int | None:
    """Return the class that is not coloured since it is none by name, or None where all are."""
    return next((i for i, name in enumerate(class_names) if is_background(name)), None)


def legend_of(counts: Int64, class_names: Sequence[str]) -> list[tuple[str, Color]]:
    """Return the text and colour of each class that is there, by area, with its share.

    Args:
        counts: (K,), pixels of each class.
        class_names: (K,).
    """
    background, total = background_of(class_names), max(1, int(counts.sum()))
    order = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    return [
        (
            f"{class_names[label]} {_percent(counts[label] / total)}",
            _UNCOLOURED if label == background else mask_color(label),
        )
        for label in order
    ]


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def run_prediction(config: PredictConfig) -> Predicted:
    """Do what the settings say.

    Raises:
        UserError: anything about the model, the images or the disk that the user can mend.
    """
    require_writable(config.out)
    segmenter = open_segmenter(config.model, device=config.device, runtime=config.runtime, threads=config.threads)
    segmenter = segmenter.with_inference(
        window=config.window, stride=config.stride, scene_size=config.scene_size, tta=config.tta
    )
    if config.image_size is not None:
        segmenter = segmenter.with_image_size(config.image_size)
    images: Sequence[Path] | ImageIndex
    if config.dataset == "none":
        images = find_images(config.images, config.out)
    else:
        images = open_image_list(config.dataset, root_of(config, "segmentation"), config.split)
    return predict_files(
        segmenter,
        images,
        config.out,
        opacity=config.opacity,
        batch_size=config.batch_size,
        skip_broken=config.skip_broken,
        save_probabilities=config.save_probabilities,
    )
