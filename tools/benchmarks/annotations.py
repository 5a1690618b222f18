"""Opening COCO annotations and what they cost in memory, beside torchvision; and how both grow with the data set."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effdense.tools.benchmarks.checks import check_close
from effdense.tools.benchmarks.coco_files import write_coco
from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line, Part, Row, amount, row
from effdense.tools.benchmarks.timing import Ratio, alternate
from effdense.tools.benchmarks.worker_memory import measure_memory

if TYPE_CHECKING:
    from effdense.datasets.index import DetectionIndex

IMAGES, OBJECTS = 118_000, 860_000
"""As many as COCO train2017 has."""
WORKERS = 8
FASTER, SMALLER = 5.0, 5.0
SIZES = (1_000, 10_000, 100_000, 1_000_000)
LEAST_MIB = 1.0
_OBJECTS_AN_IMAGE = 7


def run(settings: BenchSettings) -> list[Row]:
    """Measure files with boxes alone and files with polygons, too, as COCO's own are."""
    images, objects = (200, 1_500) if settings.quick else (IMAGES, OBJECTS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, polygons in {"boxes": False, "boxes and polygons": True}.items():
            path = Path(folder) / "instances.json"
            write_coco(path, images, objects, polygons=polygons)
            case = f"{images:,} images, {objects:,} {what}"
            note = f"{path.stat().st_size / 1e6:,.0f} MB of JSON; same boxes, bit for bit"
            if polygons:
                note += "; the peer keeps the polygons, ours, for boxes, reads past them"
            ratio = measure(settings, path, 3 if polygons else 7)
            rows.append(row(f"reading {case}", ratio, target=FASTER, unit="s", note=note))
            rows += _memory(path, case)
    return rows


def measure(settings: BenchSettings, path: Path, rounds: int) -> Ratio:
    """Return the ratio of the times to open a file.

    Raises:
        Unequal: the boxes differ.
    """
    check_same_boxes(_ours(path), _peer(path))  # which also warms up
    samples = alternate(
        {"ours": lambda: _ours(path), "peer": lambda: _peer(path)}, repeats=settings.rounds(rounds), warmup=0
    )
    return Ratio.of(samples["ours"], samples["peer"])


def check_same_boxes(ours: DetectionIndex, theirs: Any) -> None:
    """See that both have the same boxes of the same images.

    Raises:
        Unequal: they do not.
    """
    objects = theirs.coco.dataset["annotations"]
    order = np.argsort(ours.annotation_ids)
    check_close("boxes", ours.boxes_written_xywh[order], np.array([one["bbox"] for one in objects]).reshape(-1, 4))
    check_close("images", ours.image_ids[ours.image_rows[order]], np.array([one["image_id"] for one in objects]))


def _memory(path: Path, case: str) -> list[Row]:
    if not Path("/proc/self/smaps_rollup").exists():
        return []
    nothing, ours, peer = (measure_memory(kind, path, WORKERS) for kind in ("nothing", "ours", "torchvision"))
    check_close("labels that the workers read", ours.labels, peer.labels)
    imports = f"{nothing.total_mib:,.0f} MiB of which are the imports"
    return [
        amount(
            f"{WORKERS} workers and their parent, {case}",
            ours.total_mib,
            peer.total_mib,
            unit="MiB",
            target=SMALLER,
            note=f"shared pages counted once (PSS), after each worker read the labels of its images; {imports}",
        ),
        amount(
            f"{WORKERS} workers alone, {case}",
            ours.private_mib,
            peer.private_mib,
            unit="MiB",
            note=f"pages that a worker has to itself (USS); {nothing.private_mib:,.0f} MiB without a data set",
        ),
    ]


def _ours(path: Path) -> DetectionIndex:
    from effdense.datasets.coco import open_coco

    return open_coco(None, "train", annotations=path, images=path.parent)


def _peer(path: Path) -> Any:
    from torchvision.datasets import CocoDetection

    with contextlib.redirect_stdout(io.StringIO()):
        return CocoDetection(str(path.parent), str(path))


def reading_by_size(settings: BenchSettings) -> list[Line]:
    """Return seconds to open files of growing size, with polygons."""
    seconds: dict[str, list[float]] = {"effdense": [], "torchvision": []}
    sizes = _sizes(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        for size in sizes:
            write_coco(path, max(1, size // _OBJECTS_AN_IMAGE), size, polygons=True)
            ratio = measure(settings, path, 3)
            seconds["effdense"].append(ratio.ours)
            seconds["torchvision"].append(ratio.peer)
    return [Line(label, sizes, tuple(values)) for label, values in seconds.items()]


def memory_by_size(settings: BenchSettings) -> list[Line]:
    """Return the memory of eight workers and their parent beyond that of the imports, for files of growing size.

    What is less than `LEAST_MIB` cannot be told from the imports, and is drawn there.

    Raises:
        Unequal: the workers read different numbers of labels.
    """
    lines: dict[str, list[float]] = {"ours": [], "torchvision": []}
    sizes = _sizes(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        imports = measure_memory("nothing", path, WORKERS).total_mib
        for size in sizes:
            write_coco(path, max(1, size // _OBJECTS_AN_IMAGE), size, polygons=False)
            found = {kind: measure_memory(kind, path, WORKERS) for kind in lines}
            check_close("labels that the workers read", found["ours"].labels, found["torchvision"].labels)
            for kind, values in lines.items():
                values.append(max(LEAST_MIB, found[kind].total_mib - imports))
    names = {"ours": "effdense", "torchvision": "torchvision"}
    return [Line(names[kind], sizes, tuple(values)) for kind, values in lines.items()]


def _sizes(settings: BenchSettings) -> tuple[int, ...]:
    return SIZES[:1] if settings.quick else SIZES


PART = Part("annotations", "opening COCO annotations, and their memory", "torchvision's CocoDetection", run)
CURVES = (
    Curve("annotations", "opening COCO annotations with polygons", "annotations", "s", reading_by_size),
    Curve(
        "memory",
        f"memory of {WORKERS} workers beyond the imports, at least {LEAST_MIB:g}",
        "annotations",
        "MiB",
        memory_by_size,
    ),
)
