"""Run an exported segmenter: what `effdense.load` returns for a segmenter's .onnx file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import ImageInput, predict_inputs
from effdense.errors import UserError
from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION, described, header_of_part, lacks_part
from effdense.runtime.onnx_header import header_errors_explained, read_onnx_header
from effdense.runtime.opening import fitting_transform, pixels_of, refuse_other_device, refuse_other_size
from effdense.runtime.session import IMAGES, ORIGINAL, Array, Runtime, Session, open_session, require_ends
from effdense.tasks.segmentation.inference import Inference
from effdense.transforms import Compose, Transform
from effdense.types import Batch, Sample, Segmentation

OUTPUTS = ("label_map",)
"""What an exported file gives: uint8 (B, H, W), in pixels of the images it was given."""


class ExportedSegmenter:
    """A segmenter in an exported file, with the surface of a `Segmenter` as far as it does not need the network.

    Images are fitted by the checkpoint's own transform before the file sees them, so that its pixels are exactly those
    that the checkpoint sees. The file gives labels without probabilities.

    Attributes:
        class_names: in the order of the labels.
        image_size: side of the square that whole images are fitted into, in pixels.
        inference: as a whole, once.
        header: what the file says of itself: how it was trained, how it scored and how it was exported.
        source: where it came from, in words for an error.
        session: what runs the file.
        transform: what brings a Sample to what `stream` expects.
        device: where it runs.
        gives_probabilities: no.
    """

    device = torch.device("cpu")
    gives_probabilities = False

    def __init__(self, session: Session, header: Mapping[str, Any], *, source: str, fits: bool = True) -> None:
        """Take an opened file.

        Args:
            session: of a file that labels pixels.
            header: of a segmenter, or of a multitask file's segmentation part.
            source: the file, for the errors.
            fits: fit images before the file sees them, which else fits them itself.

        Raises:
            KeyError, TypeError, ValueError: the header is damaged.
        """
        self.session = session
        self.header = dict(header)
        self.source = source
        self.class_names = tuple(header["class_names"])
        self.image_size = int(header["preprocessing"]["image_size"])
        self.inference = Inference(**header["inference"])
        self.transform: Transform = fitting_transform(header) if fits else Compose(())
        self._fits = fits

    @property
    def segmenter(self) -> ExportedSegmenter:
        """Itself: what `effdense.load` returns has a segmenter, be it a segmenter or a multitask model."""
        return self

    @property
    def detector(self) -> NoReturn:
        """Of a multitask model only.

        Raises:
            UserError: always; it names the file.
        """
        raise lacks_part(self.source, SEGMENTATION, DETECTION)

    def to(self, device: torch.device | str) -> ExportedSegmenter:
        """Return itself for the CPU.

        Raises:
            UserError: it is another device.
        """
        refuse_other_device(self.source, device)
        return self

    def unaided(self) -> ExportedSegmenter:
        """Return the same file, which gets images as they are.

        On OpenVINO its label maps come from `effdense.runtime.openvino_labels` as they do otherwise, which takes the
        place of just those operations of a file that it knows.
        """
        return ExportedSegmenter(self.session, self.header, source=self.source, fits=False)

    def with_image_size(self, image_size: int) -> ExportedSegmenter:
        """Return itself where that is its image size.

        Raises:
            UserError: it is another.
        """
        refuse_other_size(self.source, self.image_size, image_size)
        return self

    def with_inference(self, **changes: Any) -> ExportedSegmenter:
        """Return itself where nothing changes, as `Segmenter.with_inference` does: None leaves a value as it is.

        Raises:
            UserError: something changes.
        """
        if self.inference.changed(**changes) != self.inference:
            named = " and ".join(name for name, value in changes.items() if value is not None)
            raise UserError(f"{self.source} looks at an image as a whole, once: for {named} use the checkpoint")
        return self

    def images_per_batch(self, batch_size: int) -> int:
        """Return how many images a batch for `stream` may hold: one, as images are run one by one."""
        return 1

    def predict(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 8, probabilities: bool = False
    ) -> Any:
        """Label every pixel; takes and returns what `Segmenter.predict` does.

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
    ) -> list[Segmentation]:
        """Label every pixel of samples that no transform has touched yet; one Segmentation each."""
        return list(self.stream_samples(samples, batch_size, probabilities))

    def stream_samples(
        self, samples: Iterable[Sample], batch_size: int = 8, probabilities: bool = False
    ) -> Iterator[Segmentation]:
        """Yield what `predict_samples` returns, so that only one is held in its original size."""
        for batch in batches(samples, self.transform, self.images_per_batch(batch_size)):
            yield from self.stream(batch, batch_size=batch_size, probabilities=probabilities)

    def segment(self, batch: Batch, *, batch_size: int = 8, probabilities: bool = False) -> list[Segmentation]:
        """Label every pixel of a batch; see `stream`."""
        return list(self.stream(batch, batch_size=batch_size, probabilities=probabilities))

    def stream(
        self, batch: Batch, *, batch_size: int = 8, probabilities: bool = False, confidence: bool = False
    ) -> Iterator[Segmentation]:
        """Yield one Segmentation an image, one after the other.

        Args:
            batch: that `transform` and `collate` made.
            batch_size: has no effect.
            probabilities: refused.
            confidence: refused.

        Raises:
            UserError: probabilities in whatever form are asked for; or the images do not fit into memory.
        """
        refuse_probabilities(self.source, probabilities or confidence)
        for position in range(len(batch.image_ids)):
            found = run_one(self.session, batch, position, fitted=self._fits)
            yield segmentation_of(found, self.class_names)


def run_one(session: Session, batch: Batch, position: int, *, fitted: bool) -> dict[str, Array]:
    """Return what a file that labels pixels says of one image of a batch.

    Args:
        session: of the file.
        batch: of images in whatever size.
        position: of the image.
        fitted: the batch was made by `fitting_transform`, and its images need no fitting by the file.
    """
    height, width = batch.resized_sizes_hw[position].tolist()
    pixels = pixels_of(batch.images[position : position + 1, :, :height, :width])
    return session.run(pixels, original_hw=batch.original_sizes_hw[position].numpy() if fitted else None)


def segmentation_of(found: Mapping[str, Array], class_names: tuple[str, ...]) -> Segmentation:
    """Return what a file says of its one image.

    Args:
        found: ``OUTPUTS``.
        class_names: (K,).
    """
    (mask,) = found["label_map"]
    return Segmentation(mask, class_names=class_names)


def refuse_probabilities(source: str, wanted: bool) -> None:
    """Refuse to yield what an exported file does not give.

    Raises:
        UserError: probabilities are wanted.
    """
    if wanted:
        raise UserError(
            f"{source} is an exported model, which gives labels alone; for probabilities use the checkpoint"
        )


def load_exported_segmenter(path: Path, *, runtime: Runtime = "auto", threads: int | None = None) -> ExportedSegmenter:
    """Open an exported segmenter; of a multitask file, its segmenter.

    Args:
        path: an .onnx file of ``effdense export``.
        runtime: see `open_session`.
        threads: likewise.

    Raises:
        UserError: the file holds no segmenter, or it cannot be opened.
    """
    whole = read_onnx_header(path)
    if whole.get("task") not in (SEGMENTATION, MULTITASK):
        raise lacks_part(path, whole.get("task"), SEGMENTATION)
    session = open_session(path, runtime=runtime, threads=threads)
    require_ends(session, str(path), OUTPUTS, (IMAGES, ORIGINAL))
    with header_errors_explained(path):
        header = header_of_part(whole, SEGMENTATION) if whole["task"] == MULTITASK else whole
        return ExportedSegmenter(session, header, source=described(path, whole))
