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


def resized(image: UInt8, size_hw: tuple[int, int]) -> UInt8:
    """Return an image, (H, W, 3), at another size; the same object where it has that size.

    Args:
        image: RGB.
        size_hw: wanted, in pixels.
    """
    pixels_hw: tuple[int, int] = (image.shape[0], image.shape[1])
    if size_hw == pixels_hw:
        return image
    return np.asarray(cv2.resize(image, size_hw[::-1], interpolation=image_interpolation(pixels_hw, size_hw)), np.uint8)


def resized_corner(image: UInt8, size_hw: tuple[int, int], shown_hw: tuple[int, int]) -> UInt8:
    """Return the top left part of ``resized``, bit for bit, and compute little beyond it.

    What OpenCV makes of a pixel depends on the factor, its place and what lies beneath it, and not on what follows.

    Args:
        image: RGB, (H, W, 3).
        size_hw: of the whole image when resized, in pixels.
        shown_hw: the part of that, in pixels.
    """
    pixels_hw: tuple[int, int] = (image.shape[0], image.shape[1])
    sides = [*zip(pixels_hw, size_hw, shown_hw, strict=True)]
    needed_hw = tuple(min(side, (shown + 1) * side // new + 3) for side, new, shown in sides)
    fy, fx = (new / side for side, new, _ in sides)
    # Where a part keeps its size in whole pixels, OpenCV would copy it.
    if needed_hw in (pixels_hw, (round(needed_hw[0] * fy), round(needed_hw[1] * fx))):
        return resized(image, size_hw)[: shown_hw[0], : shown_hw[1]]
    part = image[: needed_hw[0], : needed_hw[1]]
    found = cv2.resize(part, None, fx=fx, fy=fy, interpolation=image_interpolation(pixels_hw, size_hw))
    return np.asarray(found[: shown_hw[0], : shown_hw[1]], np.uint8)


def _resized_mask(mask: UInt8 | None, size_hw: tuple[int, int]) -> UInt8 | None:
    if mask is None or mask.shape == size_hw:
        return mask
    return np.asarray(cv2.resize(mask, size_hw[::-1], interpolation=MASK_INTERPOLATION), np.uint8)


def _scaled_boxes(sample: Sample, size_hw: tuple[int, int]) -> Float32:
    height, width = sample.labels_size_hw or sample.image.shape[:2]
    factors = np.array([size_hw[1] / width, size_hw[0] / height] * 2, np.float64)
    return (sample.boxes_xyxy * factors).astype(np.float32)


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
        size_hw = resized_size(sample.image.shape[:2], self.size_hw)
        return sample.replace(
            image=resized(sample.image, size_hw),
            boxes_xyxy=_scaled_boxes(sample, size_hw),
            mask=_resized_mask(sample.mask, size_hw),
            resized_size_hw=size_hw,
        )


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
        size_hw = self.draw_size(sample.labels_size_hw or (sample.image.shape[0], sample.image.shape[1]), rng)
        mask = _resized_mask(sample.mask, size_hw)
        top, left = self._window(mask, size_hw, rng)
        bottom, right = min(size_hw[0], top + self.size_hw[0]), min(size_hw[1], left + self.size_hw[1])
        image = resized_corner(sample.image, size_hw, (bottom, right))[top:, left:]
        boxes = _scaled_boxes(sample, size_hw)
        sample = sample.replace(
            image=np.ascontiguousarray(image),
            boxes_xyxy=boxes,
            mask=None if mask is None else np.ascontiguousarray(mask[top:bottom, left:right]),
            resized_size_hw=(bottom - top, right - left),
            labels_size_hw=None,
        )
        return keep_boxes(sample, boxes - np.array([left, top, left, top], np.float32), self.boxes)

    def draw_size(self, image_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw the size that an image is resized to; the first thing that a call draws from its generator."""
        factor = rng.uniform(*self.scale)
        return resized_size(image_hw, [factor * side for side in self.scene_hw or image_hw])

    def _window(self, mask: UInt8 | None, size_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw the window's top and left in an image that was resized to ``size_hw``, and its mask."""
        room = [max(0, side - most) for side, most in zip(size_hw, self.size_hw, strict=True)]
        for _ in range(_MOST_WINDOWS):
            top, left = (int(pixels * rng.random()) for pixels in room)
            if mask is None or self.max_class_share == 1 or not any(room):
                break
            shown = mask[top : top + self.size_hw[0], left : left + self.size_hw[1]]
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
