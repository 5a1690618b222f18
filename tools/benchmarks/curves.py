"""How inference grows with the batch and with the image: images a second, ours beside effdet's, from arrays to boxes.

D0 with the same random weights on both sides, whose scores spread as after a training. Exported files hold one image
size, so each size has files of its own.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from effdense.tools.benchmarks.exports import KEEPING, REST, Form, every_digit, forms_of
from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line
from effdense.tools.benchmarks.timing import alternate, synchroniser
from effdense.types import UInt8

if TYPE_CHECKING:
    from effdense.tools.benchmarks.effdet_peer import EffdetPeer

CLASSES = 90
CANDIDATES = 500
SIZE = 512
BATCHES = (1, 2, 4, 8, 16)
SIZES = (256, 384, 512, 768, 1024)
ROUNDS = 5


def by_batch(settings: BenchSettings) -> list[Line]:
    """Measure batches of images of one size."""
    size, batches = (128, (1, 2)) if settings.quick else (SIZE, BATCHES)
    return _lines([float(batch) for batch in batches], _rates(settings, size, batches))


def by_size(settings: BenchSettings) -> list[Line]:
    """Measure single images of several sizes."""
    sizes = (128, 256) if settings.quick else SIZES
    return _lines([float(size) for size in sizes], [_rates(settings, size, (1,))[0] for size in sizes])


def _rates(settings: BenchSettings, size: int, batches: tuple[int, ...]) -> list[dict[str, float]]:
    """Return images a second of every way, for each batch."""
    from effdense.tasks.detection.export import export_detector
    from effdense.tools.benchmarks.effdet_peer import detector_pair, scripted
    from effdense.tools.benchmarks.scenes import scene

    found = []
    with tempfile.TemporaryDirectory() as folder:
        # two scenes in turn: the spread is set on both, and a forward pass of sixteen in float32 would be large
        images = np.stack([scene(size, size, place % 2) for place in range(max(batches))])
        ours, peer = detector_pair("d0", size, CLASSES, images[:2], candidates=CANDIDATES, device=settings.device)
        forms = forms_of(ours, export_detector, Path(folder), device=settings.device, threads=settings.threads)
        for batch in sorted({batches[0], batches[-1]}):
            _check(f"D0, {size} px, batch {batch}", forms, peer, images[:batch])
        for batch in batches:
            through_script = scripted(peer, images[:batch])
            calls: dict[str, Callable[[], object]] = {
                "effdet": partial(peer.boxes_of_array, images[:batch]),
                "effdet, scripted": partial(through_script.boxes_of_array, images[:batch]),
            }
            for label, form in forms.items():
                calls[f"effdense, {label}"] = partial(form.timed.predict, list(images[:batch]), batch_size=batch)
            samples = alternate(
                calls,
                repeats=settings.rounds(ROUNDS),
                warmup=1,
                synchronise=synchroniser(settings.device),
                rest=REST,
                keeping=[f"effdense, {KEEPING}"],
            )
            found.append({name: batch / statistics.median(seconds) for name, seconds in samples.items()})
    return found


def _check(case: str, forms: dict[str, Form], peer: EffdetPeer, images: UInt8) -> None:
    """See that every form finds in the last image of a batch what the peer finds there.

    Raises:
        Unequal: one does not.
    """
    from effdense.tools.benchmarks.effdet_peer import check_detections

    with every_digit():
        expected = peer.boxes_of_array(images)[-1]
        for label, form in forms.items():
            found = form.checked.predict(list(images), batch_size=len(images))[-1]
            check_detections(f"{case}, {label}", found, expected, least=0.97)


def _lines(xs: list[float], rates: list[dict[str, float]]) -> list[Line]:
    return [Line(name, tuple(xs), tuple(rate[name] for rate in rates)) for name in rates[0]]


CURVES = (
    Curve("batch", f"D0, {SIZE} px: batch", "images in a batch", "images/s", by_batch, devices=("cpu", "cuda")),
    Curve("size", "D0, batch 1: image size", "side of the image, px", "images/s", by_size, devices=("cpu", "cuda")),
)
