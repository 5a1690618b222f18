"""Ratios come from pairs of samples, whatever the clock does between the rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from effdense.tools.benchmarks import timing
from effdense.tools.benchmarks.rows import Row, amount, row
from effdense.tools.benchmarks.timing import Ratio, alternate, quartiles


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def sleep(self, seconds: float) -> None:
        self.log.append("rest")
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(timing.time, "sleep", made.sleep)
    return made


@pytest.mark.parametrize(
    ("ours", "peer", "median", "low", "high"),
    [
        pytest.param([2.0], [6.0], 3, 3, 3, id="single"),
        pytest.param([1.0, 2.0, 4.0], [2.0, 8.0, 12.0], 3, 2.5, 3.5, id="three"),
        pytest.param([1.0, 10.0, 100.0], [2.0, 20.0, 200.0], 2, 2, 2, id="a-machine-that-drifts"),
        pytest.param([4.0, 4.0], [1.0, 1.0], 0.25, 0.25, 0.25, id="slower"),
    ],
)
def test_a_ratio_is_the_median_of_pairs(
    ours: list[float], peer: list[float], median: float, low: float, high: float
) -> None:
    ratio = Ratio.of(ours, peer)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((median, low, high))


@pytest.mark.parametrize(
    ("ours", "peer"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])], ids=["empty", "unpaired", "zero"]
)
def test_samples_that_make_no_ratio_are_refused(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(ValueError, match="sample"):
        Ratio.of(ours, peer)


def test_quartiles_of_one_value_are_that_value() -> None:
    assert quartiles([4.0]) == (4, 4, 4)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2, 3, 4)


def test_every_way_runs_once_a_round_and_follows_any_other(clock: Clock) -> None:
    calls = {name: clock.call(name, 1 + place) for place, name in enumerate("abc")}
    samples = alternate(calls, repeats=19, warmup=1)
    rounds = [clock.log[start : start + 3] for start in range(0, 60, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) == 6
    assert samples == {"a": [1] * 19, "b": [2] * 19, "c": [3] * 19}


def test_the_order_of_the_rounds_is_the_same_in_every_run(clock: Clock) -> None:
    for _ in range(2):
        alternate({name: clock.call(name, 1) for name in "abc"}, repeats=5)
    half = len(clock.log) // 2
    assert clock.log[:half] == clock.log[half:]


def test_warm_up_does_not_count(clock: Clock) -> None:
    assert alternate({"a": clock.call("a", 50, 40, 1, 2)}, repeats=2, warmup=2) == {"a": [1, 2]}


def test_a_quick_way_is_run_often_enough(clock: Clock) -> None:
    samples = alternate({"a": clock.call("a", 0.25)}, repeats=1, warmup=1, least_seconds=1)
    assert (samples, len(clock.log)) == ({"a": [0.25]}, 5)


def test_a_rest_and_a_call_that_does_not_count_come_before_each_sample(clock: Clock) -> None:
    assert alternate({"a": clock.call("a", 9, 1)}, repeats=2, warmup=0, rest=0.5) == {"a": [1, 1]}
    assert clock.log == ["rest", "a", "a"] * 2


def test_a_gpu_is_waited_for_within_the_sample(clock: Clock) -> None:
    pending: list[float] = []

    def wait() -> None:
        clock.now += sum(pending)
        pending.clear()

    assert alternate({"a": lambda: pending.append(3)}, repeats=1, warmup=1, synchronise=wait) == {"a": [3]}


def test_nothing_to_measure_is_no_sample() -> None:
    assert alternate({}, repeats=3) == {}


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"repeats": 1, "warmup": 0, "least_seconds": 1.0}], ids=str)
def test_rounds_that_make_no_sample_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"repeats|warm-up"):
        alternate({"a": lambda: None}, **wrong)  # type: ignore[arg-type]


RATIO = Ratio(2.0, 1.5, 2.5, ours=0.5, peer=1.0)


@pytest.mark.parametrize(
    ("found", "ours", "peer", "met"),
    [
        pytest.param(row("a", RATIO), 500, 1000, None, id="no-target"),
        pytest.param(row("a", RATIO, target=2.0, unit="s"), 0.5, 1, True, id="met-exactly"),
        pytest.param(row("a", RATIO, target=2.1, unit="images/s", units_per_sample=8), 16, 8, False, id="rate-missed"),
        pytest.param(amount("a", 3, 12, unit="MiB", target=5.0), 3, 12, False, id="memory"),
        pytest.param(amount("a", 2, None, unit="s", target=2, target_is="most"), 2, None, True, id="at-most"),
        pytest.param(amount("a", 3, 9, unit="s", target=2, target_is="most"), 3, 9, False, id="more-than-most"),
    ],
)
def test_a_row_has_both_values_and_says_whether_its_target_is_met(
    found: Row, ours: float, peer: float | None, met: bool | None
) -> None:
    assert (found.ours, found.peer, found.met) == (ours, peer, met)


def test_an_amount_has_a_ratio_above_1_where_ours_is_smaller() -> None:
    assert amount("a", 3, 12, unit="MiB").ratio == 4
    assert amount("a", 3, None, unit="MiB").ratio is None


def test_freed_memory_is_kept_for_those_named_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("keep_freed_memory", "give_back_freed_memory"):
        monkeypatch.setattr(timing, name, clock.call(name, 0.0))
    samples = alternate({"ours": clock.call("ours", 1.0), "peer": clock.call("peer", 1.0)}, repeats=3, keeping=["ours"])
    setting, seen = "", []
    for place, name in enumerate(clock.log):
        if name.endswith("_memory"):
            setting = name
            assert clock.log[place + 1] == clock.log[place + 2]  # the first of the two does not count
        else:
            seen.append((name, setting))
    assert set(seen) == {("ours", "keep_freed_memory"), ("peer", "give_back_freed_memory")}
    assert len(samples["ours"]) == len(samples["peer"]) == 3


def test_where_nothing_is_kept_the_process_gives_back_from_the_start(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "give_back_freed_memory", clock.call("give back", 0.0))
    alternate({"ours": clock.call("ours", 1.0)}, repeats=2, warmup=1)
    assert clock.log == ["give back", "ours", "ours", "ours"]
