"""A segmenter from a file, be it a checkpoint or an exported one: what evaluation and the tools run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from effdense.runtime.opening import open_model
from effdense.runtime.session import Runtime
from effdense.tasks.segmentation.exported import load_exported_segmenter
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.predict import load_segmenter
from effdense.transforms import Transform
from effdense.types import Batch, Sample, Segmentation


class AnySegmenter(Protocol):
    """A `Segmenter` or an `ExportedSegmenter`, each of which describes what is here.

    Attributes:
        class_names: in the order of the labels.
        image_size: side of the square that whole images are fitted into, in pixels.
        inference: as a whole or through a window, once or in several views.
        header: what the file says of itself.
        transform: what brings a Sample to what `stream` expects.
        gives_probabilities: label maps can come with probabilities.
    """

    class_names: tuple[str, ...]
    image_size: int
    inference: Inference
    header: dict[str, Any]
    transform: Transform
    gives_probabilities: bool

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def with_image_size(self, image_size: int) -> AnySegmenter:
        """Return one for images of another size."""
        ...

    def with_inference(self, **changes: Any) -> AnySegmenter:
        """Return one that looks at images in another way."""
        ...

    def images_per_batch(self, batch_size: int) -> int:
        """Return how many images a batch for `stream` may hold."""
        ...

    def stream_samples(
        self, samples: Iterable[Sample], batch_size: int = 8, probabilities: bool = False
    ) -> Iterator[Segmentation]:
        """Label every pixel of samples that no transform has touched."""
        ...

    def stream(
        self, batch: Batch, *, batch_size: int = 8, probabilities: bool = False, confidence: bool = False
    ) -> Iterator[Segmentation]:
        """Label every pixel of a batch that `transform` and `collate` made."""
        ...


def open_segmenter(
    path: Path, *, device: str = "cpu", runtime: Runtime = "auto", threads: int | None = None
) -> AnySegmenter:
    """Open a checkpoint or an exported file; of a multitask model, its segmenter.

    Args:
        path: a .safetensors or an .onnx file.
        device: auto, cpu, cuda or cuda:N; an exported file runs on the CPU.
        runtime: of an exported file: auto, onnxruntime or openvino.
        threads: of an exported file: that it may use.

    Raises:
        UserError: the file holds no segmenter, or cannot be opened so.
    """
    return open_model(path, load_segmenter, load_exported_segmenter, device=device, runtime=runtime, threads=threads)
