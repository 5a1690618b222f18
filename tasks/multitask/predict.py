"""Run a multitask model on images: both heads from one forward pass, for prediction, evaluation and the tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effdense.backbones.weights import load_complete
from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import ImageInput, predict_inputs
from effdense.errors import UserError
from effdense.inference_form import InferenceForm
from effdense.model_header import read_header
from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION, STAGES, header_of_part, lacks_part
from effdense.tasks.detection.postprocess import Outputs
from effdense.tasks.detection.predict import Detector, Selection
from effdense.tasks.multitask.model import MultitaskModel, model_from_spec
from effdense.tasks.multitask.specs import check_size, least_size, spec_from_dict
from effdense.tasks.segmentation.memory import PROBE, ForwardMemory, forward_in_words, memory_errors_explained
from effdense.tasks.segmentation.predict import Segmenter
from effdense.training.checkpoint import read_tensors, save_model
from effdense.training.device import choose_device
from effdense.types import Batch, Detections, MultitaskResult, Sample, Segmentation

TASK = MULTITASK


class Multitask:
    """A trained multitask model with all it needs to run: what `effdense.load` returns for one.

    Attributes:
        class_names: of the objects, in the order of the labels.
        seg_class_names: of the pixels, in the order of the labels.
        image_size: side of the square that images are fitted into, in pixels.
        header: what the file says of itself: how it was trained and how it scored.
        transform: what brings a Sample to what `run` expects.
        gives_probabilities: yes; label maps come with them where they are asked for.
    """

    gives_probabilities = True

    def __init__(
        self,
        model: MultitaskModel,
        *,
        category_ids: Sequence[int] | None = None,
        selection: Selection | None = None,
        image_size: int | None = None,
        header: dict[str, Any] | None = None,
        source: str = "this model",
    ) -> None:
        """Take a network, which knows its classes and the size of its images.

        Args:
            model: the network.
            category_ids: the data set's own ids of the objects, for writing COCO results.
            selection: which boxes become detections.
            image_size: side of the square that images are fitted into, in pixels, if not the network's own.
            header: what the file says of itself.
            source: where it came from, in words for an error.

        Raises:
            UserError: the two heads cannot share a pass over images of this size.
        """
        self._form = InferenceForm(model.eval())
        self.class_names = model.class_names
        self.seg_class_names = model.seg_class_names
        self.image_size = model.image_size if image_size is None else image_size
        check_size((self.image_size, self.image_size), model.spec.segmentation.arch)
        self.header = header or {}
        self.source = source
        view = f"this part of {source}"
        self._detector = Detector(
            model.efficientdet,
            self.class_names,
            image_size=self.image_size,
            category_ids=category_ids,
            selection=selection,
            source=view,
        )
        self._segmenter = Segmenter(
            model.segmentation_model, self.seg_class_names, image_size=self.image_size, source=view
        )
        self.transform = self._detector.transform
        self._memory = ForwardMemory(model, probe=max(PROBE, least_size(model.spec.segmentation.arch)))

    @property
    def detector(self) -> Detector:
        """The detector on the same network: it predicts, evaluates and saves alone."""
        self._detector.header = header_of_part(self.header, DETECTION)
        return self._detector

    @property
    def segmenter(self) -> Segmenter:
        """The segmenter on the same network: it predicts, evaluates and saves alone."""
        self._segmenter.header = header_of_part(self.header, SEGMENTATION)
        return self._segmenter

    @property
    def model(self) -> MultitaskModel:
        """The network, in evaluation mode; `with_model` takes another."""
        return self._form.model

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> Multitask:
        """Move the network, hence its views, and return the multitask model.

        Raises:
            UserError: there is no such device.
        """
        self.model.to(choose_device(str(device)))
        self._detector.to(self.device)
        self._segmenter.to(self.device)
        self._memory.forget()
        return self

    def with_selection(self, **changes: Any) -> Multitask:
        """Return a multitask model on the same network with a changed `Selection`, such as ``nms="soft"``."""
        return self._with(selection=replace(self._detector.selection, **changes))

    def refresh(self) -> None:
        """Take in a change of the network that cannot be seen, such as one through ``tensor.data``: `InferenceForm`."""
        self._form.refresh()
        self._detector.refresh()
        self._segmenter.refresh()

    def with_model(self, model: MultitaskModel) -> Multitask:
        """Return one that runs another network of the same kind, such as the moving average of this one."""
        return self._with(model=model)

    def with_image_size(self, image_size: int) -> Multitask:
        """Return one on the same network that fits images into a square of another side, in pixels.

        Raises:
            UserError: the two heads cannot share a pass over images of this size.
        """
        return self._with(image_size=image_size)

    def _with(
        self,
        *,
        model: MultitaskModel | None = None,
        selection: Selection | None = None,
        image_size: int | None = None,
    ) -> Multitask:
        other = Multitask(
            model or self.model,
            category_ids=self._detector.category_ids,
            selection=selection or self._detector.selection,
            image_size=image_size or self.image_size,
            header=self.header,
            source=self.source,
        )
        if other.model is self.model:
            other._form = self._form
            other._detector._form, other._segmenter._form = self._detector._form, self._segmenter._form
        return other

    def images_per_batch(self, batch_size: int) -> int:
        """Return how many images a batch for `run` may hold: all of them, as `transform` gives them one size."""
        return batch_size

    def predict(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 8, probabilities: bool = False
    ) -> Any:
        """Detect objects and label every pixel, in one forward pass.

        Args:
            images: a path, an RGB array (H, W, 3) of uint8, a PIL image, or a list of them. A file with an EXIF
                orientation is turned upright.
            batch_size: images in a forward pass.
            probabilities: return those of the pixels' classes too: a float for each class of each pixel.

        Returns:
            A MultitaskResult in pixels of the original image; a list of them for a list.

        Raises:
            UserError: an image cannot be read, or is no RGB array of uint8; or it does not fit into memory.
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
        """Yield objects and pixels of each image of a batch that `transform` and `collate` made, from one pass.

        Args:
            batch: of any size.
            probabilities: yield those of the pixels' classes too.
            confidence: yield the probability of each pixel's class.

        Raises:
            UserError: something does not fit into memory, or the network does not take images of this size.
        """
        every = range(len(batch.image_ids))
        objects, pixels = self.run_parts(batch, every, every, probabilities=probabilities, confidence=confidence)
        for detections, segmentation in zip(objects, pixels, strict=True):
            yield MultitaskResult(detections, segmentation)

    @torch.inference_mode()
    def run_parts(
        self,
        batch: Batch,
        boxes: Sequence[int],
        masks: Sequence[int],
        *,
        probabilities: bool = False,
        confidence: bool = False,
    ) -> tuple[list[Detections], Iterator[Segmentation]]:
        """Return objects of some images of a batch and yield the pixels of some, from one pass, as `run` does of all.

        Args:
            batch: as for `run`.
            boxes: positions in the batch of the images whose objects are wanted.
            masks: positions of those whose pixels are wanted.
            probabilities: as for `run`.
            confidence: as for `run`.

        Raises:
            UserError: as `run`.
        """
        batch = batch.to(self.device)
        class_logits, box_codes, mask_logits = self._forward(batch.images)
        objects: list[Detections] = []
        pixels: Iterator[Segmentation] = iter(())
        if boxes:
            objects = self._detector.from_outputs(*_chosen(boxes, batch, class_logits, box_codes))
        if masks:
            pixels = self._segmenter.from_logits(
                *_chosen(masks, batch, mask_logits), probabilities=probabilities, confidence=confidence
            )
        return objects, pixels

    def _forward(self, images: Tensor) -> tuple[Outputs, Outputs, Tensor]:
        """Return class logits, box codes and mask logits of images (B, 3, H, W)."""
        shape = (images.shape[0], 3, images.shape[2], images.shape[3])
        in_words = forward_in_words(shape, "image", "--image-size")
        self._memory.require(shape, self.device, *in_words)
        with memory_errors_explained(*in_words):
            outputs: tuple[Outputs, Outputs, Tensor] = self._form.run(images)
        return outputs

    def save(self, path: str | Path) -> None:
        """Write backbone and both heads to one safetensors file, each tensor once, that `effdense.load` reads.

        Whatever reads the file of a detector or of a segmenter reads its part of this one.
        """
        save_model(path, self.model, self.file_header())

    def file_header(self) -> dict[str, Any]:
        """Return what the file of this model says of itself: the header that `save` writes."""
        model = self.model
        detection, segmentation = self._detector.model, self._segmenter.model
        return {
            **self.header,
            "task": TASK,
            "preprocessing": {
                "mean": list(model.backbone.mean),
                "std": list(model.backbone.std),
                "image_size": self.image_size,
            },
            DETECTION: {
                "model": asdict(model.spec.detection),
                "class_names": list(self.class_names),
                "category_ids": list(self._detector.category_ids),
                "selection": asdict(self._detector.selection),
                STAGES: len(detection.backbone.blocks),
            },
            SEGMENTATION: {
                "model": asdict(model.spec.segmentation),
                "class_names": list(self.seg_class_names),
                "inference": asdict(self._segmenter.inference),
                STAGES: len(segmentation.backbone.blocks),
            },
        }


def _chosen(positions: Sequence[int], batch: Batch, *outputs: Outputs) -> tuple[Any, ...]:
    """Return a batch and its outputs, (B, ...) or level by level, at some positions; all of it without a copy."""
    rows = list(positions)
    if rows == list(range(len(batch.image_ids))):
        return batch, *outputs
    chosen = (one[rows] if isinstance(one, Tensor) else [level[rows] for level in one] for one in outputs)
    return batch.rows(positions), *chosen


def load_multitask(path: Path) -> Multitask:
    """Read what `Multitask.save` or a training run wrote; needs nothing else and downloads nothing.

    Raises:
        UserError: the file is no multitask model, or its tensors do not fit its header.
    """
    header = read_header(path)
    if header.get("task") != TASK:
        raise lacks_part(path, header.get("task"), TASK)
    try:
        multitask = _from_header(header, str(path))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"the header of {path} is damaged or of another version of effdense ({reason}); train or save it again"
        ) from error
    load_complete(multitask.model, read_tensors(path), source=str(path))
    multitask.model.to(memory_format=torch.channels_last)
    return multitask


def _from_header(header: dict[str, Any], source: str) -> Multitask:
    """Return a multitask model as the header describes it, with random weights."""
    preprocessing, detection, segmentation = header["preprocessing"], header[DETECTION], header[SEGMENTATION]
    class_names, seg_class_names = detection["class_names"], segmentation["class_names"]
    model = model_from_spec(
        spec_from_dict(detection["model"], segmentation["model"]),
        len(class_names),
        len(seg_class_names),
        class_names=class_names,
        seg_class_names=seg_class_names,
        image_size=int(preprocessing["image_size"]),
    )
    model.backbone.set_statistics(preprocessing["mean"], preprocessing["std"])
    return Multitask(
        model,
        category_ids=detection["category_ids"],
        selection=Selection(**detection["selection"]),
        header=header,
        source=source,
    )
