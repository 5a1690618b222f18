"""Run an exported detector: what `effdense.load` returns for a detector's .onnx file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import ImageInput, predict_inputs
from effdense.errors import UserError
from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION, described, header_of_part, lacks_part
from effdense.ops.boxes import clip, scale
from effdense.runtime.onnx_header import header_errors_explained, read_onnx_header
from effdense.runtime.opening import fitting_transform, pixels_of, refuse_other_device, refuse_other_size
from effdense.runtime.session import CONTENTS, IMAGES, Array, Runtime, Session, open_session, require_ends
from effdense.tasks.detection.predict import Selection
from effdense.transforms import Compose, Transform
from effdense.types import Batch, Detections, Sample

OUTPUTS = ("boxes", "scores", "labels", "counts")
"""What an exported file gives: float32 (B, D, 4), xyxy in pixels of the images it was given; float32 (B, D); int64
(B, D), 0-based, -1 past an image's count; int64 (B,)."""


class ExportedDetector:
    """A detector in an exported file, with the surface of a `Detector` as far as it does not need the network.

    Images are fitted into the square by the checkpoint's own transform before the file sees them, so that its pixels
    are exactly those that the checkpoint sees.

    Attributes:
        class_names: in the order of the labels.
        category_ids: the data set's own ids, for writing COCO results.
        image_size: side of the square that images are fitted into, in pixels.
        selection: which boxes become detections.
        header: what the file says of itself: how it was trained, how it scored and how it was exported.
        source: where it came from, in words for an error.
        session: what runs the file.
        transform: what brings a Sample to what `detect` expects.
    """

    device = torch.device("cpu")
    """Where it runs."""

    def __init__(
        self,
        session: Session,
        header: Mapping[str, Any],
        *,
        source: str,
        selection: Selection | None = None,
        fits: bool = True,
    ) -> None:
        """Take an opened file.

        Args:
            session: of a file that detects.
            header: of a detector, or of a multitask file's detection part.
            source: the file, for the errors.
            selection: stricter than that of the file.
            fits: fit images before the file sees them, which else fits them itself.

        Raises:
            KeyError, TypeError, ValueError: the header is damaged.
        """
        self.session = session
        self.header = dict(header)
        self.source = source
        self.class_names = tuple(header["class_names"])
        self.category_ids = tuple(int(number) for number in header["category_ids"])
        self.image_size = int(header["preprocessing"]["image_size"])
        self.selection = selection or Selection(**header["selection"])
        self.transform: Transform = fitting_transform(header) if fits else Compose(())
        self._fits = fits

    @property
    def detector(self) -> ExportedDetector:
        """Itself: what `effdense.load` returns has a detector, be it a detector or a multitask model."""
        return self

    @property
    def segmenter(self) -> NoReturn:
        """Of a multitask model only.

        Raises:
            UserError: always; it names the file.
        """
        raise lacks_part(self.source, DETECTION, SEGMENTATION)

    def to(self, device: torch.device | str) -> ExportedDetector:
        """Return itself for the CPU.

        Raises:
            UserError: it is another device.
        """
        refuse_other_device(self.source, device)
        return self

    def with_selection(self, **changes: Any) -> ExportedDetector:
        """Return a detector on the same file that is more choosy: a higher score threshold, fewer detections.

        Raises:
            UserError: it would need boxes that the file drops.
        """
        selection = stricter(self.selection, Selection(**self.header["selection"]), self.source, changes)
        return ExportedDetector(self.session, self.header, source=self.source, selection=selection, fits=self._fits)

    def unaided(self) -> ExportedDetector:
        """Return the same file, which gets images as they are; those of a batch have one size."""
        return ExportedDetector(self.session, self.header, source=self.source, selection=self.selection, fits=False)

    def with_image_size(self, image_size: int) -> ExportedDetector:
        """Return itself where that is its image size.

        Raises:
            UserError: it is another.
        """
        refuse_other_size(self.source, self.image_size, image_size)
        return self

    def predict(self, images: ImageInput | Sequence[ImageInput], batch_size: int = 8) -> Any:
        """Detect objects; takes and returns what `Detector.predict` does.

        Args:
            images: a path, an RGB array (H, W, 3) of uint8, a PIL image, or a list of them.
            batch_size: images in one run of the file.

        Raises:
            UserError: an image cannot be read, or is no RGB array of uint8; or too little memory.
        """
        return predict_inputs(images, self.predict_samples, batch_size=batch_size)

    def predict_samples(self, samples: Iterable[Sample], batch_size: int = 8) -> list[Detections]:
        """Detect objects in samples that no transform has touched yet; one Detections each."""
        most = batch_size if self._fits else 1
        return [found for batch in batches(samples, self.transform, most) for found in self.detect(batch)]

    @torch.inference_mode()
    def detect(self, batch: Batch) -> list[Detections]:
        """Detect objects in a batch that `transform` and `collate` made.

        Returns:
            One Detections an image, in pixels of the original image.

        Raises:
            UserError: the images do not fit into memory.
        """
        contents, originals = batch.resized_sizes_hw, batch.original_sizes_hw
        found = self.session.run(pixels_of(batch.images), contents.numpy() if self._fits else None)
        if self._fits:
            found = in_original_pixels(found, contents, originals)
        return detections_of(found, self.selection, self.class_names)


def in_original_pixels(found: Mapping[str, Array], contents_hw: Tensor, originals_hw: Tensor) -> dict[str, Array]:
    """Return what a file found in fitted images with its boxes in pixels of the original ones.

    Args:
        found: ``OUTPUTS``.
        contents_hw: (B, 2), of the images in what the file was given.
        originals_hw: (B, 2), before they were fitted.
    """
    boxes = clip(scale(torch.from_numpy(found["boxes"]), contents_hw, originals_hw), originals_hw)
    return {**found, "boxes": boxes.numpy()}


def detections_of(found: Mapping[str, Array], selection: Selection, class_names: tuple[str, ...]) -> list[Detections]:
    """Return what a file found in each image, as far as a selection lets it pass.

    Args:
        found: ``OUTPUTS``, the boxes in pixels of the original images; best first.
        selection: no less strict than that of the file.
        class_names: (K,).
    """
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    strong = np.sum(scores > selection.score_threshold, axis=1)
    counts = np.minimum(np.minimum(found["counts"], strong), selection.max_detections)
    return [Detections(boxes[i, :n], scores[i, :n], labels[i, :n], class_names) for i, n in enumerate(counts.tolist())]


def stricter(selection: Selection, of_file: Selection, source: str, changes: Mapping[str, Any]) -> Selection:
    """Return a changed selection of an exported file, if it can be applied to what the file gives.

    Detections come best first, and a box is suppressed by better ones alone, so those above a higher threshold, or
    the first few, are what the file would have given with that selection.

    Args:
        selection: so far.
        of_file: what the file was exported with.
        source: the file, for the errors.
        changes: as for ``dataclasses.replace``.

    Raises:
        UserError: it would need boxes that the file drops.
    """
    changed = replace(selection, **dict(changes))
    kept = {
        "score_threshold": changed.score_threshold >= of_file.score_threshold,
        "nms": changed.nms == of_file.nms,
        "nms_iou": changed.nms_iou == of_file.nms_iou,
        "max_detections": changed.max_detections <= of_file.max_detections,
    }
    for name, possible in kept.items():
        if not possible:
            raise UserError(
                f"{name} {getattr(changed, name)} cannot be had of {source}, which was exported with "
                f"{getattr(of_file, name)} and has dropped the other boxes: export the checkpoint again with it"
            )
    return changed


def load_exported_detector(path: Path, *, runtime: Runtime = "auto", threads: int | None = None) -> ExportedDetector:
    """Open an exported detector; of a multitask file, its detector.

    Args:
        path: an .onnx file of ``effdense export``.
        runtime: see `open_session`.
        threads: likewise.

    Raises:
        UserError: the file holds no detector, or it cannot be opened.
    """
    whole = read_onnx_header(path)
    if whole.get("task") not in (DETECTION, MULTITASK):
        raise lacks_part(path, whole.get("task"), DETECTION)
    session = open_session(path, runtime=runtime, threads=threads)
    require_ends(session, str(path), OUTPUTS, (IMAGES, CONTENTS))
    with header_errors_explained(path):
        header = header_of_part(whole, DETECTION) if whole["task"] == MULTITASK else whole
        return ExportedDetector(session, header, source=described(path, whole))
