"""What a pass costs: parameters, time and memory of two models in turn, and of one that shares its backbone."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effdense.backbones.measure import count_parameters
from effdense.inference_form import InferenceForm
from effdense.types import UInt8

_WARM_UP = 2
"""Passes before anything is measured: a first one fills caches and chooses kernels."""


class Runner(Protocol):
    """What is measured: a Detector, a Segmenter, or a Multitask."""

    image_size: int

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def predict(self, images: UInt8, /) -> Any:
        """Take an image (H, W, 3) to its results."""
        ...


@dataclass(frozen=True)
class Cost:
    """What one image costs, in a batch of its own.

    Attributes:
        parameters: numbers that the networks learn.
        predict_ms: from a uint8 array to detections, label map or both, in milliseconds; the median of the runs.
        network_ms: of this, the networks alone.
        peak_bytes: the most bytes of tensors that exist at one time while predicting, weights included.
        weight_bytes: of these, parameters and buffers.
    """

    parameters: int
    predict_ms: float
    network_ms: float
    peak_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class Costs:
    """What both results of an image cost, by two models and by one.

    Attributes:
        detection: the detector by itself.
        segmentation: the segmenter by itself.
        in_turn: both in memory, one run after the other.
        shared: one pass of the multitask model.
        image_size: side of the square image, in pixels.
        device: ``cpu``, or the name of the GPU.
        threads: of PyTorch, on a CPU.
        repeats: timed runs.
    """

    detection: Cost
    segmentation: Cost
    in_turn: Cost
    shared: Cost
    image_size: int
    device: str
    threads: int
    repeats: int

    def ratio(self, name: str) -> float:
        """Return the shared pass's share of what two models in turn cost, by the name of a `Cost`'s number."""
        return float(getattr(self.shared, name) / getattr(self.in_turn, name))


def measure_costs(
    detector: Runner, segmenter: Runner, multitask: Runner, *, image: UInt8 | None = None, repeats: int = 15
) -> Costs:
    """Measure a detector and a segmenter in turn beside one shared pass.

    The runs alternate, so that a machine that slows down for a while slows down both. On a GPU a time ends when the
    GPU has finished; its memory is what PyTorch's allocator has handed out at most.

    Args:
        detector: on the device to measure on, as the others.
        segmenter: of the same image size.
        multitask: what does the work of both.
        image: (H, W, 3); the time to suppress overlapping boxes depends on what it shows. Default is noise.
        repeats: timed runs of each.

    Raises:
        ValueError: the image sizes differ, so there is nothing to compare.
    """
    runners = (detector, segmenter, multitask)
    sizes = [runner.image_size for runner in runners]
    if len(set(sizes)) > 1:
        raise ValueError(f"the models look at images of {', '.join(map(str, sizes))} pixels: give them one size")
    device = multitask.device
    pixels = noise(sizes[0]) if image is None else image
    planes = torch.from_numpy(noise(sizes[0])).permute(2, 0, 1)[None].to(device)
    models = [runner.model for runner in runners]
    predict = alternating_ms([partial(runner.predict, pixels) for runner in runners], repeats, device)
    with torch.inference_mode():
        forms = [InferenceForm(model).network for model in models]  # what predicts
        network = alternating_ms([partial(form, planes) for form in forms], repeats, device)

    def cost(which: Sequence[int]) -> Cost:
        held = [models[i] for i in which]
        return Cost(
            parameters=sum(count_parameters(model) for model in held),
            predict_ms=median_of_sums([predict[i] for i in which]),
            network_ms=median_of_sums([network[i] for i in which]),
            peak_bytes=peak_bytes(lambda: [runners[i].predict(pixels) for i in which], held, device),
            weight_bytes=weight_bytes(held),
        )

    return Costs(
        cost([0]),
        cost([1]),
        cost([0, 1]),
        cost([2]),
        image_size=sizes[0],
        device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def noise(size: int) -> UInt8:
    """Return the same random image for the same size, (size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)


def alternating_ms(passes: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Time several passes in turn, over and over.

    Returns:
        For each pass its times in milliseconds, in the order of the rounds.
    """
    times: list[list[float]] = [[] for _ in passes]
    for number in range(-_WARM_UP, repeats):
        for one, run in zip(times, passes, strict=True):
            _wait_for(device)
            started = time.perf_counter()
            run()
            _wait_for(device)
            if number >= 0:
                one.append(1e3 * (time.perf_counter() - started))
    return times


def median_of_sums(times: Sequence[Sequence[float]]) -> float:
    """Return the median over the rounds of what their passes take together."""
    return float(statistics.median(sum(one) for one in zip(*times, strict=True)))


def peak_bytes(run: Callable[[], object], models: Sequence[nn.Module], device: torch.device) -> int:
    """Return the most bytes of tensors that exist at one time while ``run`` runs.

    On a CPU: the models' parameters and buffers, and every tensor that an operation makes, until nothing holds it. On
    a GPU: what the allocator counts, so nothing else may lie there.

    Args:
        run: what to watch; run once or more before, so that it makes no tensor that it keeps.
        models: that are in memory.
        device: where they are.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        elsewhere = int(torch.cuda.memory_allocated(device)) - weight_bytes(models)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - elsewhere
    live = LiveBytes()
    with live:
        run()
    return weight_bytes(models) + live.most


def weight_bytes(models: Sequence[nn.Module]) -> int:
    """Return the bytes of the models' parameters and buffers; what they share counts once."""
    storages = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations make, from when they are made until nothing holds them.

    A view makes no bytes, nor does an operation in place. What an operation needs within itself is not seen; the tests
    hold the peak of a detector beside that of PyTorch's profiler, which sees it.

    Attributes:
        most: the most bytes at one time so far.
        now: the bytes at this time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self.now = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        result = func(*args, **(kwargs or {}))
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in given:
                self._note(leaf)
        self.most = max(self.most, self.now)
        return result

    def _note(self, tensor: Tensor) -> None:
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._held:
            return
        size = storage.nbytes()

        def forget(_: object) -> None:
            self.now -= size
            del self._held[key]

        self.now += size
        self._held[key] = weakref.ref(storage, forget)  # a storage's Python object lives as long as the storage


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
