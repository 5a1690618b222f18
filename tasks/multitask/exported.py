"""Run an exported multitask model: what `effdense.load` returns for the .onnx file of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import ImageInput, predict_inputs
from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION, header_of_part, lacks_part
from effdense.runtime.onnx_header import header_errors_explained, read_onnx_header
from effdense.runtime.opening import refuse_other_device, refuse_other_size
from effdense.runtime.session import CONTENTS, IMAGES, ORIGINAL, Runtime, Session, open_session, require_ends
from effdense.tasks.detection.exported import OUTPUTS as BOX_OUTPUTS
from effdense.tasks.detection.exported import ExportedDetector, detections_of, in_original_pixels
from effdense.tasks.segmentation.exported import OUTPUTS as MASK_OUTPUTS
from effdense.tasks.segmentation.exported import ExportedSegmenter, refuse_probabilities, run_one, segmentation_of
from effdense.transforms import Compose, Transform
from effdense.types import Batch, Detections, MultitaskResult, Sample, Segmentation

OUTPUTS = (*BOX_OUTPUTS, *MASK_OUTPUTS)
"""What an exported file gives: what that of each task gives."""


class ExportedMultitask:
    """A model of both tasks in an exported file, with the surface of a `Multitask` as far as it needs no network.

    Images are fitted by the checkpoint's own transform before the file sees them, so that its pixels are exactly those
    that the checkpoint sees. The file gives labels of pixels without probabilities.

    Attributes:
        class_names: of the objects, in the order of the labels.
        seg_class_names: of the pixels, in the order of the labels.
        image_size: side of the square that images are fitted into, in pixels.
        header: what the file says of itself: how it was trained, how it scored and how it was exported.
        source: where it came from, in words for an error.
        detector: the detector in the same file.
        segmenter: the segmenter in the same file.
        transform: what brings a Sample to what `run` expects.
        device: where it runs.
        gives_probabilities: no.
    """

    device = torch.device("cpu")
    gives_probabilities = False

    def __init__(
        self,
        session: Session,
        header: Mapping[str, Any],
        *,
        source: str,
        detector: ExportedDetector | None = None,
        fits: bool = True,
    ) -> None:
        """Take an opened file.

        Args:
            session: of a file that does both.
            header: of the file.
            source: the file, for the errors.
            detector: in place of that of the file: one with a stricter selection.
            fits: fit images before the file sees them, which else fits them itself.

        Raises:
            KeyError, TypeError, ValueError: the header is damaged.
        """
        self.session = session
        self.header = dict(header)
        self.source = source
        view = f"this part of {source}"
        self.detector = detector or ExportedDetector(session, header_of_part(header, DETECTION), source=view)
        self.segmenter = ExportedSegmenter(session, header_of_part(header, SEGMENTATION), source=view)
        self.class_names, self.seg_class_names = self.detector.class_names, self.segmenter.class_names
        self.image_size = self.detector.image_size
        self.transform: Transform = self.detector.transform if fits else Compose(())
        self._fits = fits

    def to(self, device: torch.device | str) -> ExportedMultitask:
        """Return itself for the CPU.

        Raises:
            UserError: it is another device.
        """
        refuse_other_device(self.source, device)
        return self

    def with_selection(self, **changes: Any) -> ExportedMultitask:
        """Return a model on the same file that is more choosy: a higher score threshold, fewer detections.

        Raises:
            UserError: it would need boxes that the file drops.
        """
        detector = self.detector.with_selection(**changes)
        return ExportedMultitask(self.session, self.header, source=self.source, detector=detector, fits=self._fits)

    def unaided(self) -> ExportedMultitask:
        """Return the same file, which gets images as they are; see `ExportedSegmenter.unaided`."""
        return ExportedMultitask(self.session, self.header, source=self.source, detector=self.detector, fits=False)

    def with_image_size(self, image_size: int) -> ExportedMultitask:
        """Return itself where that is its image size.

        Raises:
            UserError: it is another.
        """
        refuse_other_size(self.source, self.image_size, image_size)
        return self

    def images_per_batch(self, batch_size: int) -> int:
        """Return how many images a batch for `run` may hold: one, as images are run one by one."""
        return 1

    def predict(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 8, probabilities: bool = False
    ) -> Any:
        """Detect objects and label every pixel, in one pass; takes and returns what `Multitask.predict` does.

        Args:
            images: a path, an RGB array (H, W, 3) of uint8, a PIL image, or a list of them.
            batch_size: has no effect: images are run one by one.
            probabilities: refused.

        Raises:
            UserError: an image cannot be read, or is no RGB array of uint8; probabilities; or too little memory.
        """
        return predict_inputs(images, partial(self.predict_samples, probabilities=probabilities), batch_size=batch_size)

    def predict_samples(
        self, samples: Iterable[Sample], batch_size: int = 8, probabilities: bool = False
    ) -> list[MultitaskResult]:
        """Do both for samples that no transform has touched yet; one MultitaskResult each."""
        return list(self.stream_samples(samples, batch_size, probabilities))

    def stream_samples(
        self, samples: Iterable[Sample], batch_size: int = 8, probabilities: bool = False
    ) -> Iterator[MultitaskResult]:
        """Yield what `predict_samples` returns, so that only one label map is held in its original size."""
        for batch in batches(samples, self.transform, self.images_per_batch(batch_size)):
            yield from self.run(batch, probabilities=probabilities)

    def run(self, batch: Batch, *, probabilities: bool = False, confidence: bool = False) -> Iterator[MultitaskResult]:
        """Yield objects and pixels of each image of a batch, from one pass.

        Args:
            batch: that `transform` and `collate` made.
            probabilities: refused.
            confidence: refused.

        Raises:
            UserError: probabilities in whatever form are asked for; or the images do not fit into memory.
        """
        every = range(len(batch.image_ids))
        objects, pixels = self.run_parts(batch, every, every, probabilities=probabilities, confidence=confidence)
        for detections, segmentation in zip(objects, pixels, strict=True):
            yield MultitaskResult(detections, segmentation)

    def run_parts(
        self,
        batch: Batch,
        boxes: Sequence[int],
        masks: Sequence[int],
        *,
        probabilities: bool = False,
        confidence: bool = False,
    ) -> tuple[list[Detections], Iterator[Segmentation]]:
        """Return objects of some images of a batch and the pixels of some, from one pass, as `run` does of all.

        Args:
            batch: as for `run`.
            boxes: positions in the batch of the images whose objects are wanted.
            masks: positions of those whose pixels are wanted.
            probabilities: refused.
            confidence: refused.

        Raises:
            UserError: as `run`.
        """
        refuse_probabilities(self.source, probabilities or confidence)
        contents, originals = batch.resized_sizes_hw, batch.original_sizes_hw
        objects, pixels = {}, {}
        for position in sorted({*boxes, *masks}):
            found = run_one(self.session, batch, position, fitted=self._fits)
            if self._fits:
                one = slice(position, position + 1)
                found = in_original_pixels(found, contents[one], originals[one])
            (objects[position],) = detections_of(found, self.detector.selection, self.class_names)
            pixels[position] = segmentation_of(found, self.seg_class_names)
        return [objects[position] for position in boxes], iter([pixels[position] for position in masks])


def load_exported_multitask(path: Path, *, runtime: Runtime = "auto", threads: int | None = None) -> ExportedMultitask:
    """Open an exported model of both tasks.

    Args:
        path: an .onnx file of ``effdense export``.
        runtime: see `open_session`.
        threads: likewise.

    Raises:
        UserError: the file holds no such model, or it cannot be opened.
    """
    header = read_onnx_header(path)
    if header.get("task") != MULTITASK:
        raise lacks_part(path, header.get("task"), MULTITASK)
    session = open_session(path, runtime=runtime, threads=threads)
    require_ends(session, str(path), OUTPUTS, (IMAGES, CONTENTS, ORIGINAL))
    with header_errors_explained(path):
        return ExportedMultitask(session, header, source=str(path))
