"""Whatever a user hands in as an image becomes a Sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from PIL import Image, ImageOps

from effdense.datasets.images import read_upright
from effdense.errors import UserError
from effdense.types import Sample, UInt8

ImageInput: TypeAlias = str | Path | UInt8 | Image.Image
"""A file, an RGB array (H, W, 3) of uint8, or a PIL image."""


def as_sample(image: ImageInput) -> Sample:
    """Turn whatever a user hands in into a Sample; a file or PIL image with an EXIF orientation is turned upright.

    Raises:
        UserError: a file cannot be read, or an array is no (H, W, 3) of uint8.
    """
    if isinstance(image, (str, Path)):
        pixels = read_upright(Path(image))
    elif isinstance(image, np.ndarray):
        pixels = image
    elif isinstance(image, Image.Image):
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    else:
        raise UserError(f"an image is a path, an RGB array or a PIL image, not a {type(image).__name__}")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UserError(f"an image array is uint8 (H, W, 3) in RGB order, not {pixels.dtype} {pixels.shape}")
    size_hw = (pixels.shape[0], pixels.shape[1])
    return Sample(image=pixels, original_size_hw=size_hw, resized_size_hw=size_hw)


def predict_inputs(
    images: ImageInput | Sequence[ImageInput], predict_samples: Callable[..., list[Any]], *, batch_size: int
) -> Any:
    """Predict on an image or a list of them: what every model's ``predict`` does.

    Args:
        images: an image, or a list or tuple of them, which are read one after the other.
        predict_samples: takes samples and ``batch_size``; returns a result for each sample.
        batch_size: images in a forward pass.

    Returns:
        A result; a list of them for a list.

    Raises:
        UserError: what `as_sample` refuses, or no images in a pass.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, expected 1 or more")
    if isinstance(images, (list, tuple)):
        return predict_samples((as_sample(image) for image in images), batch_size=batch_size)
    return predict_samples([as_sample(cast("ImageInput", images))], batch_size=batch_size)[0]
