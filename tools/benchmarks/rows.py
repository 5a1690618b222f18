"""What a part is, what it returns, and what it is told; a part's author needs this module and `timing`.

A part is a module in this folder with a line in ``parts.PARTS`` and

    PART = Part("labelling", "labelling anchors, batch 16", "effdet 0.4.1's labeler", run)

    def run(settings: BenchSettings) -> list[Row]:
        ours, peer = ...                                # made from the same data and weights, in the same threads
        check_close("targets", ours(), peer(), 1e-5)    # raises Unequal: no ratio of different results
        samples = alternate({"ours": ours, "peer": peer}, repeats=settings.rounds(15),
                            synchronise=synchroniser(settings.device))
        return [row("50 boxes an image", Ratio.of(samples["ours"], samples["peer"]), target=10.0)]

Rules: importing the module imports no torch (import inside the functions). The peer does what its documents recommend:
evaluation mode, `inference_mode`, the memory format that is faster for it, the same threads (bench.py sets torch's and
OpenCV's to `settings.threads` before a part runs). `settings.quick` asks for a run of seconds on tiny input, for tests;
what it prints is no result. Files go into a temporary folder. Part.run is called once for each device that the part
names in `devices`, when the user asked for it. A curve is the same with `Curve` and `Line`, as a module's ``CURVES``
and a line in ``parts.CURVE_MODULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdense.errors import UserError
from effdense.tools.benchmarks.timing import Ratio


class Unequal(Exception):
    """Ours and the peer's results differ, so that a ratio of their times would say nothing."""


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and how."""

    parts: tuple[str, ...] = ()
    """By default all of: inference, segmentation, training, labelling, loss, postprocessing, evaluation, annotations,
    loading, starting; with --curves: batch, size, training, training-batch, labelling, evaluation, annotations, memory,
    workers."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu or cuda; on cuda those parts run that have something to do there."""
    threads: int = 2
    """Threads of ours and of the peer."""
    repeats: int | None = None
    """Rounds that count, of which median and quartiles are shown; by default each part's own number."""
    quick: bool = False
    """Tiny inputs and three rounds: shows in a minute that everything runs; the numbers say nothing."""
    curves: bool = False
    """Measure how cost grows (batch, image size, boxes, workers, data) instead of the parts."""
    write: Path | None = None
    """Put the table into this Markdown file, between its markers; curves also draw images/curves.png beside it."""
    figure: Path | None = None
    """With --curves: draw the figure into this file; also of some curves, or of a quick run."""

    def __post_init__(self) -> None:
        for name in ("threads", "repeats"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}, expected 1 or more")

        if self.figure is not None and not self.curves:
            raise UserError("--figure draws the curves: give --curves, too")

    def rounds(self, usual: int) -> int:
        """Return how many rounds to run where a part usually takes ``usual``."""
        return self.repeats or (min(usual, 3) if self.quick else usual)


@dataclass(frozen=True)
class Row:
    """One case of a part.

    Attributes:
        case: what was measured, such as ``D0, 512 px, PyTorch``.
        unit: of `ours` and `peer`: ms, s, MiB, images/s ...
        ours: what effdense takes; the median.
        peer: what the peer takes, None where there is none.
        ratio: how many times better ours is, whatever the unit: above 1 ours is faster or smaller; None without a peer.
        low: lower quartile of the ratios of the rounds; None where there were no rounds, as of a memory.
        high: upper quartile of them.
        target: what is to be reached; None where nothing is asked for.
        target_is: ``ratio``: `ratio` is to be at least the target. ``most``: `ours` is to be at most the target.
        note: what one has to know to read the row: what was checked to be equal, what is odd.
        against: the peer, where it is not the part's.
    """

    case: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    target_is: Literal["ratio", "most"] = "ratio"
    note: str = ""
    against: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        if self.target_is == "most":
            return self.ours <= self.target
        return self.ratio is not None and self.ratio >= self.target


def row(
    case: str,
    ratio: Ratio,
    *,
    target: float | None = None,
    unit: str = "ms",
    units_per_sample: float | None = None,
    note: str = "",
    against: str = "",
) -> Row:
    """Return the row of samples in seconds.

    Args:
        case: what was measured.
        ratio: of the samples.
        target: least ratio.
        unit: ``ms`` or ``s`` for the time of a call; anything else is a rate, as ``images/s``, and needs
            ``units_per_sample``.
        units_per_sample: how many units one call does, as the images of a batch.
        note: what one has to know.
        against: the peer, where it is not the part's.
    """
    if units_per_sample is not None:
        ours, peer = units_per_sample / ratio.ours, units_per_sample / ratio.peer
    else:
        scale = {"ms": 1e3, "s": 1.0}[unit]
        ours, peer = scale * ratio.ours, scale * ratio.peer
    return Row(case, unit, ours, peer, ratio.median, ratio.low, ratio.high, target=target, note=note, against=against)


def amount(
    case: str,
    ours: float,
    peer: float | None,
    *,
    unit: str,
    target: float | None = None,
    target_is: Literal["ratio", "most"] = "ratio",
    note: str = "",
    against: str = "",
) -> Row:
    """Return the row of amounts that need no rounds, and of which less is better, as of memory."""
    ratio = None if peer is None else peer / ours
    return Row(case, unit, ours, peer, ratio, target=target, target_is=target_is, note=note, against=against)


@dataclass(frozen=True)
class Part:
    """One part of the table.

    Attributes:
        name: what --parts calls it; also the module's name.
        what: what is measured, in a few words.
        peer: beside what, with its version where it matters.
        run: measures; raises `Unequal` where ours and the peer's results differ.
        devices: where it has something to measure.
    """

    name: str
    what: str
    peer: str
    run: Callable[[BenchSettings], list[Row]]
    devices: tuple[str, ...] = ("cpu",)


@dataclass(frozen=True)
class Line:
    """One line of a curve: its label, and x and y of its points."""

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """How a cost grows: one panel of the figure and one table.

    Attributes:
        name: what --parts calls it.
        what: the panel's title.
        x: what the lines run over, with its unit.
        y: what is measured, with its unit.
        run: measures; all lines at the same xs where they can.
        log: whether y is drawn on a logarithmic axis, too (x always is).
        devices: where it has something to measure.
    """

    name: str
    what: str
    x: str
    y: str
    run: Callable[[BenchSettings], list[Line]]
    log: bool = True
    devices: tuple[str, ...] = ("cpu",)
