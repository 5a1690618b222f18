"""Measure effdense beside its peers, part by part, and write the table of docs/benchmarks.md.

    python tools/bench.py                                             # every part; takes tens of minutes
    python tools/bench.py --parts inference loss --device cuda
    python tools/bench.py --curves --write docs/benchmarks.md         # how cost grows, with a figure

Both sides of a part get the same weights, data and threads, run in turn in one process, and must give the same results
before they are timed; where they do not, the command fails. Ratios are medians over rounds, with quartiles.
"""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import datetime
import gc
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.errors import UserError
from effdense.tools.benchmarks.document import check_markers, replace_section
from effdense.tools.benchmarks.parts import find_curves, find_parts
from effdense.tools.benchmarks.rows import BenchSettings, Unequal

R = TypeVar("R")
Measures = Callable[[BenchSettings], R]


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print, write; 1 where ours and a peer's results differ."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    description = (__doc__ or "").splitlines()[0]
    settings = parse(BenchSettings, arguments, prog="bench", description=description).config
    if settings.write is not None:
        check_writing(settings, settings.write)
    if settings.device == "cuda":
        require_gpu()
    command = shlex.join(["python", "tools/bench.py", *arguments])
    return show_curves(settings, command) if settings.curves else show_parts(settings, command)


def check_writing(settings: BenchSettings, path: Path) -> None:
    """Refuse, before anything is measured, what would leave a wrong table behind.

    Raises:
        UserError: a table of a few parts or of a quick run, or a file without markers.
    """
    for flag, given in (("--parts", settings.parts), ("--quick", settings.quick)):
        if given:
            raise UserError(
                f"--write replaces the whole table, and {flag} would leave less of it: leave one of them out"
            )
    check_markers(path, section(settings))


def section(settings: BenchSettings) -> str:
    """Return the name of the document's section for these settings: cpu, cuda, curves cpu or curves cuda."""
    return f"curves {settings.device}" if settings.curves else settings.device


def require_gpu() -> None:
    """Refuse --device cuda where there is no GPU.

    Raises:
        UserError: says so.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; leave the flag out, or run where there is one")


def show_parts(settings: BenchSettings, command: str) -> int:
    """Measure the parts, print their table, write it where asked for; return the exit code."""
    from effdense.tools.benchmarks.table import markdown_table, rich_table

    parts = find_parts(settings.parts)
    found, failed = measure({one.name: one.run for one in parts if settings.device in one.devices}, settings)
    measured = [(part, found[part.name]) for part in parts if part.name in found]
    if measured:
        print_one(rich_table(measured, f"effdense beside its peers, {where(settings)}"))
    if failed:
        return complain(failed)
    if settings.write is not None:
        write(settings, command, markdown_table(measured))
    return 0


def show_curves(settings: BenchSettings, command: str) -> int:
    """Measure the curves, print their tables, write them and the figure where asked for; return the exit code."""
    from effdense.tools.benchmarks.figure import draw_curves
    from effdense.tools.benchmarks.table import curve_table, rich_curve

    curves = find_curves(settings.parts)
    found, failed = measure({one.name: one.run for one in curves if settings.device in one.devices}, settings)
    measured = [(curve, found[curve.name]) for curve in curves if curve.name in found]
    for curve, lines in measured:
        print_one(rich_curve(curve, lines))
    if settings.figure is not None and measured:
        draw_curves(measured, settings.figure, where(settings))
        print(f"wrote {settings.figure}")
    if failed:
        return complain(failed)
    if settings.write is not None and measured:
        name = "curves.png" if settings.device == "cpu" else f"curves_{settings.device}.png"
        picture = settings.write.parent / "images" / name
        draw_curves(measured, picture, where(settings))
        tables = [curve_table(curve, lines) for curve, lines in measured]
        write(settings, command, "\n\n".join([f"![How cost grows](images/{name})", *tables]))
        print(f"wrote {picture}")
    return 0


def measure(runs: Mapping[str, Measures[R]], settings: BenchSettings) -> tuple[dict[str, R], list[str]]:
    """Run parts or curves one after the other.

    Args:
        runs: names to what measures.
        settings: what they are told.

    Returns:
        What each measured, and a sentence for each whose results are not the peer's.

    Raises:
        UserError: nothing is left to measure on this device.
    """
    import cv2
    import torch

    if not runs:
        raise UserError(f"none of these measures anything on {settings.device}; choose others, or another --device")
    found: dict[str, R] = {}
    failed = []
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        for name, run in runs.items():
            torch.set_num_threads(settings.threads)
            cv2.setNumThreads(settings.threads)
            started = time.perf_counter()
            with warnings.catch_warnings():
                # effdet scripts what it imports, and torchvision decodes, by ways that have been deprecated
                warnings.filterwarnings("ignore", message=r".*torch\.jit|.*decoding and encoding capabilities")
                try:
                    found[name] = run(settings)
                except Unequal as error:
                    failed.append(f"{name}: {error}")
            gc.collect()  # a part's models and their threads end before the next part begins
            say(f"{name}: {time.perf_counter() - started:.0f} s")
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
    return found, failed


def write(settings: BenchSettings, command: str, content: str) -> None:
    """Put what was measured into the document, with what it was measured on, when and how."""
    from effdense.tools.benchmarks.machine import versions

    assert settings.write is not None
    head = f"Printed by `{command}` on {datetime.date.today().isoformat()}. Machine: {where(settings)}. {versions()}."
    replace_section(settings.write, section(settings), f"{head}\n\n{content}")
    print(f"wrote {settings.write}")


def where(settings: BenchSettings) -> str:
    """Return what it is measured on."""
    from effdense.tools.benchmarks.machine import machine

    return machine(settings.device, settings.threads)


def complain(failed: Sequence[str]) -> int:
    """Say which results differ; return the exit code."""
    for sentence in failed:
        say(f"DIFFERENT RESULTS, no ratio: {sentence}")
    return 1


def say(text: str) -> None:
    """Write a line that is no result."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_one(table: object) -> None:
    """Print a table."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no edge to wrap at
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
