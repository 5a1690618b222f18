"""The gate of an export: a file stays only if it scores what its checkpoint scores, on the same labelled images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effdense.errors import UserError
from effdense.files import replacing
from effdense.runtime.onnx_header import EXPORT, read_onnx_header, write_header

log = logging.getLogger(__name__)

_SHOWN = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Measured:
    """What one of the two scored, and how fast it was.

    Attributes:
        runtime: ``pytorch``, ``onnxruntime`` or ``openvino``.
        scores: in points, 0..100, by their names, such as mAP and mIoU.
        images_per_second: from image file to result.
    """

    runtime: str
    scores: Mapping[str, float]
    images_per_second: float

    @property
    def words(self) -> str:
        """Scores, as ``mAP 41.23``."""
        return ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items())


@dataclass(frozen=True)
class Gate:
    """A checkpoint and what was exported of it, measured on the same images.

    Attributes:
        checkpoint: the one.
        exported: the other.
        images: how many images.
        tolerance: most points by which a score may differ.
    """

    checkpoint: Measured
    exported: Measured
    images: int
    tolerance: float

    @property
    def points_apart(self) -> dict[str, float]:
        """By how many points each score differs, be it better or worse; not a number where one of the two is none."""
        return {name: abs(self.exported.scores[name] - score) for name, score in self.checkpoint.scores.items()}

    @property
    def refusal(self) -> str | None:
        """Why the file must not stay, in words, or None where it may."""
        blind = [name for name, score in self.checkpoint.scores.items() if not score > self.tolerance]
        if blind or not self.checkpoint.scores:
            return (
                f"on these {self.images} images the checkpoint scores {self.checkpoint.words or 'nothing'}, too little "
                "to tell a sound file from a damaged one; take more images (--sample), or a model that is trained "
                "further"
            )
        if all(apart <= self.tolerance + 1e-9 for apart in self.points_apart.values()):
            return None
        apart = max(self.points_apart.values(), key=lambda value: math.inf if math.isnan(value) else value)
        return (
            f"it scores {self.exported.words} ({_SHOWN[self.exported.runtime]}, "
            f"{self.exported.images_per_second:.1f} images a second) where the checkpoint scores "
            f"{self.checkpoint.words} ({self.checkpoint.images_per_second:.1f} images a second) on {self.images} "
            f"images: {apart:.2f} points apart, and {self.tolerance:g} are tolerated"
        )

    def lines(self) -> list[str]:
        """Return both scores and both speeds as lines for the terminal."""
        rows = [("checkpoint", self.checkpoint), ("exported file", self.exported)]
        return [
            f"{name:<13}  {one.words}  {one.images_per_second:8.1f} images/s  ({_SHOWN[one.runtime]})"
            for name, one in rows
        ]

    def record(self) -> dict[str, Any]:
        """Return what the file's header says of it."""
        both = {"checkpoint": self.checkpoint, "exported": self.exported}
        said = {
            name: {"runtime": one.runtime, "points": dict(one.scores), "images_per_second": one.images_per_second}
            for name, one in both.items()
        }
        return {"images": self.images, "tolerance": self.tolerance, **said}


def export_through_gate(
    out: Path,
    *,
    export: Callable[[Path], None],
    checkpoint: Callable[[], Measured],
    exported: Callable[[Path], Measured],
    images: int,
    tolerance: float,
    name: str,
) -> Gate:
    """Export a file, measure it beside its checkpoint, and put it in its place if it scores the same.

    Args:
        out: the place. What was there before stays where the new file is refused.
        export: writes a file.
        checkpoint: measures the checkpoint.
        exported: measures a file, on the same images by the same code.
        images: how many those are.
        tolerance: most points by which a score may differ.
        name: of the checkpoint, for the header.

    Raises:
        UserError: it scores something else, so it is deleted; or a file cannot be written.
    """
    with replacing(out) as temporary:
        export(temporary)
        log.info("exported; comparing it with its checkpoint on %d images", images)
        gate = Gate(checkpoint(), exported(temporary), images=images, tolerance=tolerance)
        if gate.refusal is not None:
            raise UserError(f"{out} is not written: {gate.refusal}.")
        _record(temporary, {"checkpoint": name, "gate": gate.record()})
    return gate


def require_exporter() -> None:
    """Refuse to begin an export for which a package is missing.

    Raises:
        UserError: names it, and how to install it.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(f"exporting needs {' and '.join(missing)}: pip install 'effdense[onnx]'")


def _record(path: Path, said: Mapping[str, Any]) -> None:
    """Add to what a file's header says of its export."""
    import onnx

    header, model = read_onnx_header(path), onnx.load(path)
    write_header(model, {**header, EXPORT: {**header[EXPORT], **said}})
    path.write_bytes(model.SerializeToString())
