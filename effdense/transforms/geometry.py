"""Resize, scale jitter with crop, flip and padding: image, boxes and mask moved together by OpenCV.

OpenCV is called directly: the geometry has to follow effdet's rounding, and Albumentations' own resize and crop do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from effdense.errors import UserError
from effdense.transforms.base import BoxRule, check_fill, check_share, check_size, keep_boxes
from effdense.types import IGNORE_INDEX, Float32, Sample, UInt8

AREA_BELOW = 0.7
"""Factor below which images are resized by INTER_AREA; `image_interpolation` says why."""
_MOST_WINDOWS = 10
MASK_INTERPOLATION = cv2.INTER_NEAREST_EXACT
"""INTER_NEAREST is half a pixel off against INTER_LINEAR; the exact one samples at pixel centres, as bilinear does."""


def image_interpolation(size_hw: Sequence[int], new_hw: Sequence[int]) -> int:
    """Return OpenCV's interpolation of images between two sizes; the one place where that is decided.

    INTER_LINEAR mixes the four nearest pixels however far it shrinks: an 8x reduction leaves out 60 of 64, and what
    it makes of fine texture is chance (aliasing). The published weights were trained on Pillow's bilinear, which
    filters over the whole footprint of an output pixel; INTER_AREA does too. Down to 0.7 the footprint is no wider
    than one and a half pixels, and the four nearest hold nearly all of it.

    Args:
        size_hw: height and width before, in pixels.
        new_hw: and after.
    """
    factor = min(new / old for new, old in zip(new_hw, size_hw, strict=True))
    return cv2.INTER_AREA if factor < AREA_BELOW else cv2.INTER_LINEAR


def resized_size(size_hw: Sequence[int], target_hw: Sequence[float]) -> tuple[int, int]:
    """Return the largest size of the same aspect that fits into the target.

    The factor is the smaller of the two ratios and the product is cut, not rounded, as effdet's ``ResizePad`` does; no
    side falls below one pixel.

    Args:
        size_hw: height and width, in pixels.
        target_hw: what it has to fit into; need not be whole.
    """
    height, width = size_hw
    scale = min(target_hw[0] / height, target_hw[1] / width)
    return max(1, int(height * scale)), max(1, int(width * scale))


def _resize_to(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    pixels_hw: tuple[int, int] = (sample.image.shape[0], sample.image.shape[1])
    height, width = sample.labels_size_hw or pixels_hw
    if size_hw == (height, width):
        return sample.replace(resized_size_hw=size_hw)
    new_height, new_width = size_hw
    image, mask = sample.image, sample.mask
    if size_hw != pixels_hw:
        interpolation = image_interpolation(pixels_hw, size_hw)
        image = np.asarray(cv2.resize(image, (new_width, new_height), interpolation=interpolation), np.uint8)
    if mask is not None:
        mask = np.asarray(cv2.resize(mask, (new_width, new_height), interpolation=MASK_INTERPOLATION), np.uint8)
    factors = np.array([new_width / width, new_height / height] * 2, np.float64)
    boxes = (sample.boxes_xyxy * factors).astype(np.float32)
    return sample.replace(image=image, boxes_xyxy=boxes, mask=mask, resized_size_hw=size_hw, labels_size_hw=None)


class Resize:
    """Resize with the aspect kept so that the image fits into a size; no padding, and no box dropped or clipped."""

    def __init__(self, size_hw: Sequence[int]) -> None:
        """Check the size.

        Args:
            size_hw: what the image has to fit into, in pixels.

        Raises:
            UserError: not two positive whole numbers.
        """
        self.size_hw = check_size(size_hw)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the resized sample; nothing is drawn from ``rng``."""
        return _resize_to(sample, resized_size(sample.image.shape[:2], self.size_hw))


class RandomScaleCrop:
    """Scale jitter: resize by a random factor, then crop a random window of the target's size.

    Scale 1 fits the image into the target, or into another scene, or leaves it its own pixels; the factor multiplies
    that and is uniform in ``scale``. What is smaller than the target is left for ``Pad``, what is larger loses all but
    one window, whose offset is uniform. Same distribution and rounding as effdet's ``RandomResizePad``; the range 0.1
    to 2 is EfficientDet's (Tan et al. 2020, section 5.1), 0.5 to 2 is usual for segmentation.

    With ``max_class_share`` below 1, and where there is a mask, up to ten windows are drawn until in one no class has
    more than this share of the labelled pixels; the last is kept. (The custom of DeepLab's and PSPNet's trainers in
    MMSegmentation, its ``cat_max_ratio``, there 0.75.) A window with nothing labelled is drawn again too.
    """

    def __init__(
        self,
        size_hw: Sequence[int],
        scale: tuple[float, float] = (0.1, 2.0),
        boxes: BoxRule | None = None,
        *,
        scene_hw: Sequence[int] | None = None,
        own_size: bool = False,
        max_class_share: float = 1.0,
    ) -> None:
        """Check the parameters.

        Args:
            size_hw: the target, in pixels.
            scale: least and greatest factor.
            boxes: which boxes stay after the crop.
            scene_hw: what scale 1 fits the image into, in pixels; by default the target.
            own_size: scale 1 is the image's own size.
            max_class_share: most that one class may have of a window's labelled pixels, above 0 and up to 1; 1 is off
                and draws no random number more.

        Raises:
            UserError: a size, a range or a share that makes no sense, or both a scene and the own size.
        """
        self.size_hw = check_size(size_hw)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] or not np.isfinite(scale[1]):
            raise UserError(f"scale is a range of two positive factors, the smaller first, got {scale}")
        if own_size and scene_hw is not None:
            raise UserError(f"scale 1 is either the image's own size or a scene of {tuple(scene_hw)}, not both")
        if not 0 < max_class_share <= 1:
            raise UserError(f"max_class_share must lie above 0 and up to 1 (off), got {max_class_share}")
        self.scale = (float(scale[0]), float(scale[1]))
        self.boxes = boxes or BoxRule()
        self.scene_hw = None if own_size else self.size_hw if scene_hw is None else check_size(scene_hw)
        self.max_class_share = max_class_share

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, no larger than the target in height and in width."""
        image_hw = sample.labels_size_hw or (sample.image.shape[0], sample.image.shape[1])
        sample = _resize_to(sample, self.draw_size(image_hw, rng))
        top, left = self._window(sample, rng)
        if sample.image.shape[0] > self.size_hw[0] or sample.image.shape[1] > self.size_hw[1]:
            window = (slice(top, top + self.size_hw[0]), slice(left, left + self.size_hw[1]))
            image = np.ascontiguousarray(sample.image[window])
            mask = None if sample.mask is None else np.ascontiguousarray(sample.mask[window])
            sample = sample.replace(image=image, mask=mask, resized_size_hw=image.shape[:2])
        moved = sample.boxes_xyxy - np.array([left, top, left, top], np.float32)
        return keep_boxes(sample, moved, self.boxes)

    def draw_size(self, image_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw the size that an image is resized to; the first thing that a call draws from its generator."""
        factor = rng.uniform(*self.scale)
        return resized_size(image_hw, [factor * side for side in self.scene_hw or image_hw])

    def _window(self, sample: Sample, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the window's top and left."""
        room = [max(0, side - most) for side, most in zip(sample.image.shape[:2], self.size_hw, strict=True)]
        for _ in range(_MOST_WINDOWS):
            top, left = (int(pixels * rng.random()) for pixels in room)
            if sample.mask is None or self.max_class_share == 1 or not any(room):
                break
            shown = sample.mask[top : top + self.size_hw[0], left : left + self.size_hw[1]]
            if largest_class_share(shown) <= self.max_class_share:
                break
        return top, left


def largest_class_share(mask: UInt8) -> float:
    """Return what the most frequent class has of the labelled pixels; infinity where none is labelled."""
    counts = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    labelled = int(counts.sum())
    return int(counts.max()) / labelled if labelled else float("inf")


class Flip:
    """Mirror left to right and top to bottom, each with its own probability; no box is clipped."""

    def __init__(self, horizontal: float = 0.5, vertical: float = 0.0) -> None:
        """Check the probabilities.

        Args:
            horizontal: probability of exchanging left and right.
            vertical: probability of exchanging top and bottom.

        Raises:
            UserError: a probability outside 0..1.
        """
        check_share("the probability of a horizontal flip", horizontal)
        check_share("the probability of a vertical flip", vertical)
        self.horizontal = horizontal
        self.vertical = vertical

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, flipped or not."""
        across, down = rng.random() < self.horizontal, rng.random() < self.vertical
        if not across and not down:
            return sample
        code = -1 if across and down else int(across)
        height, width = sample.image.shape[:2]
        boxes: Float32 = sample.boxes_xyxy.copy()
        if across:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        if down:
            boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
        image = np.asarray(cv2.flip(sample.image, code), np.uint8)
        mask = None if sample.mask is None else np.asarray(cv2.flip(sample.mask, code), np.uint8)
        return sample.replace(image=image, boxes_xyxy=boxes, mask=mask)


class Pad:
    """Pad to a size at the bottom and the right: the image with a colour, the mask with 255; boxes stay."""

    def __init__(self, size_hw: Sequence[int], fill: Sequence[int]) -> None:
        """Check the parameters.

        Args:
            size_hw: height and width afterwards, in pixels.
            fill: colour of the padding, RGB in 0..255; the mean that the backbone's weights were trained with.

        Raises:
            UserError: a size or a colour that makes no sense.
        """
        self.size_hw = check_size(size_hw)
        self.fill = check_fill(fill)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample at the full size; nothing is drawn from ``rng``.

        Raises:
            UserError: the image is larger than the size.
        """
        height, width = sample.image.shape[:2]
        down, right = self.size_hw[0] - height, self.size_hw[1] - width
        if down < 0 or right < 0:
            raise UserError(f"an image of {height} x {width} cannot be padded to {self.size_hw}: resize it first")
        if down == 0 and right == 0:
            return sample
        image = _padded(sample.image, down, right, self.fill)
        mask = None if sample.mask is None else _padded(sample.mask, down, right, (IGNORE_INDEX,) * 3)
        return sample.replace(image=image, mask=mask)


def _padded(image: UInt8, down: int, right: int, fill: tuple[int, int, int]) -> UInt8:
    return np.asarray(cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_CONSTANT, value=fill), np.uint8)
