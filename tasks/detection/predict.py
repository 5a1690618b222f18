"""Run a detector on images: the one path that prediction, evaluation and the tools share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from effdense.backbones.weights import load_complete
from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import ImageInput, predict_inputs
from effdense.errors import UserError
from effdense.inference_form import InferenceForm
from effdense.model_header import read_header
from effdense.model_parts import DETECTION, SEGMENTATION, described, lacks_part, part_of
from effdense.tasks.detection.model import EfficientDet, create_efficientdet
from effdense.tasks.detection.postprocess import Outputs, postprocess
from effdense.tasks.detection.specs import spec_from_dict
from effdense.training.checkpoint import read_tensors, save_model
from effdense.training.device import choose_device
from effdense.transforms import eval_transform, mean_fill
from effdense.types import Batch, Detections, Sample

TASK = DETECTION


@dataclass(frozen=True)
class Selection:
    """Which of a network's many boxes become detections.

    Attributes:
        score_threshold: boxes that score less are dropped.
        nms: ``hard`` or ``soft`` (Gaussian).
        nms_iou: overlap above which hard suppression drops a box of the same class.
        max_detections: most detections an image.

    Raises:
        UserError: a value out of range.
    """

    score_threshold: float = 0.001
    nms: str = "hard"
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected a number between 0 and 1")
        if self.nms not in ("hard", "soft"):
            raise UserError(f"nms is {self.nms!r}, expected hard or soft")
        if self.max_detections < 1:
            raise UserError(f"max_detections is {self.max_detections}, expected 1 or more")


class Detector:
    """A trained EfficientDet with all it needs to run: what `effdense.load` returns for a detector.

    Attributes:
        class_names: in the order of the labels.
        category_ids: the data set's own ids, for writing COCO results.
        image_size: side of the square that images are fitted into, in pixels.
        selection: which boxes become detections.
        header: what the file says of itself: how it was trained and how it scored.
        source: where it came from, in words for an error.
    """

    def __init__(
        self,
        model: EfficientDet,
        class_names: Sequence[str],
        *,
        image_size: int,
        category_ids: Sequence[int] | None = None,
        selection: Selection | None = None,
        header: dict[str, Any] | None = None,
        source: str = "this model",
    ) -> None:
        self._form = InferenceForm(model.eval())
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids if category_ids is not None else range(1, len(self.class_names) + 1))
        self.image_size = image_size
        self.selection = selection or Selection()
        self.header = header or {}
        self.source = source
        self.transform = eval_transform((image_size, image_size), fill=mean_fill(model.backbone.mean))

    @property
    def model(self) -> EfficientDet:
        """The network, in evaluation mode; `with_model` takes another."""
        return self._form.model

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def detector(self) -> Detector:
        """Itself: what `effdense.load` returns has a detector, be it a detector or a multitask model."""
        return self

    @property
    def segmenter(self) -> NoReturn:
        """Of a multitask model only.

        Raises:
            UserError: always; it names the file, and how it gets a segmentation head.
        """
        raise lacks_part(self.source, TASK, SEGMENTATION)

    def to(self, device: torch.device | str) -> Detector:
        """Move the network and return the detector.

        Raises:
            UserError: there is no such device.
        """
        self.model.to(choose_device(str(device)))
        return self

    def with_selection(self, **changes: Any) -> Detector:
        """Return a detector on the same network with a changed `Selection`, such as ``score_threshold=0.3``."""
        return self._with(selection=replace(self.selection, **changes))

    def refresh(self) -> None:
        """Take in a change of the network that cannot be seen, such as one through ``tensor.data``: `InferenceForm`."""
        self._form.refresh()

    def with_model(self, model: EfficientDet) -> Detector:
        """Return a detector that runs another network of the same kind, such as the moving average of this one."""
        return self._with(model=model)

    def with_image_size(self, image_size: int) -> Detector:
        """Return a detector on the same network that fits images into a square of another side, in pixels."""
        return self._with(image_size=image_size)

    def _with(
        self, *, model: EfficientDet | None = None, selection: Selection | None = None, image_size: int | None = None
    ) -> Detector:
        other = Detector(
            model or self.model,
            self.class_names,
            image_size=image_size or self.image_size,
            category_ids=self.category_ids,
            selection=selection or self.selection,
            header=self.header,
            source=self.source,
        )
        if other.model is self.model:
            other._form = self._form
        return other

    def predict(self, images: ImageInput | Sequence[ImageInput], batch_size: int = 8) -> Any:
        """Detect objects.

        Args:
            images: a path, an RGB array (H, W, 3) of uint8, a PIL image, or a list of them. A file with an EXIF
                orientation is turned upright.
            batch_size: images in a forward pass.

        Returns:
            Detections in pixels of the original image, best first; a list of them for a list.

        Raises:
            UserError: an image cannot be read, or is no RGB array of uint8.
        """
        return predict_inputs(images, self.predict_samples, batch_size=batch_size)

    def predict_samples(self, samples: Iterable[Sample], batch_size: int = 8) -> list[Detections]:
        """Detect objects in samples that no transform has touched yet; one Detections each."""
        return [found for batch in batches(samples, self.transform, batch_size) for found in self.detect(batch)]

    @torch.inference_mode()
    def detect(self, batch: Batch) -> list[Detections]:
        """Detect objects in a batch that `transform` and `collate` made.

        Returns:
            One Detections an image, in pixels of the original image.
        """
        batch = batch.to(self.device)
        return self.from_outputs(batch, *self._form.run(batch.images))

    @torch.inference_mode()
    def from_outputs(self, batch: Batch, class_logits: Outputs, box_codes: Outputs) -> list[Detections]:
        """Return what the network's outputs say, as `detect` does.

        Args:
            batch: that the network saw, where it is.
            class_logits: (B, A, K), or level by level.
            box_codes: (B, A, 4), or level by level.
        """
        size_hw = (batch.images.shape[-2], batch.images.shape[-1])
        boxes, scores, labels, counts = postprocess(
            class_logits,
            box_codes,
            self.model.anchors(size_hw),
            image_size_hw=size_hw,
            original_sizes_hw=batch.original_sizes_hw,
            resized_sizes_hw=batch.resized_sizes_hw,
            score_threshold=self.selection.score_threshold,
            iou_threshold=self.selection.nms_iou,
            nms=self.selection.nms,
            max_detections=self.selection.max_detections,
        )
        columns = (boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy())
        return [
            Detections(columns[0][i, :n], columns[1][i, :n], columns[2][i, :n], self.class_names)
            for i, n in enumerate(counts.tolist())
        ]

    def save(self, path: str | Path) -> None:
        """Write the whole detector to one safetensors file that `effdense.load` reads."""
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
            "category_ids": list(self.category_ids),
            "preprocessing": {"mean": list(backbone.mean), "std": list(backbone.std), "image_size": self.image_size},
            "selection": asdict(self.selection),
        }


def load_detector(path: Path) -> Detector:
    """Read a detector that `Detector.save` or a training run wrote; needs nothing else and downloads nothing.

    Of a multitask file, its detector is read.

    Raises:
        UserError: the file holds no detector, or its tensors do not fit its header.
    """
    whole = read_header(path)
    header, state = part_of(path, whole, read_tensors(path), TASK)
    try:
        preprocessing, class_names = header["preprocessing"], header["class_names"]
        model = create_efficientdet(spec_from_dict(header["model"]), len(class_names))
        model.backbone.set_statistics(preprocessing["mean"], preprocessing["std"])
        load_complete(model, state, source=str(path))
        return Detector(
            model.to(memory_format=torch.channels_last),
            class_names,
            image_size=int(preprocessing["image_size"]),
            category_ids=header["category_ids"],
            selection=Selection(**header["selection"]),
            header=header,
            source=described(path, whole),
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"the header of {path} is damaged or of another version of effdense ({reason}); train or save it again"
        ) from error
