"""Label maps that are compared: what a truth and a prediction may hold, and what is said of those that hold more."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from effdense.errors import UserError
from effdense.types import IGNORE_INDEX, Bool, UInt8

if TYPE_CHECKING:
    import torch

LabelMap: TypeAlias = "UInt8 | torch.Tensor"
"""uint8 class indices, in an array or a tensor of any device."""


def check_num_classes(num_classes: int) -> int:
    """Return the number of classes.

    Raises:
        ValueError: a mask of uint8 cannot hold them beside 255, which is ignored.
    """
    if not 1 <= num_classes <= IGNORE_INDEX:
        raise ValueError(f"expected 1 to {IGNORE_INDEX} classes, got {num_classes}")
    return num_classes


def check_alike(truth: LabelMap, predicted: LabelMap, where: str = "") -> None:
    """See that two label maps can be compared pixel by pixel.

    Args:
        truth: uint8, (..., H, W).
        predicted: uint8, of the same shape.
        where: what they are of, for the message.

    Raises:
        UserError: their shapes differ.
        ValueError: they are not uint8, where a label beyond 255 would have become another.
    """
    for name, labels in (("truth", truth), ("predicted", predicted)):
        if str(labels.dtype).removeprefix("torch.") != "uint8":
            raise ValueError(f"expected {name} labels as uint8, got {labels.dtype}")
    if tuple(truth.shape) != tuple(predicted.shape):
        shown = [" x ".join(str(side) for side in labels.shape) or "a single value" for labels in (truth, predicted)]
        raise UserError(
            f"{_of(where)}the truth is {shown[0]} and the prediction {shown[1]} (height x width); "
            "predict at the size of the truth"
        )


def on_host(labels: LabelMap) -> UInt8:
    """Return labels as an array; those on a GPU are waited for."""
    return labels if isinstance(labels, np.ndarray) else np.asarray(labels.cpu().numpy(), np.uint8)


def check_labels(truth: UInt8, predicted: UInt8, num_classes: int, where: str = "") -> Bool:
    """See that every label is a class, and return which pixels count.

    Args:
        truth: (..., H, W), 255 where a pixel does not count.
        predicted: the same shape; what it says where the truth is 255 is looked at by nobody.
        num_classes: K.
        where: what they are of, for the message.

    Returns:
        (..., H, W), True where a pixel counts.

    Raises:
        UserError: a label is no class; the message names label and pixel.
    """
    counted = np.not_equal(truth, IGNORE_INDEX)
    wrong = (truth >= num_classes) & counted
    if wrong.any():
        raise UserError(_complaint("the truth", truth, wrong, num_classes, where))
    wrong = (predicted >= num_classes) & counted
    if wrong.any():
        raise UserError(_complaint("the prediction", predicted, wrong, num_classes, where))
    return np.asarray(counted, np.bool_)


def no_class(whose: str, label: int, num_classes: int) -> str:
    """Return what is said of a label that is no class, without where it is."""
    classes = f"the classes are 0 to {num_classes - 1}" if num_classes > 1 else "the only class is 0"
    if whose == "the prediction" and label == IGNORE_INDEX:
        return f"{whose} leaves pixels that count without a class (255); {classes}, and only the truth may ignore"
    advice = "" if whose == "the prediction" else ", and 255 is ignored"
    return f"{whose} has the label {label}, which is no class: {classes}{advice}"


def _complaint(whose: str, labels: UInt8, wrong: Bool, num_classes: int, where: str) -> str:
    place = tuple(int(axis) for axis in np.unravel_index(int(wrong.argmax()), wrong.shape))
    at = f"x {place[-1]}, y {place[-2]}" if len(place) > 1 else f"position {place[-1]}"
    if len(place) > 2:
        at = f"map {', '.join(str(axis) for axis in place[:-2])}, {at}"
    same = int((labels[wrong] == labels[place]).sum())
    return f"{_of(where)}{no_class(whose, int(labels[place]), num_classes)} ({same} pixels, the first at {at})"


def _of(where: str) -> str:
    return f"{where}: " if where else ""
