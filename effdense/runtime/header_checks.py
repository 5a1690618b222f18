"""Whether what an exported file says of itself fits its network, so that nothing goes wrong in the middle of its use.

What is missing is not looked at: who needs it says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION, header_of_part
from effdense.runtime.onnx_bytes import Shape

_CLASSES = {DETECTION: ("class_logits", 2), SEGMENTATION: ("mask_logits", 1)}
"""By task: the value inside the file, and which of its dimensions, that tells how many classes there are."""

_SQUARE = ("pixels", 2)
_MOST = ("boxes", 1)
"""The same of the square that images are fitted into, and of the most detections an image."""

_SIZE = "image_size"


def check_header(header: Mapping[str, Any], export: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    """Check types, lengths and sizes in the header of an exported file.

    Args:
        header: the whole of it.
        export: what it says of how the file was made.
        shapes: of the values in the file, by their names, as far as the file states them.

    Raises:
        ValueError: something does not fit; the message is half a sentence.
    """
    task = header.get("task", "")
    _require(isinstance(task, str), "its task", task, "a word")
    parts = (DETECTION, SEGMENTATION) if task == MULTITASK else (task,)
    for name in parts:
        if task == MULTITASK and name in header:
            _require(isinstance(header[name], Mapping), f"its part {name}", header[name], "names and values")
        part = header_of_part(header, name) if task == MULTITASK else header
        if name in _CLASSES:
            _check_classes(part, _size(shapes, *_CLASSES[name]))
            _check_preprocessing(part, export.get(_SIZE), _size(shapes, *_SQUARE))
        if name == DETECTION:
            _check_selection(part, _size(shapes, *_MOST))
        if name == SEGMENTATION:
            _check_inference(part)


def _check_classes(header: Mapping[str, Any], classes: int | None) -> None:
    names, ids = header.get("class_names"), header.get("category_ids")
    if names is not None:
        _require(_is_list(names, _is_text), "class_names", names, "a list of words")
        if classes is not None and len(names) != classes:
            raise ValueError(f"class_names names {len(names)} classes, its network tells {classes} apart")
    if ids is not None:
        _require(_is_list(ids, _is_whole), "category_ids", ids, "a list of whole numbers")
        expected = len(names) if names is not None else classes
        if expected is not None and len(ids) != expected:
            raise ValueError(f"category_ids has {len(ids)} ids for {expected} classes")


def _check_preprocessing(header: Mapping[str, Any], exported: Any, side: int | None) -> None:
    said = header.get("preprocessing")
    if said is None:
        return
    _require(isinstance(said, Mapping), "preprocessing", said, "names and values")
    mean, size = said.get("mean"), said.get(_SIZE)
    if mean is not None:
        _require(_is_list(mean, _is_share) and len(mean) == 3, "mean", mean, "three numbers between 0 and 1")
    if size is None:
        return
    _require(_is_whole(size) and size > 0, _SIZE, size, "a whole number of pixels")
    for where, other in (("it was exported for", exported), ("its network sees", side)):
        if other is not None and other != size:
            raise ValueError(f"{_SIZE} is {size}, {where} {other!r}")


def _check_selection(header: Mapping[str, Any], most: int | None) -> None:
    said = header.get("selection")
    if said is None:
        return
    _require(isinstance(said, Mapping), "selection", said, "names and values")
    for name, fits, expected in (
        ("score_threshold", _is_share, "a number between 0 and 1"),
        ("nms_iou", _is_share, "a number between 0 and 1"),
        ("nms", _is_text, "a word"),
        ("max_detections", _is_whole, "a whole number"),
    ):
        if name in said:
            _require(fits(said[name]), name, said[name], expected)
    kept = said.get("max_detections")
    if kept is not None and most is not None and kept != most:
        raise ValueError(f"max_detections is {kept}, the file gives {most}")


def _check_inference(header: Mapping[str, Any]) -> None:
    said = header.get("inference")
    if said is None:
        return
    _require(isinstance(said, Mapping), "inference", said, "names and values")
    for name in ("window", "stride", "scene_size"):
        value = said.get(name)
        _require(value is None or _is_whole(value), name, value, "a whole number of pixels")
    if "tta" in said:
        _require(_is_list(said["tta"], _is_text), "tta", said["tta"], "a list of words")


def _require(fits: bool, name: str, value: Any, expected: str) -> None:
    if not fits:
        shown = repr(value)
        raise ValueError(f"{name} is {shown if len(shown) <= 40 else shown[:37] + '...'}, expected {expected}")


def _size(shapes: Mapping[str, Shape], name: str, dimension: int) -> int | None:
    """Return one size of a value, or None where the file does not state it."""
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else None


def _is_list(value: Any, of: Any) -> bool:
    return isinstance(value, list) and all(of(one) for one in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return (_is_whole(value) or (isinstance(value, float) and math.isfinite(value))) and 0 <= value <= 1
