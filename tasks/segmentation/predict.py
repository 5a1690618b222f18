"""Run a segmenter on images: the one path that prediction, evaluation and the tools share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from effdense.backbones.weights import load_complete
from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import ImageInput, predict_inputs
from effdense.errors import UserError
from effdense.inference_form import InferenceForm
from effdense.model_header import read_header
from effdense.model_parts import DETECTION, SEGMENTATION, described, lacks_part, part_of
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.label_maps import LogitRows, WholeRows, segmentation_of
from effdense.tasks.segmentation.memory import ForwardMemory, forward_in_words, memory_errors_explained
from effdense.tasks.segmentation.model import SegmentationModel, model_from_spec
from effdense.tasks.segmentation.specs import spec_from_dict
from effdense.tasks.segmentation.windows import WindowRows
from effdense.training.checkpoint import read_tensors, save_model
from effdense.training.device import choose_device
from effdense.transforms import Compose, Resize, Transform, eval_transform, mean_fill
from effdense.types import Batch, Sample, Segmentation, UInt8

TASK = SEGMENTATION


class Segmenter:
    """A trained segmentation model with all it needs to run: what `effdense.load` returns for one.

    Attributes:
        class_names: in the order of the labels.
        image_size: side of the square that whole images are fitted into, in pixels.
        inference: as a whole or through a window, once or in several views.
        header: what the file says of itself: how it was trained and how it scored.
        source: where it came from, in words for an error.
        transform: what brings a Sample to what `segment` expects.
        gives_probabilities: yes; label maps come with them where they are asked for.
    """

    gives_probabilities = True

    def __init__(
        self,
        model: SegmentationModel,
        class_names: Sequence[str],
        *,
        image_size: int,
        inference: Inference | None = None,
        header: dict[str, Any] | None = None,
        source: str = "this model",
    ) -> None:
        self._form = InferenceForm(model.eval())
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.inference = inference or Inference()
        self.header = header or {}
        self.source = source
        self._fill = mean_fill(model.backbone.mean)
        self._memory = ForwardMemory(model)
        self.transform: Transform = Compose(()) if self.inference.resizes_itself else self._fitting(1.0)

    @property
    def model(self) -> SegmentationModel:
        """The network, in evaluation mode; `with_model` takes another."""
        return self._form.model

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def segmenter(self) -> Segmenter:
        """Itself: what `effdense.load` returns has a segmenter, be it a segmenter or a multitask model."""
        return self

    @property
    def detector(self) -> NoReturn:
        """Of a multitask model only.

        Raises:
            UserError: always; it names the file, and how it gets a detection head.
        """
        raise lacks_part(self.source, TASK, DETECTION)

    def to(self, device: torch.device | str) -> Segmenter:
        """Move the network and return the segmenter.

        Raises:
            UserError: there is no such device.
        """
        self.model.to(choose_device(str(device)))
        self._memory.forget()
        return self

    def refresh(self) -> None:
        """Take in a change of the network that cannot be seen, such as one through ``tensor.data``: `InferenceForm`."""
        self._form.refresh()

    def with_model(self, model: SegmentationModel) -> Segmenter:
        """Return a segmenter that runs another network of the same kind, such as the moving average of this one."""
        return self._with(model=model)

    def with_image_size(self, image_size: int) -> Segmenter:
        """Return a segmenter on the same network that fits whole images into a square of another side, in pixels.

        Raises:
            UserError: it looks through a window, and what counts is the scene's size.
        """
        if self.inference.window:
            raise UserError(f"image_size {image_size} has no effect on a window of {self.inference.window} pixels")
        return self._with(image_size=image_size)

    def with_inference(self, **changes: Any) -> Segmenter:
        """Return a segmenter on the same network with a changed `Inference`, such as ``window=512, stride=384``.

        Raises:
            UserError: whatever `Inference.changed` refuses.
        """
        return self._with(inference=self.inference.changed(**changes))

    def _with(
        self,
        *,
        model: SegmentationModel | None = None,
        image_size: int | None = None,
        inference: Inference | None = None,
    ) -> Segmenter:
        other = Segmenter(
            model or self.model,
            self.class_names,
            image_size=image_size or self.image_size,
            inference=inference or self.inference,
            header=self.header,
            source=self.source,
        )
        if other.model is self.model:
            other._form = self._form
        return other

    def images_per_batch(self, batch_size: int) -> int:
        """Return how many images a batch for `segment` may hold: one, where images come in sizes of their own."""
        return 1 if self.inference.resizes_itself else batch_size

    def predict(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 8, probabilities: bool = False
    ) -> Any:
        """Label every pixel.

        Args:
            images: a path, an RGB array (H, W, 3) of uint8, a PIL image, or a list of them. A file with an EXIF
                orientation is turned upright.
            batch_size: images, or windows, in a forward pass.
            probabilities: return them too: K floats a pixel.

        Returns:
            A Segmentation in pixels of the original image; a list of them for a list.

        Raises:
            UserError: an image cannot be read, or is no RGB array of uint8; or it does not fit into memory.
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
        """Label every pixel of a batch that `transform` and `collate` made.

        Args:
            batch: of no more than `images_per_batch` images.
            batch_size: most windows in a forward pass.
            probabilities: return them too.

        Returns:
            One Segmentation an image, in pixels of the original image.

        Raises:
            UserError: a forward pass does not fit into memory.
        """
        return list(self.stream(batch, batch_size=batch_size, probabilities=probabilities))

    @torch.inference_mode()
    def stream(
        self, batch: Batch, *, batch_size: int = 8, probabilities: bool = False, confidence: bool = False
    ) -> Iterator[Segmentation]:
        """Yield what `segment` returns, one image after the other, so that only one is held in its original size.

        Args:
            batch: of no more than `images_per_batch` images.
            batch_size: most windows in a forward pass.
            probabilities: yield them too.
            confidence: yield the probability of each pixel's class, for which those of all are never held at once.

        Raises:
            UserError: something does not fit into memory.
        """
        every: Iterable[list[LogitRows]]
        if self.inference.resizes_itself:
            every = (self._views_of(image, batch_size) for image in batch.images)
        else:
            every = self._views_of_batch(batch)
        yield from self._label_maps(every, batch, probabilities, confidence)

    @torch.inference_mode()
    def from_logits(
        self, batch: Batch, logits: Tensor, *, probabilities: bool = False, confidence: bool = False
    ) -> Iterator[Segmentation]:
        """Yield what the network's logits of a batch of whole images say, as `stream` does for one view.

        Args:
            batch: that the network saw: fitted squares, of which `transform` makes one an image.
            logits: (B, K, H, W).
            probabilities: as for `stream`.
            confidence: as for `stream`.

        Raises:
            UserError: a label map does not fit into memory.
        """
        every = ([rows] for rows in _contents(logits, _sizes(batch.resized_sizes_hw), ()))
        yield from self._label_maps(every, batch, probabilities, confidence)

    def _label_maps(
        self, every: Iterable[list[LogitRows]], batch: Batch, probabilities: bool, confidence: bool
    ) -> Iterator[Segmentation]:
        """Yield the label map of each image of a batch from its logits in every view."""
        for views, size_hw in zip(every, _sizes(batch.original_sizes_hw), strict=True):
            with memory_errors_explained(*self._label_map_in_words(size_hw)):
                found = segmentation_of(
                    views, size_hw, self.class_names, probabilities=probabilities, confidence=confidence
                )
            yield found

    def _views_of_batch(self, batch: Batch) -> list[list[LogitRows]]:
        """Return the logits of each image of a batch of fitted squares, in every view."""
        images = batch.images.to(self.device)
        contents_hw = _sizes(batch.resized_sizes_hw)
        views = [self._whole(images, contents_hw, view.flipped) for view in self.inference.views]
        return [list(one) for one in zip(*views, strict=True)]

    def _views_of(self, image: Tensor, batch_size: int) -> list[LogitRows]:
        """Return the logits of an image (3, H, W) in its own size, in every view."""
        pixels: UInt8 = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        size_hw = (pixels.shape[0], pixels.shape[1])
        sample = Sample(image=pixels, original_size_hw=size_hw, resized_size_hw=size_hw)
        found: list[LogitRows] = []
        for view in self.inference.views:
            shown = self._fitting(view.scale, size_hw)(sample, np.random.default_rng(0))
            there = torch.from_numpy(shown.image).permute(2, 0, 1).to(self.device)
            if self.inference.window:
                found.append(self._windows(there, view.flipped, batch_size))
            else:
                found += self._whole(there[None], [shown.resized_size_hw], view.flipped)
        return found

    def _fitting(self, scale: float, size_hw: tuple[int, int] = (0, 0)) -> Transform:
        """Return what brings an image of this size to the size in which a view at this scale shows it."""
        if not self.inference.window:
            side = max(1, round(scale * self.image_size))
            return eval_transform((side, side), fill=self._fill)
        scene = self.inference.scene_size
        target_hw = (scene, scene) if scene else size_hw
        return Resize([max(1, round(scale * side)) for side in target_hw])

    def _whole(
        self, images: Tensor, contents_hw: Sequence[tuple[int, int]], flipped: tuple[int, ...]
    ) -> list[LogitRows]:
        """Return the logits of the content of each of the images (B, 3, S, S), which lies at the top left."""
        if flipped:
            images = images.clone()
            for image, (height, width) in zip(images, contents_hw, strict=True):
                image[:, :height, :width] = image[:, :height, :width].flip(flipped)
        return _contents(self._forward(images), contents_hw, flipped)

    def _windows(self, scene: Tensor, flipped: tuple[int, ...], batch_size: int) -> LogitRows:
        """Return the logits of a scene (3, h, w) under the sliding window."""
        window = self.inference.window
        assert window
        rows = WindowRows(
            self._forward,
            scene,
            window=window,
            stride=self.inference.step,
            fill=self._fill,
            flipped=flipped,
            batch_size=batch_size,
        )
        kept = 4 * len(self.class_names) * scene.shape[2] * window * len(self.inference.views)
        shape = (rows.most_at_once, 3, window, window)
        self._memory.require(shape, self.device, *self._in_words(shape), more=kept)
        return rows

    def _forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K, H, W) of images (B, 3, H, W)."""
        shape = (images.shape[0], 3, images.shape[2], images.shape[3])
        self._memory.require(shape, self.device, *self._in_words(shape))
        with memory_errors_explained(*self._in_words(shape)):
            logits: Tensor = self._form.network(images)
        return logits

    def _in_words(self, shape: tuple[int, int, int, int]) -> tuple[str, str]:
        """Return what runs, and what to change where it is too large."""
        return forward_in_words(
            shape, *(("window", "--window") if self.inference.window else ("image", "--image-size"))
        )

    def _label_map_in_words(self, size_hw: tuple[int, int]) -> tuple[str, str]:
        """Return what is made of the logits of an image, and what to change where it is too large."""
        height, width = size_hw
        flag = "--window or --scene-size" if self.inference.window else "--image-size"
        what = f"the label map of {len(self.class_names)} classes in an image of {width}x{height} pixels"
        return what, f"use a smaller {flag}, or a smaller image"

    def save(self, path: str | Path) -> None:
        """Write the whole segmenter to one safetensors file that `effdense.load` reads."""
        save_model(path, self.model, self.file_header())

    def file_header(self) -> dict[str, Any]:
        """Return what the file of this model says of itself: the header that `save` writes."""
        backbone = self.model.backbone
        assert self.model.spec is not None
        return {
            **self.header,
            "task": TASK,
            "model": asdict(self.model.spec),
            "class_names": list(self.class_names),
            "preprocessing": {"mean": list(backbone.mean), "std": list(backbone.std), "image_size": self.image_size},
            "inference": asdict(self.inference),
        }


def load_segmenter(path: Path) -> Segmenter:
    """Read a segmenter that `Segmenter.save` or a training run wrote; needs nothing else and downloads nothing.

    Of a multitask file, its segmenter is read; it looks at images as a whole.

    Raises:
        UserError: the file holds no segmenter, or its tensors do not fit its header.
    """
    whole = read_header(path)
    header, state = part_of(path, whole, read_tensors(path), TASK)
    try:
        segmenter = _from_header(header, described(path, whole))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"the header of {path} is damaged or of another version of effdense ({reason}); train or save it again"
        ) from error
    load_complete(segmenter.model, state, source=str(path))
    segmenter.model.to(memory_format=torch.channels_last)
    return segmenter


def _from_header(header: dict[str, Any], source: str) -> Segmenter:
    """Return a segmenter as the header describes it, with random weights."""
    preprocessing, class_names = header["preprocessing"], header["class_names"]
    model = model_from_spec(spec_from_dict(header["model"]), len(class_names))
    model.backbone.set_statistics(preprocessing["mean"], preprocessing["std"])
    return Segmenter(
        model,
        class_names,
        image_size=int(preprocessing["image_size"]),
        inference=Inference(**header["inference"]),
        header=header,
        source=source,
    )


def _sizes(sizes_hw: Tensor) -> list[tuple[int, int]]:
    """Return heights and widths (B, 2) as pairs of numbers."""
    return [(height, width) for height, width in sizes_hw.tolist()]


def _contents(logits: Tensor, contents_hw: Sequence[tuple[int, int]], flipped: tuple[int, ...]) -> list[LogitRows]:
    """Return the logits (B, K, S, S) of the content of each image, which lies at the top left, flipped back."""
    contents = [one[:, :height, :width] for one, (height, width) in zip(logits, contents_hw, strict=True)]
    return [WholeRows(content.flip(flipped) if flipped else content) for content in contents]
