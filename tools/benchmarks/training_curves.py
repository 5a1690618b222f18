"""How training grows with the boxes of an image and with the batch: images a second, ours beside effdet's plain loop.

lite0 at 320 px with its data, as in the part `training`; on a CPU.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line
from effdense.tools.benchmarks.timing import alternate
from effdense.tools.benchmarks.training import (
    NAMES,
    OBJECTS,
    Case,
    check_same_step,
    our_config,
    our_epoch,
    our_run,
    same_weights,
    write_photos,
)

SIZE = 320
BOXES = (1, 8, 32, 128)
BATCHES = (1, 2, 4, 8, 16)
IMAGES = 16
"""Of an epoch."""
PEER = "effdet"
OURS = {"effdense, float32": "off", "effdense, default precision": "auto"}
"""Lines, and what they are trained with as ``--amp``."""


def by_boxes(settings: BenchSettings) -> list[Line]:
    """Measure batches of 8 images with a growing number of boxes."""
    counts = BOXES[1:2] if settings.quick else BOXES
    return _lines(counts, [_rates(settings, 2 if settings.quick else 8, count) for count in counts])


def by_batch(settings: BenchSettings) -> list[Line]:
    """Measure batches of growing size; an epoch has the same images in each."""
    batches = (2,) if settings.quick else BATCHES
    return _lines(batches, [_rates(settings, batch, OBJECTS) for batch in batches])


def _rates(settings: BenchSettings, batch_size: int, boxes: int) -> dict[str, float]:
    """Return images a second of every way."""
    from effdense.tools.benchmarks.training_peer import build_peer

    images = 2 if settings.quick else IMAGES
    case = Case("lite0", 128 if settings.quick else SIZE, batch_size, images // batch_size)
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        root = write_photos(folder / "voc", images, boxes)
        peer = build_peer(root, NAMES, case.arch, case.size, batch_size, device="cpu", amp=False)
        weights = same_weights(case, peer, folder)
        calls: dict[str, Callable[[], object]] = {PEER: peer.epoch}
        for label, amp in OURS.items():
            config = our_config(case, root, "cpu", weights, {"amp": amp})
            run = running.enter_context(our_run(config, Path(tempfile.mkdtemp(dir=folder)) / "run"))
            check_same_step(run, peer)
            calls[label] = our_epoch(run)
        samples = alternate(calls, repeats=settings.rounds(3), warmup=1, keeping=[PEER, *OURS])
    return {label: images / statistics.median(seconds) for label, seconds in samples.items()}


def _lines(xs: tuple[int, ...], rates: list[dict[str, float]]) -> list[Line]:
    return [Line(label, xs, tuple(rate[label] for rate in rates)) for label in (PEER, *OURS)]


CURVES = (
    Curve("training", f"training, lite0 {SIZE} px, batch 8: boxes", "boxes an image", "images/s", by_boxes),
    Curve("training-batch", f"training, lite0 {SIZE} px: batch", "images in a batch", "images/s", by_batch),
)
