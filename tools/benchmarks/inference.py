"""From an image to boxes: ours in PyTorch and exported, beside effdet's `DetBenchPredict` with the same weights.

The weights are random. So that scores spread as after a training, the last layer of the class head is stretched, on
both sides alike, until some hundreds of pairs of anchor and class score above 0.001, in a few classes; a second case
leaves all of them near 0.01, where an untrained head puts them, which is the worst there is for selecting candidates.

The targets belong to the peer as its documents run it. D0 stands beside it through ``torch.jit.script`` too, which
cannot take effdet's lite networks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from effdense.tools.benchmarks.checks import check_close
from effdense.tools.benchmarks.exports import KEEPING, PYTORCH, REST, Form, every_digit, forms_of
from effdense.tools.benchmarks.rows import BenchSettings, Part, Row, row
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser
from effdense.types import Float32, UInt8

if TYPE_CHECKING:
    from effdense.tasks.detection.predict import Detector

CLASSES = 90
CANDIDATES = 500
"""Pairs of anchor and class above 0.001 in an image, in the usual case."""
FILE_HW = (480, 640)
"""Height and width of the image file."""
SCRIPTED = "DetBenchPredict through torch.jit.script"

Boxes = Callable[[], Float32]
"""Runs a peer on one image: (1, 100, 6)."""


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
        candidates: see `detector_pair`; None is the worst case, without a target and in PyTorch alone.
    """
    from effdense.tools.benchmarks.effdet_peer import detector_pair, scripted
    from effdense.tools.benchmarks.scenes import scene

    size = 128 if settings.quick else 512
    image = scene(size, size)
    ours, peer = detector_pair("d0", size, CLASSES, image[None], candidates=candidates, device=settings.device)
    case = f"D0, {size} px" if candidates else f"D0, {size} px, all scores near 0.01"
    forms = _forms(ours, _new(folder, "array"), settings) if candidates else {PYTORCH: Form(ours, ours)}
    peers = {"": peer, SCRIPTED: scripted(peer, image[None])}
    timed: dict[str, Boxes] = {name: partial(one.boxes_of_array, image[None]) for name, one in peers.items()}
    notes = _checked(case, forms, image, timed)
    targets: dict[str, float | None] = dict.fromkeys(forms, 4.0 if candidates else None)
    targets |= {PYTORCH: 2.0 if candidates else None, KEEPING: None}
    calls = {label: partial(form.timed.predict, image) for label, form in forms.items()}
    return _timed(settings, case, calls, timed, targets, notes, 30)


def file_rows(settings: BenchSettings, folder: Path) -> list[Row]:
    """Measure lite0 from a JPEG to boxes in its pixels; effdet decodes and fits it with PIL."""
    from effdense.tools.benchmarks.effdet_peer import detector_pair
    from effdense.tools.benchmarks.scenes import scene, write_jpeg

    size = 128 if settings.quick else 320
    path = write_jpeg(folder / "image.jpg", scene(*FILE_HW))
    padded, content = _as_effdet_sees_it(path, size)
    ours, peer = detector_pair("lite0", size, CLASSES, padded[None], candidates=CANDIDATES, device=settings.device)
    case = f"lite0, {size} px, a JPEG of {FILE_HW[1]}x{FILE_HW[0]}"
    forms = _forms(ours, _new(folder, "file"), settings)

    def in_pixels_of_content() -> Float32:
        found = peer.boxes_of_file(path)
        found[..., :4] *= content.shape[1] / FILE_HW[1]
        return found

    notes = _checked(case, forms, content, {"": in_pixels_of_content})
    apart = f"for the same pixels; those that PIL and OpenCV resize differ by {_apart(ours, path, padded):.1f} of 255"
    notes = {label: f"{note} ({apart})" for label, note in notes.items()}
    targets: dict[str, float | None] = {**dict.fromkeys(forms, 6.0), PYTORCH: None, KEEPING: None}
    calls = {label: partial(form.timed.predict, path) for label, form in forms.items()}
    return _timed(settings, case, calls, {"": partial(peer.boxes_of_file, path)}, targets, notes, 40)


def _forms(ours: Detector, folder: Path, settings: BenchSettings) -> dict[str, Form]:
    from effdense.tasks.detection.export import export_detector

    return forms_of(ours, export_detector, folder, device=settings.device, threads=settings.threads)


def _checked(case: str, forms: dict[str, Form], image: UInt8, peers: Mapping[str, Boxes]) -> dict[str, str]:
    """Return a note for each form that finds what every peer finds in the same pixels.

    Raises:
        Unequal: one does not.
    """
    from effdense.tools.benchmarks.effdet_peer import check_detections

    notes = {}
    with every_digit():
        expected = [boxes()[0] for boxes in peers.values()]
        for label, form in forms.items():
            found = form.checked.predict(image)
            share = min(check_detections(f"{case}, {label}", found, one, least=0.97) for one in expected)
            same = "the same detections" if share == 1 else f"{share:.0%} of {len(expected[0])} detections the same"
            notes[label] = f"{same}, {form.note}" if form.note else same
    return notes


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
    calls: Mapping[str, Callable[[], object]],
    peers: Mapping[str, Boxes],
    targets: dict[str, float | None],
    notes: dict[str, str],
    rounds: int,
) -> list[Row]:
    """Run all ways and the peers in turn; return a row for each way and peer, the targets beside the first of these."""
    samples = alternate(
        {**calls, **peers},
        repeats=settings.rounds(rounds),
        warmup=1 if settings.quick else 3,
        synchronise=synchroniser(settings.device),
        rest=REST,
        keeping=[KEEPING],
    )
    return [
        row(
            f"{case}, {label}",
            Ratio.of(samples[label], samples[name]),
            target=None if name else targets[label],
            note=notes[label],
            against=name,
        )
        for name in peers
        for label in calls
    ]


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


PART = Part("inference", "image to boxes, batch 1", "effdet 0.4.1 DetBenchPredict", run, ("cpu", "cuda"))
