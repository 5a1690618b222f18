"""Image augmentation behind one small interface: a transform takes a Sample and a generator, and returns a Sample.

Randomness comes from the generator that is handed in and from nowhere else, so what is drawn is decided by whoever
seeds it. Images stay uint8 and contiguous, labels int64, and crowd and difficult flags follow their boxes.
"""

from __future__ import annotations

from effdense.transforms.albumentation import Albumentation
from effdense.transforms.base import BoxRule, Compose, Transform, keep_boxes, mean_fill
from effdense.transforms.geometry import Flip, Pad, RandomScaleCrop, Resize, resized_size
from effdense.transforms.photometric import Photometric
from effdense.transforms.pipelines import eval_transform, train_transform
from effdense.transforms.randaugment import RANDAUGMENT_OPERATIONS, RandAugment

__all__ = [
    "RANDAUGMENT_OPERATIONS",
    "Albumentation",
    "BoxRule",
    "Compose",
    "Flip",
    "Pad",
    "Photometric",
    "RandAugment",
    "RandomScaleCrop",
    "Resize",
    "Transform",
    "eval_transform",
    "keep_boxes",
    "mean_fill",
    "resized_size",
    "train_transform",
]
