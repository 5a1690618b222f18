"""--compile: the same files, no beginning anew with other boxes, and a machine that cannot is told before a run."""

from __future__ import annotations

import copy
import logging
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo
import torch._functorch.config as functorch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from effdense.config import Parsed
from effdense.errors import UserError
from effdense.tasks.detection import run as detection
from effdense.tasks.detection import train as training
from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.detection.model import EfficientDet, create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask import run as multitask
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.segmentation import run as segmentation
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.training import compilation, precision
from effdense.training.checkpoint import load_state, read_tensors
from effdense.training.ema import ModelEma
from effdense.training.interrupt import InterruptWatch

SMALL: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": "none",
    "image_size": 64,
    "batch_size": 2,
    "accumulate": 2,
    "epochs": 1,
    "amp": "off",
}
FROZEN = tuple(f"backbone.{part}." for part in ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"))
SMALL_HEAD: dict[str, Any] = {"bifpn_channels": 16, "bifpn_repeats": 1, "head_repeats": 1}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def small_model() -> EfficientDet:
    torch.manual_seed(0)
    return create_efficientdet("d0", 2, backbone="test_efficientnet", channels=16, bifpn_repeats=1, head_repeats=1)


def compiled(model: EfficientDet) -> EfficientDet:
    compilation.compile_parts([*model.backbone.parts(), model.neck, model.head])
    return model


def step(model: EfficientDet, images: torch.Tensor, boxes: int) -> float:
    corner = torch.rand(len(images), boxes, 2) * 40
    xyxy = torch.cat((corner, corner + 20), -1)
    targets = assign(model.anchors((64, 64)), xyxy, torch.zeros(len(images), boxes, dtype=torch.int64))
    losses = DetectionLoss()(*model(images), targets)
    (losses["class"] + losses["box"]).backward()
    return float(losses["class"].detach())


def test_other_numbers_of_boxes_compile_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(compilation, "BACKEND", counter)
    model = compiled(small_model()).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    step(model, images, 3)
    before = counter.frame_count
    assert before >= 3
    for boxes in (0, 1, 7, 50):
        step(model, images, boxes)
    assert counter.frame_count == before


def test_more_parts_and_sizes_than_pytorchs_limit_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    parts = [torch.nn.Sequential(torch.nn.Conv2d(3, 3 + number, 1)) for number in range(12)]
    with dynamo.patch(recompile_limit=8):
        compilation.compile_parts(parts)
        counters.clear()
        for size in (4, 6, 9):
            for part in parts:
                part(torch.rand(1, 3, size, size))
    assert counters["stats"]["unique_graphs"] >= len(parts)
    assert not [reason for reason in counters["unimplemented"] if "limit" in reason]


def test_names_copies_and_the_average_know_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", CompileCounter())
    plain = small_model()
    model = compiled(copy.deepcopy(plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    average = ModelEma(model, 0.9)
    assert average.module.neck._compiled_call_impl is None
    assert copy.deepcopy(model).head._compiled_call_impl is None
    assert model.head._compiled_call_impl is not None


@pytest.mark.slow
def test_gradients_are_those_of_the_plain_network_and_what_is_frozen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    plain = small_model()
    plain.backbone.freeze_stages(4)
    model = copy.deepcopy(plain)
    before = copy.deepcopy(plain.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for one in (plain, compiled(model)):
        torch.manual_seed(0)
        step(one.train(), images, 4)
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None) == name.startswith(FROZEN), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)
    frozen = [name for name in before if name.startswith(FROZEN)]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in frozen)


@pytest.mark.parametrize("told", [True, False])
def test_gradients_may_be_measured_in_one_step_and_not_in_the_one_before(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    part = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.SiLU())
    with functorch.patch(donated_buffer=True):
        compilation.compile_parts([part, None], measures_gradients=told)
        part(torch.rand(5, 3)).square().sum().backward()
        part.zero_grad()
        loss = part(torch.rand(5, 3)).square().sum()
        if not told:
            with pytest.raises(RuntimeError, match="donated"):
                torch.autograd.grad(loss, part[0].weight, retain_graph=True)
            return
        (measured,) = torch.autograd.grad(loss, part[0].weight, retain_graph=True)
        loss.backward()
        assert torch.equal(measured, part[0].weight.grad)


def detection_run(root: Path, out: Path, **changes: Any) -> Any:
    settings = SMALL | SMALL_HEAD | {"dataset": "coco", "data_root": root / "boxes", "arch": "d0", "out": out}
    return detection.begin(Parsed(DetectionConfig(**(settings | changes)), frozenset()))


def segmentation_run(root: Path, out: Path, **changes: Any) -> Any:
    settings = SMALL | {"dataset": "folder", "data_root": root / "pixels", "arch": "linknet", "out": out}
    return segmentation.begin(
        Parsed(SegmentationConfig(**(settings | {"auxiliary_weight": 0.4} | changes)), frozenset())
    )


def multitask_run(root: Path, out: Path, **changes: Any) -> Any:
    data = {"det_data": f"coco:{root / 'boxes'}", "seg_data": f"folder:{root / 'pixels'}", "gradients_every": 1}
    settings = SMALL | SMALL_HEAD | data | {"det_arch": "d0", "arch": "linknet", "batch_size": 4, "out": out}
    return multitask.begin(Parsed(MultitaskConfig(**(settings | changes)), frozenset()))


RUNS = [
    pytest.param(detection_run, id="detection"),
    pytest.param(segmentation_run, id="segmentation", marks=pytest.mark.slow),
    pytest.param(multitask_run, id="multitask", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("run", RUNS)
def test_a_compiled_run_leaves_the_files_of_a_plain_one(
    run: Callable[..., Path],
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    monkeypatch.setattr(precision, "FastCpuTraining", nullcontext)  # which pads otherwise where nothing is compiled
    plain = read_tensors(run(labelled, tmp_path / "plain"))
    counters.clear()
    with caplog.at_level(logging.INFO, logger="effdense"):
        best = run(labelled, tmp_path / "compiled", compile=True)
    assert counters["stats"]["unique_graphs"] > 0
    assert "the first steps take longer" in caplog.text
    tensors = read_tensors(best)
    assert list(tensors) == list(plain)
    assert all(torch.equal(value, plain[name]) for name, value in tensors.items())
    model = load_state(tmp_path / "compiled" / "state.pt")["model"]
    assert not any("_orig_mod" in name for name in model)


@pytest.mark.parametrize(
    "first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["compiled-then-not", "then-compiled"]
)
def test_a_run_resumed_with_the_other_setting_ends_as_one_never_stopped(
    first: bool, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    monkeypatch.setattr(precision, "FastCpuTraining", nullcontext)
    settings = SMALL | SMALL_HEAD | {"dataset": "coco", "data_root": labelled / "boxes", "arch": "d0", "epochs": 2}
    config = detection.resolve(DetectionConfig(**settings, eval_every=2, out=tmp_path / "run"))
    whole = read_tensors(training.train(config, tmp_path / "whole").parent / "last.safetensors")
    finish = training.finish_epoch

    def stop(*arguments: Any) -> None:
        finish(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "finish_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(replace(config, compile=first), tmp_path / "run")
    monkeypatch.setattr(training, "finish_epoch", finish)
    training.train(replace(config, compile=not first), tmp_path / "run", resume=True)
    resumed = read_tensors(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_a_compiled_network_predicts_and_saves_as_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    plain, model = Detector(small_model(), ("a", "b"), image_size=64), compiled(small_model())
    detector = Detector(model, ("a", "b"), image_size=64)
    assert torch.equal(*(torch.from_numpy(one.predict(image).scores) for one in (plain, detector)))
    detector.save(tmp_path / "one.safetensors")
    assert set(read_tensors(tmp_path / "one.safetensors")) == set(plain.model.state_dict())


def test_a_machine_without_a_compiler_is_told_so_before_the_run(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(UserError, match="--compile does not work here") as told:
        detection_run(labelled, tmp_path / "run", compile=True)
    assert "apt install g++" in str(told.value)
    assert not (tmp_path / "run").exists()


def failing_later(signals: tuple[int, ...] = ()) -> Callable[..., Any]:
    """A compiler that passes the trial and fails at the network, after signals have come."""
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        calls.append(len(example))
        if len(calls) == 1:
            return graph.forward
        for number in signals:
            os.kill(os.getpid(), number)
        raise RuntimeError("C++ compile error\n\nCommand:\ng++ kernel.cpp\n" + "Output:\n" * 100)

    return backend


@pytest.mark.parametrize(
    "run", [RUNS[0], *(pytest.param(*one.values, id=one.id, marks=pytest.mark.slow) for one in RUNS[1:])]
)
def test_a_compiler_that_fails_in_a_step_is_told_in_a_sentence(
    run: Callable[..., Path], labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", failing_later())
    with pytest.raises(UserError, match=r"could not be compiled: .*C\+\+ compile error.*Leave --compile out") as told:
        run(labelled, tmp_path / "run", compile=True)
    assert "\n" not in str(told.value)


def test_a_compiler_that_dies_of_the_interrupt_leaves_a_run_to_resume(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", failing_later((signal.SIGTERM,)))
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=rf"while the network was being compiled; go on with: --resume {out}"):
        detection_run(labelled, out, compile=True)
    assert load_state(out / "state.pt")["progress"]["step"] == 0


def test_other_errors_in_a_step_are_not_taken_for_the_compilers(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), compilation.explained_compiling(InterruptWatch(), tmp_path):
        raise ZeroDivisionError


def test_what_a_compiler_printed_is_not_shown_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    logger = logging.getLogger("torch._functorch._aot_autograd.graph_compile")
    logger.setLevel(logging.NOTSET)
    compilation.compile_parts([torch.nn.Linear(2, 2)])
    assert not logger.isEnabledFor(logging.WARNING)
