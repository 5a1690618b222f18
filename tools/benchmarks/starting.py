"""How long a tool takes to say what it can do.

effdet's train.py is not in its wheel, hence not installed. What stands for it is what the script imports before it
reads its arguments: torch, torchvision, timm's models, optimizers and schedules, and effdet.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import effdense
from effdense.tools.benchmarks.rows import BenchSettings, Part, Row, Unequal, row
from effdense.tools.benchmarks.timing import Ratio, alternate

TARGET = 1.0
"""Seconds that a tool may take."""
_ROOT = Path(effdense.__file__).resolve().parents[1]
"""From where effdense is found, installed or not."""
PEER = (
    "import argparse, torch, torchvision.utils, timm.models, timm.utils, timm.optim, timm.scheduler, effdet\n"
    "argparse.ArgumentParser().parse_args(['--help'])"
)


def run(settings: BenchSettings) -> list[Row]:
    """Measure the help of the training tool."""
    ours, peer = _command("-m", "effdense", "train-det", "--help"), _command("-W", "ignore", "-c", PEER)
    for name, call in (("effdense", ours), ("effdet", peer)):
        if "--help" not in call():
            raise Unequal(f"{name}: no help was printed")
    samples = alternate({"ours": ours, "peer": peer}, repeats=settings.rounds(7), warmup=0)
    found = row(
        "effdense train-det --help",
        Ratio.of(samples["ours"], samples["peer"]),
        unit="s",
        note="the peer is what effdet's train.py imports before it reads its arguments; the script is not in the wheel",
    )
    return [replace(found, target=TARGET, target_is="most")]


def _command(*arguments: str) -> Callable[[], str]:
    def call() -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=_ROOT).stdout

    return call


PART = Part("starting", "from the command to its help", "effdet 0.4.1's train.py, its imports alone", run)
