"""The transforms of training and of evaluation, the same for every task."""

from __future__ import annotations

from collections.abc import Sequence

from effdense.transforms.base import BoxRule, Compose, Transform, check_share
from effdense.transforms.geometry import Flip, Pad, RandomScaleCrop, Resize
from effdense.transforms.photometric import Photometric
from effdense.transforms.randaugment import RandAugment

_FULL_PHOTOMETRIC = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.04}


def train_transform(
    *,
    image_size_hw: Sequence[int],
    fill: Sequence[int],
    scale: tuple[float, float] = (0.1, 2.0),
    hflip: float = 0.5,
    vflip: float = 0.0,
    photometric: float = 0.0,
    randaugment_ops: int = 0,
    randaugment_magnitude: float = 5.0,
    min_visible: float = 0.1,
    min_box_size: float = 1.0,
    scene_size_hw: Sequence[int] | None = None,
    own_size: bool = False,
    max_class_share: float = 1.0,
) -> Transform:
    """Return the augmentation of training, up to the padded image.

    Colours are changed after the crop, when the image is smallest, and before padding, so that the padding keeps
    exactly the colour that evaluation pads with.

    Args:
        image_size_hw: size of the padded image, in pixels.
        fill: colour of the padding, RGB in 0..255 (``mean_fill`` of the backbone's mean).
        scale: range of the scale jitter; scale 1 fits the whole image into the image size, as evaluation does.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        photometric: strength 0..1 of random brightness, contrast, saturation (each +- 40 % at 1) and hue (+- 4 % of the
            colour circle at 1), given to four images in five; 0 leaves it out.
        randaugment_ops: RandAugment operations per image; 0 leaves it out.
        randaugment_magnitude: their strength, 0..10.
        min_visible: share of a box's area that must survive a crop or a warp, or the box is dropped.
        min_box_size: least width and height of a box after a crop or a warp, in pixels, or the box is dropped.
        scene_size_hw: what scale 1 fits the whole image into instead, in pixels; the image size is then a window on it.
        own_size: scale 1 is the image's own pixels instead.
        max_class_share: most that one class may have of the labelled pixels of a crop, if one of ten windows obeys;
            above 0, and 1 is off.

    Raises:
        UserError: a value out of range.
    """
    rule = BoxRule(min_size=min_box_size, min_visible=min_visible)
    check_share("photometric", photometric)
    crop = RandomScaleCrop(
        image_size_hw, scale, rule, scene_hw=scene_size_hw, own_size=own_size, max_class_share=max_class_share
    )
    steps: list[Transform] = [crop, Flip(hflip, vflip)]
    if photometric > 0:
        steps.append(Photometric(**{name: photometric * full for name, full in _FULL_PHOTOMETRIC.items()}))
    if randaugment_ops != 0:
        steps.append(RandAugment(randaugment_ops, randaugment_magnitude, fill, boxes=rule))
    return Compose((*steps, Pad(image_size_hw, fill)))


def eval_transform(image_size_hw: Sequence[int], fill: Sequence[int]) -> Transform:
    """Return the geometry of evaluation and prediction: resize with the aspect kept, pad at the bottom and the right.

    Every box is kept, and scaled only.

    Raises:
        UserError: a value out of range.
    """
    return Compose((Resize(image_size_hw), Pad(image_size_hw, fill)))
