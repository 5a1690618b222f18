"""How much memory a data set and its worker processes take: run as a command in a process of its own.

``python -m effdense.tools.benchmarks.worker_memory ours|torchvision FILE WORKERS`` opens a COCO file, forks workers,
has each read the labels of its share of the images, and prints JSON: MiB that the workers have to themselves, and MiB
of all processes with what they share counted once, and how many labels they read. Linux only.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """What processes hold.

    Attributes:
        private_mib: pages that only one of the workers has, summed over the workers (USS).
        total_mib: of the workers and their parent, what they share counted once (PSS).
        labels: how many the workers read.
    """

    private_mib: float
    total_mib: float
    labels: int


def measure_memory(kind: str, path: Path, workers: int) -> Memory:
    """Return the memory of worker processes that have read the labels of their images.

    Args:
        kind: ``ours`` or ``torchvision``; ``nothing`` opens no data set, and says what the imports take.
        path: annotation file.
        workers: how many.
    """
    command = [sys.executable, "-m", "effdense.tools.benchmarks.worker_memory", kind, str(path), str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Memory(**json.loads(done.stdout))


def _opened(kind: str, path: Path) -> tuple[int, Callable[[int], int]]:
    """Return how many images there are, and what reads the labels of one and counts them.

    Both libraries are imported for each.
    """
    from torchvision.datasets import CocoDetection

    from effdense.datasets.coco import open_coco
    from effdense.types import Sample

    if kind == "nothing":
        return 0, int
    if kind == "torchvision":
        with contextlib.redirect_stdout(io.StringIO()):
            data = CocoDetection(str(path.parent), str(path))
        return len(data), lambda position: len(data._load_target(data.ids[position]))
    import numpy as np

    index = open_coco(None, "train", annotations=path, images=path.parent)
    sample = Sample(image=np.zeros((1, 1, 3), np.uint8))
    return len(index), lambda position: len(index.annotated(sample, position).labels)


def fork_and_measure(kind: str, path: Path, workers: int) -> Memory:
    """Return what ``measure_memory`` does, of this process and its children; arguments as there."""
    count, read = _opened(kind, path)
    processes = []
    for worker in range(workers):
        ready, finish = os.pipe(), os.pipe()
        process = os.fork()
        if process == 0:
            labels = sum(read(position) for position in range(worker, count, workers))
            os.write(ready[1], labels.to_bytes(8, "little"))
            os.read(finish[0], 1)
            os._exit(0)
        processes.append((process, ready[0], finish[1]))
    labels = sum(int.from_bytes(os.read(ready_end, 8), "little") for _, ready_end, _ in processes)
    private = sum(_mib(process, "Private_Clean") + _mib(process, "Private_Dirty") for process, _, _ in processes)
    total = sum(_mib(process, "Pss") for process in (os.getpid(), *(process for process, _, _ in processes)))
    for process, _, finish_end in processes:
        os.write(finish_end, b"1")
        os.waitpid(process, 0)
    return Memory(private, total, labels)


def _mib(process: int, name: str) -> float:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    found = re.search(rf"^{name}: +(\d+) kB$", text, re.MULTILINE)
    assert found is not None, f"{name} is not in smaps_rollup"
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(fork_and_measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])).__dict__))
