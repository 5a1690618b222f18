"""COCO's twelve numbers from files: hotcoco's way, which is ours, beside pycocotools', on synthetic detections.

The data are drawn from a fixed seed: objects of 80 classes at COCO's density (36,000 on 5,000 images), detections that
are shaken copies of objects or false. Both ways read the same two files, and must give the same twelve numbers.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from functools import partial
from pathlib import Path

from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line, Part, Row, Unequal, row
from effdense.tools.benchmarks.timing import Ratio, alternate

CLASSES = 80
SIDE = 640.0
"""Width and height of each image, in pixels."""
QUICK_CASE = (50, 500)
"""Images and detections."""
SIZES = (1_000, 10_000, 100_000, 1_000_000)
PATIENCE = 20.0
"""Seconds that the peer may take for a point of the curve, as far as the point before can say."""
_DETECTIONS_AN_IMAGE = 100


def write_case(folder: Path, images: int, detections: int, seed: int = 0) -> tuple[Path, Path]:
    """Write ground truth and detections; return their files."""
    import numpy as np

    from effdense.tasks.detection.metrics.tables import DetectionTable

    rng = np.random.default_rng(seed)
    objects = max(1, round(7.2 * images))
    image_ids = rng.integers(1, images + 1, objects)
    category_ids = np.minimum(rng.geometric(0.06, objects), CLASSES)  # a few classes have most objects, as in COCO
    sizes = np.exp(rng.uniform(np.log(8), np.log(400), (objects, 2)))
    boxes = np.concatenate([rng.random((objects, 2)) * np.maximum(SIDE - sizes, 1), sizes], axis=1).round(2)
    crowd = rng.random(objects) < 0.01
    rows = zip(image_ids.tolist(), category_ids.tolist(), boxes.tolist(), crowd.tolist(), strict=True)
    truth = {
        "images": [
            {"id": n, "width": int(SIDE), "height": int(SIDE), "file_name": f"{n:012d}.jpg"}
            for n in range(1, images + 1)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": int(many)}
            for n, (i, c, b, many) in enumerate(rows, start=1)
        ],
    }
    near = rng.integers(0, objects, detections)
    false = rng.random(detections) < 0.6
    shaken = boxes[near] + boxes[near][:, [2, 3, 2, 3]] * rng.normal(0, 0.12, (detections, 4))
    shaken[:, 2:] = np.maximum(np.abs(shaken[:, 2:]), 1.0)
    shaken[false, :2] = rng.random((int(false.sum()), 2)) * SIDE
    table = DetectionTable(
        np.where(false, rng.integers(1, images + 1, detections), image_ids[near]),
        np.where(false, rng.integers(1, CLASSES + 1, detections), category_ids[near]),
        shaken.round(2),
        np.where(false, rng.beta(1, 6, detections), rng.beta(3, 3, detections)).round(5),
    )
    (folder / "truth.json").write_text(json.dumps(truth))
    table.to_json(folder / "found.json")
    return folder / "truth.json", folder / "found.json"


def ours(truth: Path, found: Path) -> list[float]:
    """Return the twelve numbers of `coco_metrics` with its default backend."""
    from effdense.tasks.detection.metrics.coco_metrics import coco_metrics

    return [-1.0 if value != value else value for value in coco_metrics(truth, found).metrics.values()]


def peer(truth: Path, found: Path) -> list[float]:
    """Return the twelve numbers of pycocotools as its users call it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(str(truth))
        evaluation = COCOeval(objects, objects.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def run(settings: BenchSettings) -> list[Row]:
    """Compare the numbers on a small case, then time the large one.

    Raises:
        Unequal: the twelve numbers differ.
    """
    images, detections = QUICK_CASE if settings.quick else (5_000, 500_000)
    with tempfile.TemporaryDirectory() as folder:
        check_same_numbers(*write_case(Path(folder), *QUICK_CASE))
        samples, ap = measure(Path(folder), images, detections, settings.rounds(3))
    note = f"the same twelve numbers, AP {ap:.4f}"
    ratio = Ratio.of(samples["ours"], samples["peer"])
    return [row(f"{images:,} images, {detections:,} detections", ratio, target=50.0, unit="s", note=note)]


def check_same_numbers(truth: Path, found: Path) -> None:
    """See that both give the same twelve numbers.

    Raises:
        Unequal: they do not.
    """
    _compare(ours(truth, found), peer(truth, found))


def measure(folder: Path, images: int, detections: int, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds that both take for a case, and its AP; the numbers that were timed are compared, too.

    Raises:
        Unequal: the twelve numbers differ.
    """
    truth, found = write_case(folder, images, detections)
    numbers: dict[str, list[float]] = {}
    calls = {
        "ours": lambda: numbers.__setitem__("ours", ours(truth, found)),
        "peer": lambda: numbers.__setitem__("peer", peer(truth, found)),
    }
    samples = alternate(calls, repeats=rounds, warmup=0)
    _compare(numbers["ours"], numbers["peer"])
    return samples, numbers["peer"][0]


def _compare(mine: list[float], theirs: list[float]) -> None:
    if mine != theirs:
        raise Unequal(f"the twelve numbers: {mine}, the peer's {theirs}")


def by_detections(settings: BenchSettings) -> list[Line]:
    """Return seconds to score files of growing size; the peer goes as far as it takes less than `PATIENCE`."""
    sizes = SIZES[:1] if settings.quick else SIZES
    seconds: dict[str, list[float]] = {"effdense": [], "pycocotools": []}
    patient = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_same_numbers(*write_case(folder, *QUICK_CASE))
        for size in sizes:
            images = max(1, size // _DETECTIONS_AN_IMAGE)
            if patient:
                samples, _ = measure(folder, images, size, 1 if settings.quick else 2)
                seconds["pycocotools"].append(min(samples["peer"]))
                patient = 10 * min(samples["peer"]) < PATIENCE
            else:
                files = write_case(folder, images, size)
                samples = alternate({"ours": partial(ours, *files)}, repeats=2, warmup=0)
            seconds["effdense"].append(min(samples["ours"]))
    return [Line(label, sizes[: len(values)], tuple(values)) for label, values in seconds.items()]


PART = Part("evaluation", "COCO evaluation, files to numbers", "pycocotools", run)
CURVES = (Curve("evaluation", "COCO evaluation, 100 detections an image", "detections", "s", by_detections),)
