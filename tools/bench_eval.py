"""Time COCO evaluation from files to numbers: hotcoco's way against pycocotools', on synthetic detections.

    python tools/bench_eval.py                                    # 5,000 images, 500,000 detections; takes minutes
    python tools/bench_eval.py --images 200 --detections 20000

The data are drawn from a fixed seed: objects of 80 classes at COCO's density (36,000 on 5,000 images), detections that
are shaken copies of objects or false. Both ways read the same two files, and must give the same twelve numbers.
"""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.errors import UserError
from effdense.tasks.detection.metrics.coco_metrics import coco_metrics
from effdense.tasks.detection.metrics.tables import DetectionTable

CLASSES = 80
SIDE = 640.0
"""Width and height of each image, in pixels."""


def write_case(folder: Path, images: int, detections: int, seed: int = 0) -> tuple[Path, Path]:
    """Write ground truth and detections; return their files."""
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


def time_hotcoco(truth: Path, found: Path) -> tuple[float, list[float]]:
    """Return seconds and the twelve numbers of `coco_metrics` with its default backend."""
    started = time.perf_counter()
    result = coco_metrics(truth, found)
    seconds = time.perf_counter() - started
    return seconds, [-1.0 if value != value else value for value in result.metrics.values()]


def time_pycocotools(truth: Path, found: Path) -> tuple[float, list[float]]:
    """Return seconds and the twelve numbers of pycocotools as its users call it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(str(truth))
        evaluation = COCOeval(objects, objects.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return time.perf_counter() - started, [float(value) for value in evaluation.stats]


@dataclass(frozen=True)
class BenchConfig:
    """How large a case."""

    images: int = 5_000
    """Images of the synthetic data set."""
    detections: int = 500_000
    """Detections to score."""
    repeats: int = 3
    """Runs of the quick way, of which the median counts; the slow one runs once."""

    def __post_init__(self) -> None:
        for name in ("images", "detections", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 1 or more")


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Run both and print a line each; 1 where the numbers differ."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(BenchConfig, arguments, prog="bench_eval", description=(__doc__ or "").splitlines()[0]).config
    with tempfile.TemporaryDirectory() as folder:
        truth, found = write_case(Path(folder), config.images, config.detections)
        print(f"{config.images} images, {config.detections} detections, {found.stat().st_size / 1e6:.1f} MB of JSON")
        runs = [time_hotcoco(truth, found) for _ in range(config.repeats)]
        quick, numbers = float(np.median([seconds for seconds, _ in runs])), runs[0][1]
        print(f"hotcoco      {quick:8.2f} s  AP {numbers[0]:.6f}", flush=True)
        slow, reference = time_pycocotools(truth, found)
        print(f"pycocotools  {slow:8.2f} s  AP {reference[0]:.6f}")
    same = numbers == reference
    print(f"{slow / quick:.1f} times as fast; the twelve numbers are {'the same' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
