"""Costs: bytes that can be counted by hand, runs that alternate, and one backbone in place of two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask import costs
from effdense.tasks.multitask.costs import (
    Cost,
    Costs,
    LiveBytes,
    alternating_ms,
    measure_costs,
    median_of_sums,
    noise,
    peak_bytes,
    weight_bytes,
)

CPU = torch.device("cpu")
KB = 1024
MAP = (16, 16)
"""One map of float32: 1 KB."""


class Chain(nn.Module):
    """Three maps after the image, of which no more than two are there at one time; 4 KB of weights, 1 KB of buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, *MAP))
        self.register_buffer("mean", torch.ones(MAP))

    def forward(self, x: Tensor) -> Tensor:
        first = x + self.weight[0]  # 1 KB
        second = first * 2  # 2 KB
        del first  # 1 KB
        return second.add(1)  # 2 KB, and 1 KB on return


class Pyramid(Chain):
    """As Chain, but holds every map to the end."""

    def forward(self, x: Tensor) -> Tensor:
        first = x + self.weight[0]
        second = first * 2
        return first + second  # 3 KB


class Shrinking(Chain):
    """Makes a large map, then small ones, one of which views the first."""

    def forward(self, x: Tensor) -> Tensor:
        large = x.expand(8, *MAP).clone()  # 8 KB
        row = large[0]
        del large  # its bytes stay, as a view holds them
        row = row + 1  # 9 KB, and 1 KB once the view is gone
        row.relu_()
        return row + 1


@pytest.mark.parametrize(
    ("make", "kilobytes"), [(Chain, 2), (Pyramid, 3), (Shrinking, 9)], ids=["freed", "held", "view"]
)
@pytest.mark.parametrize("inference", [True, False], ids=["inference mode", "autograd"])
def test_the_peak_is_what_can_be_counted_by_hand(make: Callable[[], Chain], kilobytes: int, inference: bool) -> None:
    model, image = make(), torch.ones(MAP)
    model.requires_grad_(False)
    with torch.inference_mode(inference):
        assert peak_bytes(lambda: model(image), [model], CPU) == (5 + kilobytes) * KB


def test_a_tensor_that_was_freed_is_not_counted() -> None:
    with LiveBytes() as live:
        for _ in range(3):
            torch.ones(MAP)
        assert (live.now, live.most) == (0, KB)
        kept = torch.ones(MAP)
        assert (live.now, live.most) == (KB, KB)
        del kept
    assert (live.now, live.most) == (0, KB)


def test_a_pass_that_makes_nothing_has_the_weights_alone() -> None:
    model = Chain()
    assert peak_bytes(lambda: None, [model], CPU) == 5 * KB
    assert peak_bytes(lambda: None, [], CPU) == 0


def test_results_of_the_first_model_are_there_while_the_second_runs() -> None:
    first, second, image = Chain(), Chain(), torch.ones(MAP)
    with torch.no_grad():
        both = peak_bytes(lambda: [first(image), second(image)], [first, second], CPU)
    assert both == 2 * 5 * KB + (1 + 2) * KB


def test_weights_that_are_shared_count_once() -> None:
    model = Chain()
    twin = Chain()
    twin.weight = model.weight
    assert weight_bytes([model]) == weight_bytes([model, model]) == 5 * KB
    assert weight_bytes([model, twin]) == (4 + 1 + 1) * KB


def test_passes_alternate_and_the_first_rounds_are_not_timed() -> None:
    order: list[str] = []
    times = alternating_ms([lambda: order.append("a"), lambda: order.append("b")], 3, CPU)
    assert order == ["a", "b"] * (costs._WARM_UP + 3)
    assert [len(one) for one in times] == [3, 3]
    assert min(map(min, times)) >= 0


@pytest.mark.parametrize(
    ("times", "median"),
    [([[3.0]], 3.0), ([[1.0, 9.0, 2.0]], 2.0), ([[1.0, 9.0, 2.0], [10.0, 1.0, 20.0]], 11.0)],
    ids=["single", "one pass", "sums are made within a round"],
)
def test_the_median_is_of_rounds(times: list[list[float]], median: float) -> None:
    assert median_of_sums(times) == median


def _detector(size: int = 64, backbone: str = "lite0") -> Detector:
    torch.manual_seed(0)
    return Detector(create_efficientdet("auto", 2, backbone=backbone, image_size=size), ("a", "b"), image_size=size)


def test_the_peak_of_a_detector_is_the_profilers(tmp_path: Path) -> None:
    detector, image = _detector(128), noise(128)
    for _ in range(2):
        detector.predict(image)
    with LiveBytes() as live:
        detector.predict(image)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        detector.predict(image)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    events = sorted((event["args"] for event in trace if event["name"] == "[memory]"), key=lambda args: args["Ev Idx"])
    peak = np.cumsum([args["Bytes"] for args in events]).max()
    assert live.now == 0
    assert live.most == pytest.approx(peak, rel=0.01)


def test_both_in_turn_cost_what_both_cost_and_one_peak() -> None:
    detector, other, shared = _detector(), _detector(), _detector()
    found = measure_costs(detector, other, shared, repeats=1)
    assert (found.image_size, found.device, found.repeats) == (64, "cpu", 1)
    one = found.shared
    assert found.detection.parameters == found.segmentation.parameters == one.parameters
    assert found.in_turn.parameters == 2 * one.parameters == 2 * sum(p.numel() for p in shared.model.parameters())
    assert found.in_turn.weight_bytes == 2 * one.weight_bytes
    # beside the weights: the peak of one pass, as the other's is freed but for 100 boxes, scores and labels
    kept = 100 * (4 * 4 + 4 + 8)
    assert found.in_turn.peak_bytes - found.in_turn.weight_bytes == one.peak_bytes - one.weight_bytes + kept
    assert found.ratio("parameters") == 0.5
    assert one.network_ms > 0
    assert one.predict_ms > 0


def test_models_for_different_sizes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="64, 96, 64 pixels"):
        measure_costs(_detector(), _detector(96), _detector(), repeats=1)


def test_a_ratio_is_of_the_shared_pass_to_both_in_turn() -> None:
    alone, both, shared = Cost(3, 30.0, 20.0, 300, 3), Cost(8, 80.0, 60.0, 800, 8), Cost(4, 60.0, 30.0, 200, 4)
    found = Costs(alone, alone, both, shared, image_size=64, device="cpu", threads=1, repeats=1)
    ratios = [found.ratio(name) for name in ("parameters", "predict_ms", "network_ms", "peak_bytes", "weight_bytes")]
    assert ratios == [0.5, 0.75, 0.5, 0.25, 0.5]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_allocators_peak_is_taken() -> None:
    device = torch.device("cuda")
    ballast = torch.ones(2**20, device=device)
    model, image = Chain().to(device), torch.ones(MAP, device=device)
    with torch.no_grad():
        assert peak_bytes(lambda: model(image), [model], device) == (5 + 2) * KB
    del ballast
