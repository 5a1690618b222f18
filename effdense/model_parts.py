"""One task's part of a multitask file: header and weights as a file of that task alone would have them.

A multitask file holds each tensor once: one backbone, and beside it ``detection.*`` and ``segmentation.*``. Whatever
reads the file of a single task reads its part of such a file as well: tools, ``--weights``, `effdense.load` of a view.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from effdense.errors import UserError

Value = TypeVar("Value")

DETECTION, SEGMENTATION, MULTITASK = "detection", "segmentation", "multitask"
"""What a model file calls its task."""

STAGES = "backbone_stages"
"""In a part's header: how many of the backbone's stages it reads."""

_CALLED = {DETECTION: "detector", SEGMENTATION: "segmenter"}

_SCORES = "scores"
_SHARED_PYRAMID = "pyramid"
"""In the constants of a segmentation model: of the detector's pyramid, where it reads that one."""

_BACKBONE = "backbone."
_SHARED = {"detection.neck.": "decoder.pyramid.", "segmentation.decoder.": "decoder.finest."}
"""Where the tensors of a segmenter on the detector's pyramid lie in a multitask file, and where in one of its own."""

_STAGE = re.compile(r"backbone\.blocks\.(\d+)\.")


def part_of(
    source: str | Path, header: Mapping[str, Any], state: Mapping[str, Value], task: str
) -> tuple[dict[str, Any], dict[str, Value]]:
    """Return header and weights of one task; those of a file of this task alone are returned as they are.

    Args:
        source: the file, for the errors.
        header: of the file.
        state: weights of the file, by name.
        task: ``DETECTION`` or ``SEGMENTATION``.

    Returns:
        Header and weights by the names that a file of this task alone has.

    Raises:
        UserError: the file is of another task, or its header is damaged.
    """
    found = header.get("task")
    if found == task:
        return dict(header), dict(state)
    if found != MULTITASK:
        raise lacks_part(source, found, task)
    part = header.get(task)
    if not isinstance(part, Mapping) or not isinstance(part.get("model"), Mapping):
        raise UserError(
            f"the header of {source} is damaged or of another version of effdense (its {task} part is missing); "
            "train or save it again"
        )
    shared = task == SEGMENTATION and part["model"].get(_SHARED_PYRAMID) is not None
    prefixes = {f"{task}.": ""}
    if shared:  # listed first, as the first that fits decides
        prefixes = _SHARED | prefixes
    stages = part.get(STAGES)
    return header_of_part(header, task), _renamed(state, prefixes, stages if isinstance(stages, int) else None)


def header_of_part(header: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the header of one task's part, from that of a multitask file: how it was trained, and its own scores.

    Args:
        header: of a multitask file, or what is to become one.
        task: ``DETECTION`` or ``SEGMENTATION``.
    """
    common = {name: value for name, value in header.items() if name not in (DETECTION, SEGMENTATION)}
    part = {name: value for name, value in (header.get(task) or {}).items() if name != STAGES}
    scores = header.get(_SCORES)
    if isinstance(scores, Mapping):
        common[_SCORES] = scores.get(task)
    return {**common, "task": task, **part} if header else {}


def lacks_part(source: str | Path, found: Any, wanted: str) -> UserError:
    """Return the error for a part that a model does not have.

    Args:
        source: the file, or ``"this model"``.
        found: the model's task.
        wanted: that of the part, or ``MULTITASK`` for both.
    """
    if found not in _CALLED:
        return UserError(f"{source} is a model for {found!r}, not for {wanted!r}")
    missing = SEGMENTATION if found == DETECTION else DETECTION
    exported = str(source).lower().endswith(".onnx")
    this, then = ("its checkpoint", ", and export that") if exported else ("this one", "")
    return UserError(
        f"{source} is a {_CALLED[found]}; it has no {missing} head: take a multitask model, which has both, or add the "
        f"head to {this} by train-multi --weights FILE{then}"
    )


def described(path: Path, header: Mapping[str, Any]) -> str:
    """Return what a view on a file is called in an error: the file, or one part of it."""
    return f"this part of {path}" if header.get("task") == MULTITASK else str(path)


def _renamed(state: Mapping[str, Value], prefixes: Mapping[str, str], stages: int | None) -> dict[str, Value]:
    """Return the backbone's tensors, as deep as ``stages``, and those under the prefixes, by their new names."""
    part: dict[str, Value] = {}
    for name, value in state.items():
        if name.startswith(_BACKBONE):
            stage = _STAGE.match(name)
            if stages is None or stage is None or int(stage[1]) < stages:
                part[name] = value
            continue
        theirs = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if theirs is not None:
            part[prefixes[theirs] + name[len(theirs) :]] = value
    return part
