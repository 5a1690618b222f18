"""A model of both tasks from a file, be it a checkpoint or an exported one: what evaluation and the tools run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from effdense.runtime.opening import open_model
from effdense.runtime.session import Runtime
from effdense.tasks.detection.opening import AnyDetector
from effdense.tasks.multitask.exported import load_exported_multitask
from effdense.tasks.multitask.predict import load_multitask
from effdense.tasks.segmentation.opening import AnySegmenter
from effdense.transforms import Transform
from effdense.types import Batch, Detections, MultitaskResult, Sample, Segmentation


class AnyMultitask(Protocol):
    """A `Multitask` or an `ExportedMultitask`, each of which describes what is here.

    Attributes:
        class_names: of the objects, in the order of the labels.
        seg_class_names: of the pixels, in the order of the labels.
        image_size: side of the square that images are fitted into, in pixels.
        header: what the file says of itself.
        transform: what brings a Sample to what `run_parts` expects.
        gives_probabilities: label maps can come with probabilities.
    """

    class_names: tuple[str, ...]
    seg_class_names: tuple[str, ...]
    image_size: int
    header: dict[str, Any]
    transform: Transform
    gives_probabilities: bool

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def detector(self) -> AnyDetector:
        """The detector in it."""
        ...

    @property
    def segmenter(self) -> AnySegmenter:
        """The segmenter in it."""
        ...

    def with_selection(self, **changes: Any) -> AnyMultitask:
        """Return one with a changed selection."""
        ...

    def with_image_size(self, image_size: int) -> AnyMultitask:
        """Return one for images of another size."""
        ...

    def images_per_batch(self, batch_size: int) -> int:
        """Return how many images a batch for `run_parts` may hold."""
        ...

    def stream_samples(
        self, samples: Iterable[Sample], batch_size: int = 8, probabilities: bool = False
    ) -> Iterator[MultitaskResult]:
        """Do both for samples that no transform has touched."""
        ...

    def run_parts(
        self,
        batch: Batch,
        boxes: Sequence[int],
        masks: Sequence[int],
        *,
        probabilities: bool = False,
        confidence: bool = False,
    ) -> tuple[list[Detections], Iterator[Segmentation]]:
        """Return objects of some images of a batch and yield the pixels of some, from one pass."""
        ...


def open_multitask_model(
    path: Path, *, device: str = "cpu", runtime: Runtime = "auto", threads: int | None = None
) -> AnyMultitask:
    """Open a checkpoint or an exported file.

    Args:
        path: a .safetensors or an .onnx file.
        device: auto, cpu, cuda or cuda:N; an exported file runs on the CPU.
        runtime: of an exported file: auto, onnxruntime or openvino.
        threads: of an exported file: that it may use.

    Raises:
        UserError: the file holds no such model, or cannot be opened so.
    """
    return open_model(path, load_multitask, load_exported_multitask, device=device, runtime=runtime, threads=threads)
