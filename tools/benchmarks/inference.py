"""From an image to boxes: ours in PyTorch and exported, beside effdet's `DetBenchPredict` with the same weights.

The weights are random. So that scores spread as after a training, the last layer of the class head is stretched, on
both sides alike, until some hundreds of pairs of anchor and class score above 0.001; a second case leaves all of them
near 0.01, where an untrained head puts them, which is the worst there is for selecting candidates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from effdense.tools.benchmarks.checks import check_close
from effdense.tools.benchmarks.exports import REST, open_exported
from effdense.tools.benchmarks.rows import BenchSettings, Part, Row, row
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser
from effdense.types import UInt8

if TYPE_CHECKING:
    from effdense.tasks.detection.predict import Detector

CLASSES = 90
CANDIDATES = 500
"""Pairs of anchor and class above 0.001 in an image, in the usual case."""
FILE_HW = (480, 640)
"""Height and width of the image file."""
PYTORCH = "PyTorch"


def run(settings: BenchSettings) -> list[Row]:
    """Measure D0 from an array, as after a training and at its worst, and lite0 from a file."""
    with tempfile.TemporaryDirectory() as folder:
        rows = array_rows(settings, Path(folder), CANDIDATES)
        rows += array_rows(settings, Path(folder), None)
        return rows + file_rows(settings, Path(folder))


def array_rows(settings: BenchSettings, folder: Path, candidates: int | None) -> list[Row]:
    """Measure D0 at batch 1, from an array that fills the input to boxes.

    Args:
        settings: of the run.
        folder: for files.
        candidates: see `detector_pair`; None is the worst case, without a target.
    """
    from effdense.tasks.detection.export import export_detector
    from effdense.tools.benchmarks.effdet_peer import check_detections, detector_pair
    from effdense.tools.benchmarks.scenes import scene

    size = 128 if settings.quick else 512
    image = scene(size, size)
    ours, peer = detector_pair("d0", size, CLASSES, image[None], candidates=candidates, device=settings.device)
    theirs = peer.boxes_of_array(image[None])[0]
    case = f"D0, {size} px" if candidates else f"D0, {size} px, all scores near 0.01"
    share = check_detections(
        f"{case}, {PYTORCH}", ours.predict(image), theirs, **_tolerance(settings.device, settings.device != "cpu")
    )
    calls: dict[str, Callable[[], object]] = {PYTORCH: partial(ours.predict, image)}
    notes = {PYTORCH: _equal(share, len(theirs))}
    if candidates:  # files of both precisions take a while to make; the worst case is about the selection
        for way, exported in open_exported(
            export_detector, ours, _new(folder, "array"), device=settings.device, threads=settings.threads
        ).items():
            rough, found = way.precision != "float32", exported.predict(image)
            share = check_detections(f"{case}, {way.label}", found, theirs, **_tolerance("cpu", rough))
            calls[way.label] = partial(exported.predict, image)
            notes[way.label] = _nearly(share) if rough else _equal(share, len(theirs))
    targets = {label: (2.0 if label == PYTORCH else 4.0) if candidates else None for label in calls}
    return _timed(settings, case, calls, lambda: peer.boxes_of_array(image[None]), targets, notes, 30)


def file_rows(settings: BenchSettings, folder: Path) -> list[Row]:
    """Measure lite0 from a JPEG to boxes in its pixels; effdet decodes and fits it with PIL."""
    from effdense.tasks.detection.export import export_detector
    from effdense.tools.benchmarks.effdet_peer import check_detections, detector_pair
    from effdense.tools.benchmarks.scenes import scene, write_jpeg

    size = 128 if settings.quick else 320
    path = write_jpeg(folder / "image.jpg", scene(*FILE_HW))
    padded, content = _as_effdet_sees_it(path, size)
    ours, peer = detector_pair("lite0", size, CLASSES, padded[None], candidates=CANDIDATES, device=settings.device)
    theirs = peer.boxes_of_file(path)[0]
    theirs[:, :4] *= content.shape[1] / FILE_HW[1]  # into the pixels that both sides are given for the check
    case = f"lite0, {size} px, a JPEG of {FILE_HW[1]}x{FILE_HW[0]}"
    calls: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    for label, model, rough in [
        (PYTORCH, ours, settings.device != "cpu"),
        *(
            (way.label, exported, way.precision != "float32")
            for way, exported in open_exported(
                export_detector, ours, _new(folder, "file"), device=settings.device, threads=settings.threads
            ).items()
        ),
    ]:
        share = check_detections(f"{case}, {label}", model.predict(content), theirs, **_tolerance("cpu", rough))
        calls[label] = partial(model.predict, path)
        notes[label] = _nearly(share) if rough else _equal(share, len(theirs))
    apart = f"; from the file PIL's and OpenCV's pixels are {_apart(ours, path, padded):.1f} grey levels apart"
    notes = {label: f"{note} for the same pixels{apart}" for label, note in notes.items()}
    targets = {label: None if label == PYTORCH else 6.0 for label in calls}
    return _timed(settings, case, calls, lambda: peer.boxes_of_file(path), targets, notes, 40)


def _as_effdet_sees_it(path: Path, size: int) -> tuple[UInt8, UInt8]:
    """Return what effdet's transform makes of an image file, (S, S, 3), and the part of it that is image."""
    import numpy as np
    from PIL import Image

    from effdense.tasks.detection.specs import get_spec
    from effdense.tools.benchmarks.effdet_peer import fitting
    from effdense.transforms.geometry import resized_size

    image = Image.open(path).convert("RGB")
    height, width = resized_size(image.size[::-1], (size, size))
    pixels = fitting(size, get_spec("lite0").mean)(image, {})[0]
    padded = np.ascontiguousarray(np.moveaxis(pixels, 0, 2))
    return padded, np.ascontiguousarray(padded[:height, :width])


def _apart(ours: Detector, path: Path, padded: UInt8) -> float:
    """Return by how many grey levels our pixels of an image file differ from effdet's, on average.

    Raises:
        Unequal: by so many that one of the two looks at something else.
    """
    import numpy as np

    from effdense.datasets.image_inputs import as_sample

    pixels = ours.transform(as_sample(path), np.random.default_rng(0)).image
    check_close("pixels of the resized image, on average", pixels.mean(), padded.mean(), 0.02)
    return float(np.abs(pixels.astype(np.float32) - padded).mean())


def _timed(
    settings: BenchSettings,
    case: str,
    calls: dict[str, Callable[[], object]],
    peer: Callable[[], object],
    targets: dict[str, float | None],
    notes: dict[str, str],
    rounds: int,
) -> list[Row]:
    """Run all ways and the peer in turn; return a row a way."""
    samples = alternate(
        {**calls, "peer": peer},
        repeats=settings.rounds(rounds),
        warmup=1 if settings.quick else 3,
        synchronise=synchroniser(settings.device),
        rest=REST,
    )
    return [
        row(
            f"{case}, {label}",
            Ratio.of(samples[label], samples["peer"]),
            target=targets[label],
            note=notes[label],
        )
        for label in calls
    ]


def _tolerance(device: str, rough: bool) -> dict[str, float]:
    """Return when a detection counts as the peer's; on a GPU and in bfloat16 products have fewer digits."""
    if rough:
        return {"least": 0.5, "pixels": 8.0, "score": 0.15, "above": 0.05}
    return {"least": 0.97 if device == "cpu" else 0.9}


def _equal(share: float, count: int) -> str:
    return "the same detections" if share == 1 else f"{share:.0%} of {count} detections the same"


def _nearly(share: float) -> str:
    return f"{share:.0%} of detections above 0.05 within 8 px and 0.15 of score (random weights)"


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


PART = Part("inference", "image to boxes, batch 1", "effdet 0.4.1 DetBenchPredict", run, ("cpu", "cuda"))
