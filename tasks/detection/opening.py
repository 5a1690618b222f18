"""A detector from a file, be it a checkpoint or an exported one: what evaluation and the tools run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from effdense.runtime.opening import open_model
from effdense.runtime.session import Runtime
from effdense.tasks.detection.exported import load_exported_detector
from effdense.tasks.detection.predict import Selection, load_detector
from effdense.transforms import Transform
from effdense.types import Batch, Detections, Sample


class Detecting(Protocol):
    """What finds objects in batches, as far as scoring it goes.

    Attributes:
        class_names: in the order of the labels.
        selection: which boxes become detections.
        transform: what brings a Sample to what `detect` expects.
    """

    class_names: tuple[str, ...]
    selection: Selection
    transform: Transform

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def detect(self, batch: Batch) -> list[Detections]:
        """Detect objects in a batch that `transform` and `collate` made."""
        ...


class AnyDetector(Detecting, Protocol):
    """A `Detector` or an `ExportedDetector`, each of which describes what is here.

    Attributes:
        category_ids: the data set's own ids.
        image_size: side of the square that images are fitted into, in pixels.
        header: what the file says of itself.
    """

    category_ids: tuple[int, ...]
    image_size: int
    header: dict[str, Any]

    def with_selection(self, **changes: Any) -> AnyDetector:
        """Return one with a changed selection."""
        ...

    def with_image_size(self, image_size: int) -> AnyDetector:
        """Return one for images of another size."""
        ...

    def predict_samples(self, samples: Iterable[Sample], batch_size: int = 8) -> list[Detections]:
        """Detect objects in samples that no transform has touched."""
        ...


def open_detector(
    path: Path, *, device: str = "cpu", runtime: Runtime = "auto", threads: int | None = None
) -> AnyDetector:
    """Open a checkpoint or an exported file; of a multitask model, its detector.

    Args:
        path: a .safetensors or an .onnx file.
        device: auto, cpu, cuda or cuda:N; an exported file runs on the CPU.
        runtime: of an exported file: auto, onnxruntime or openvino.
        threads: of an exported file: that it may use.

    Raises:
        UserError: the file holds no detector, or cannot be opened so.
    """
    return open_model(path, load_detector, load_exported_detector, device=device, runtime=runtime, threads=threads)
