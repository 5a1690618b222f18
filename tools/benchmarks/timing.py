"""Time several ways of doing the same, in turn, and say how many times as fast one is.

Machines drift: other work comes and goes, clocks change. Hence nothing here compares seconds of two sittings.
`alternate` runs all ways once a round, in an order drawn anew for each round, and `Ratio.of` divides within the
rounds:

    samples = alternate({"ours": ours, "peer": peer}, repeats=20)
    ratio = Ratio.of(samples["ours"], samples["peer"])
    ratio.median, ratio.low, ratio.high          # how many times as fast as the peer, with quartiles

A way is a function without arguments that does one unit of work and leaves everything as it found it, or at least as
ready for the next call (a training step may train). What it needs is made before. It must not print.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from effdense.allocator import give_back_freed_memory, keep_freed_memory

Call = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast (or as small) ours is; above 1 ours is better.

    Attributes:
        median: of the rounds' ratios.
        low: lower quartile of them.
        high: upper quartile of them.
        ours: median of our samples, in their own unit.
        peer: median of the peer's samples, in the same unit.
    """

    median: float
    low: float
    high: float
    ours: float
    peer: float

    @classmethod
    def of(cls, ours: Sequence[float], peer: Sequence[float]) -> Ratio:
        """Return the ratio of samples of which less is better, as seconds or bytes, taken in pairs.

        Raises:
            ValueError: there is no sample, not the same number of both, or one that is not above 0.
        """
        if not ours or len(ours) != len(peer):
            raise ValueError(f"{len(ours)} samples of ours and {len(peer)} of the peer's; they come in pairs")
        if min(*ours, *peer) <= 0:
            raise ValueError(f"a sample of {min(*ours, *peer)} cannot be compared")
        ratios = [theirs / own for own, theirs in zip(ours, peer, strict=True)]
        low, median, high = quartiles(ratios)
        return cls(median, low, high, statistics.median(ours), statistics.median(peer))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def alternate(
    calls: Mapping[str, Call],
    *,
    repeats: int,
    warmup: int = 2,
    synchronise: Call | None = None,
    least_seconds: float = 0.0,
    rest: float = 0.0,
    keeping: Collection[str] = (),
) -> dict[str, list[float]]:
    """Run every call once a round and return the seconds that each took.

    The order of a round is drawn from a fixed seed: in one that only turned, a way would nearly always follow the same
    other, and pay for what that leaves in the caches.

    Args:
        calls: names to functions.
        repeats: rounds that count.
        warmup: rounds before them that do not.
        synchronise: waits until a GPU has done what it was given; runs around every timed call. See `synchroniser`.
        least_seconds: a sample is the mean of as many calls as take this long by the last round of the warm-up; for
            what ends within microseconds.
        rest: seconds to wait before every sample, which then begins with a call that does not count. For ways whose
            threads are not the same ones: those of ONNX Runtime and OpenVINO spin on for a while after a call, and
            whatever runs next has fewer cores. Without this a PyTorch peer takes twice as long as by itself.
        keeping: names of those that run after `effdense.keep_freed_memory`; all others give memory back as glibc does
            by itself. A sample that follows one of the other kind begins with a call that does not count.

    Returns:
        Seconds of one call, `repeats` of each name; those of one round stand at the same place.

    Raises:
        ValueError: no round is asked for, or several calls a sample without a warm-up that says how many.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected 1 or more")
    if least_seconds > 0 and warmup < 1:
        raise ValueError("least_seconds needs a round of warm-up")
    wait = synchronise or _nothing
    times = dict.fromkeys(calls, 1)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    draw, kept = random.Random(0), None
    for number in range(warmup + repeats):
        for name in draw.sample(list(calls), len(calls)):
            switched, kept = kept != (name in keeping), name in keeping
            if switched:
                (keep_freed_memory if kept else give_back_freed_memory)()
            if rest > 0:
                time.sleep(rest)
            if rest > 0 or (switched and keeping):
                calls[name]()
            seconds = _seconds(calls[name], times[name], wait)
            if number >= warmup:
                samples[name].append(seconds)
            elif least_seconds > 0:
                times[name] = max(1, math.ceil(least_seconds / seconds))
    return samples


def synchroniser(device: str) -> Call | None:
    """Return what `alternate` calls around timed calls on a device: ``torch.cuda.synchronize`` on a GPU, else None."""
    if not device.startswith("cuda"):
        return None
    import torch

    return lambda: torch.cuda.synchronize(device)


def _seconds(call: Call, times: int, wait: Call) -> float:
    wait()
    started = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - started) / times


def _nothing() -> None:
    """There is nothing to wait for on a CPU."""
