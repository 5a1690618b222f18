"""One Albumentations operation behind our interface, without the faults that Albumentations is known for.

Albumentations asks the package index for a newer version whenever it is imported, only warns of an argument that it
does not know, seeds itself, and refuses boxes that reach outside the image or have no area. Here it is imported on
first use and without that question, an unknown argument is an error, randomness comes from the caller's generator, and
boxes are moved by its functions but clipped and dropped by ours.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from effdense.errors import UserError, nearest
from effdense.transforms.base import BoxRule, keep_boxes
from effdense.types import IGNORE_INDEX, Sample

_OUR_TARGETS = {"image", "mask", "bboxes"}


def import_albumentations() -> Any:
    """Import Albumentations without its call to the network, and return the module."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


class Albumentation:
    """An Albumentations operation by name, as a transform.

    Built once and used for every sample: reseeding costs about 5 microseconds, building some hundreds. The object holds
    the generators of the sample at hand, so it serves one thread at a time; worker processes have their own copy.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], *, boxes: BoxRule | None = None) -> None:
        """Build the operation.

        Args:
            name: class name in Albumentations, such as ``"ColorJitter"``.
            arguments: its keyword arguments. ``fill_mask`` defaults to 255 (ignore) where the operation has it.
            boxes: which boxes stay when the operation moves them.

        Raises:
            UserError: no such operation, one that moves pixels but not boxes, one that needs more than an image with
                its boxes and mask, or arguments that it does not know or does not accept.
        """
        library = import_albumentations()
        kind = getattr(library, name, None)
        if not (isinstance(kind, type) and issubclass(kind, library.BasicTransform)):
            known = [key for key, value in vars(library).items() if isinstance(value, type)]
            raise UserError(f"Albumentations {library.__version__} has no operation {name!r}{nearest(name, known)}")
        self.moves_boxes = issubclass(kind, library.DualTransform)
        if not self.moves_boxes and not issubclass(kind, library.ImageOnlyTransform):
            raise UserError(f"{name} of Albumentations cannot be used here: it does not turn an image into an image")
        self.operation = _build(kind, name, dict(arguments))
        self.name = name
        self.boxes = boxes or BoxRule()
        if self.moves_boxes and "bboxes" not in self.operation.available_keys:
            raise UserError(f"{name} of Albumentations moves pixels but not boxes, so it cannot be used here")
        if missing := sorted(set(self.operation.targets_as_params) - _OUR_TARGETS):
            raise UserError(f"{name} of Albumentations needs {', '.join(missing)}, which a sample does not have")
        self._random = random.Random()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the transformed sample.

        Raises:
            UserError: the operation returns an image that is not uint8 RGB.
        """
        self._random.seed(int(rng.integers(2**63)))
        self.operation.set_random_state(rng, self._random)
        if not self.moves_boxes:
            return sample.replace(image=self._checked(self.operation(image=sample.image)["image"]))
        height, width = sample.image.shape[:2]
        scale = np.array([width, height, width, height], np.float64)
        rows = np.arange(len(sample.labels), dtype=np.float64)
        data = {"image": sample.image, "bboxes": np.column_stack([sample.boxes_xyxy / scale, rows])}
        if sample.mask is not None:
            data["mask"] = sample.mask
        result = self.operation(**data)
        image = self._checked(result["image"])
        if image is sample.image:
            return sample
        height, width = image.shape[:2]
        moved = np.asarray(result["bboxes"], np.float64).reshape(-1, 5)
        chosen = moved[:, 4].astype(np.int64)
        boxes = (moved[:, :4] * np.array([width, height, width, height], np.float64)).astype(np.float32)
        sample = sample.replace(
            image=image,
            boxes_xyxy=sample.boxes_xyxy[chosen],
            labels=sample.labels[chosen],
            crowd=sample.crowd[chosen],
            difficult=sample.difficult[chosen],
            mask=None if sample.mask is None else np.ascontiguousarray(result["mask"]),
            resized_size_hw=(height, width),
        )
        return keep_boxes(sample, boxes, self.boxes)

    def _checked(self, image: Any) -> Any:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"{self.name} of Albumentations returned {image.dtype} of shape {image.shape}; "
                "images stay uint8 (H, W, 3)"
            )
        return np.ascontiguousarray(image)


def _build(kind: Any, name: str, arguments: dict[str, Any]) -> Any:
    known = [key for key in inspect.signature(kind.__init__).parameters if key != "self"]
    for key in arguments:
        if key not in known:
            raise UserError(
                f"{name} of Albumentations has no argument {key!r}{nearest(key, known)} (it takes {', '.join(known)})"
            )
    if "fill_mask" in known:
        arguments.setdefault("fill_mask", IGNORE_INDEX)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return kind(**arguments)
        except (TypeError, ValueError, Warning) as error:
            raise UserError(f"{name} of Albumentations does not accept {arguments}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say in one line what is wrong; pydantic's own text takes four a mistake, one of them an address."""
    details = getattr(error.__cause__, "errors", None)
    if details is None:
        return " ".join(str(error).split())
    return "; ".join(": ".join([*(str(part) for part in entry["loc"]), entry["msg"]]) for entry in details())
