"""The gate of an export: a file stays only if it scores what its checkpoint scores, on the same labelled images."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effdense.errors import UserError
from effdense.files import replacing
from effdense.runtime.onnx_header import EXPORT, read_onnx_header, write_header

log = logging.getLogger(__name__)

_SHOWN = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

AS_THEY_ARE = "images as they are"
"""What others than effdense give a file, in words."""

_LEAST = 1.0, 10
"""A checkpoint that scores fewer points than that, or than so many times the tolerance, proves nothing."""


@dataclass(frozen=True)
class Measured:
    """What one of the two scored, and how fast it was.

    Attributes:
        runtime: ``pytorch``, ``onnxruntime`` or ``openvino``.
        scores: in points, 0..100, by their names, such as mAP and mIoU.
        images_per_second: from image file to result.
        given: what it was given, in words, where it is not what effdense gives it.
    """

    runtime: str
    scores: Mapping[str, float]
    images_per_second: float
    given: str = ""

    @property
    def words(self) -> str:
        """Scores, as ``mAP 41.23``."""
        return ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items())

    def reads_as(self, other: Measured) -> bool:
        """Whether another's scores, as far as this one has them too, are the same in words."""
        return all(f"{value:.2f}" == f"{other.scores[name]:.2f}" for name, value in self.scores.items())


@dataclass(frozen=True)
class Gate:
    """A checkpoint and what was exported of it, measured on the same images.

    Attributes:
        checkpoint: the one.
        exported: the other, given what effdense gives it.
        images: how many images.
        tolerance: most points by which a score may differ.
        otherwise: the other again, with some of its scores, given what others than effdense may give it.
    """

    checkpoint: Measured
    exported: Measured
    images: int
    tolerance: float
    otherwise: tuple[Measured, ...] = ()

    @property
    def points_apart(self) -> dict[str, float]:
        """By how many points each score differs, be it better or worse; not a number where one of the two is none.

        Where the file was measured more than once, the one that differs most counts.
        """
        measured = (self.exported, *self.otherwise)
        return {
            name: _most(abs(one.scores[name] - score) for one in measured if one is self.exported or name in one.scores)
            for name, score in self.checkpoint.scores.items()
        }

    @property
    def least(self) -> float:
        """Points that a checkpoint has to score for a comparison to prove anything."""
        points, times = _LEAST
        return max(points, times * self.tolerance)

    @property
    def refusal(self) -> str | None:
        """Why the file must not stay, in words, or None where it may."""
        blind = [name for name, score in self.checkpoint.scores.items() if not score >= self.least]
        if blind or not self.checkpoint.scores:
            smaller = "a smaller --tolerance, " if self.least > _LEAST[0] else ""
            return (
                f"on these {self.images} images the checkpoint scores {self.checkpoint.words or 'nothing'}, too little "
                f"to tell a sound file from a damaged one, as {self.least:g} are needed for a tolerance of "
                f"{self.tolerance:g}; take {smaller}more images (--sample), or a model that is trained further"
            )
        if all(apart <= self.tolerance + 1e-9 for apart in self.points_apart.values()):
            return None
        apart = _most(self.points_apart.values())
        also = "".join(f", and {one.words} given {one.given}," for one in self._differing())
        return (
            f"it scores {self.exported.words} ({_SHOWN[self.exported.runtime]}, "
            f"{self.exported.images_per_second:.1f} images a second){also} where the checkpoint scores "
            f"{self.checkpoint.words} ({self.checkpoint.images_per_second:.1f} images a second) on {self.images} "
            f"images: {apart:.2f} points apart, and {self.tolerance:g} are tolerated"
        )

    def lines(self) -> list[str]:
        """Return both scores and both speeds as lines for the terminal, and where the file scores otherwise as well."""
        rows = [("checkpoint", self.checkpoint), ("exported file", self.exported)]
        lines = [
            f"{name:<13}  {one.words}  {one.images_per_second:8.1f} images/s  ({_SHOWN[one.runtime]})"
            for name, one in rows
        ]
        return lines + [f"{'the same':<13}  {one.words}  given {one.given}" for one in self._differing()]

    def record(self) -> dict[str, Any]:
        """Return what the file's header says of it."""
        both = {"checkpoint": self.checkpoint, "exported": self.exported}
        said = {
            name: {"runtime": one.runtime, "points": dict(one.scores), "images_per_second": one.images_per_second}
            for name, one in both.items()
        }
        otherwise = [{"given": one.given, "points": dict(one.scores)} for one in self.otherwise]
        return {"images": self.images, "tolerance": self.tolerance, **said, "otherwise": otherwise}

    def _differing(self) -> list[Measured]:
        return [one for one in self.otherwise if not one.reads_as(self.exported)]


def export_through_gate(
    out: Path,
    *,
    export: Callable[[Path], None],
    checkpoint: Callable[[], Measured],
    exported: Callable[[Path], tuple[Measured, ...]],
    images: int,
    tolerance: float,
    name: str,
) -> Gate:
    """Export a file, measure it beside its checkpoint, and put it in its place if it scores the same.

    Args:
        out: the place. What was there before stays where the new file is refused.
        export: writes a file.
        checkpoint: measures the checkpoint.
        exported: measures a file, on the same images by the same code; given what effdense gives it first.
        images: how many those are.
        tolerance: most points by which a score may differ.
        name: of the checkpoint, for the header.

    Raises:
        UserError: it scores something else, so it is deleted; or it cannot be measured, or written.
    """
    if os.path.isdir(out):  # Path's own raises of a name that is too long
        raise UserError(f"{out} is a folder, expected the name of the file that is to be written")
    with replacing(out) as temporary:
        temporary.touch()  # a folder that takes no file is refused before the work, not after it
        export(temporary)
        log.info("exported; comparing it with its checkpoint on %d images", images)
        with _measuring(out):
            before, (after, *otherwise) = checkpoint(), exported(temporary)
        gate = Gate(before, after, images=images, tolerance=tolerance, otherwise=tuple(otherwise))
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


@contextlib.contextmanager
def _measuring(out: Path) -> Iterator[None]:
    """Say of what the system refuses in an evaluation that it is none of the file that is being written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out} is not written, as it could not be compared with its checkpoint ({error}); export again once that "
            "is mended"
        ) from error


def _most(points: Iterable[float]) -> float:
    """Return the largest number, or what is none."""
    return max(points, key=lambda value: math.inf if math.isnan(value) else value)


def _record(path: Path, said: Mapping[str, Any]) -> None:
    """Add to what a file's header says of its export."""
    import onnx

    header, model = read_onnx_header(path), onnx.load(path)
    write_header(model, {**header, EXPORT: {**header[EXPORT], **said}})
    path.write_bytes(model.SerializeToString())
