"""Between two reads of the losses, nothing in a training step makes a GPU wait.

Here without a GPU: the step runs on PyTorch's "meta" device, whose tensors have a shape and no values, and takes the
ways that it takes on every device but the CPU. Whatever asks that device for a value, be it one number or how many
there are of something, or copies to or from it and waits for the end, is refused. On a GPU, CUDA itself says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.multitask.loss import MultitaskLoss
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.segmentation.loss import SegmentationLoss
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.training.learner import backward, build_learner
from effdense.training.runlog import LossMeter
from effdense.training.settings import TrainingSettings
from effdense.types import Batch

BATCH, SIZE, PIXELS = 3, 64, 4
SMALL_HEAD: dict[str, Any] = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
BACKBONE = "test_efficientnet"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
Losses = Callable[[Batch, torch.device], dict[str, Tensor]]


class Waits(AssertionError):
    """Something made the device wait."""


ASKING = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten._unique2,
    torch.ops.aten.unique_dim,
    torch.ops.aten.unique_consecutive,
    torch.ops.aten.bincount,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
}
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_}
COPYING = {torch.ops.aten._to_copy, torch.ops.aten.copy_}


class NothingWaits(TorchDispatchMode):
    """Refuses what would make the device wait: questions about values, masks as indices, copies that block."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first, operator = args[0] if args else None, func.overloadpacket
        if isinstance(first, Tensor) and first.device.type != "cpu":
            masks = [one for one in args[1] if one is not None] if operator in INDEXING else []
            if operator in ASKING or any(one.dtype in (torch.bool, torch.uint8) for one in masks):
                raise Waits(f"{func} of shape {tuple(first.shape)}")
        result = func(*args, **kwargs)
        if operator in COPYING:
            source = args[1] if operator is torch.ops.aten.copy_ else first
            waits_not = kwargs.get("non_blocking") or (operator is torch.ops.aten.copy_ and True in args[2:])
            if source.device.type != result.device.type and not waits_not:
                raise Waits(f"a copy from {source.device} to {result.device} of shape {tuple(source.shape)}")
        return result


def detection() -> tuple[nn.Module, Losses]:
    model = create_efficientdet("d0", 2, backbone=BACKBONE, **SMALL_HEAD)
    loss = DetectionLoss()

    def losses(host: Batch, device: torch.device) -> dict[str, Tensor]:
        batch = host.to(device, non_blocking=True)
        targets = assign(model.anchors((SIZE, SIZE)), batch.boxes_xyxy, batch.labels, batch.ignore)
        terms = loss(*model(batch.images), targets)
        return {**terms, "total": terms["class"] + terms["box"]}

    return model, losses


def segmentation() -> tuple[nn.Module, Losses]:
    model = create_segmentation_model("unet", PIXELS, backbone=BACKBONE, auxiliary=True)
    terms = {"ce": 1.0, "dice": 1.0, "lovasz": 1.0, "focal": 1.0, "tversky": 1.0}
    loss = SegmentationLoss(terms, PIXELS, class_weights=[1.0, 2, 3, 4], ohem_threshold=0.7)

    def losses(host: Batch, device: torch.device) -> dict[str, Tensor]:
        batch = host.to(device, non_blocking=True)
        assert batch.masks is not None
        return loss(model.training_outputs(batch.images), batch.masks)

    return model, losses


def multitask() -> tuple[nn.Module, Losses]:
    names = {"class_names": ("a", "b"), "seg_class_names": tuple("abcd"), "image_size": SIZE}
    model = create_multitask(BACKBONE, 2, PIXELS, det_arch="d0", **names, **SMALL_HEAD)
    loss = MultitaskLoss(DetectionLoss(), SegmentationLoss({"ce": 1.0}, PIXELS))

    def losses(host: Batch, device: torch.device) -> dict[str, Tensor]:
        batch = host.to(device, non_blocking=True)
        outputs = model.training_outputs(batch.images, host.with_boxes, host.with_masks)
        terms = loss(outputs, model.anchors((SIZE, SIZE)), batch)
        return {**terms, "total": terms["detection"] + terms["segmentation"]}

    return model, losses


TASKS = [detection, segmentation, multitask]


def a_batch(device: str, boxes: int = 5) -> Batch:
    """All images with both labels; on the host, in page-locked memory where there is a GPU."""
    corner = torch.rand(BATCH, boxes, 2) * 30
    batch = Batch(
        images=torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8),
        boxes_xyxy=torch.cat((corner, corner + 20), -1),
        labels=torch.zeros(BATCH, boxes, dtype=torch.int64),
        ignore=torch.zeros(BATCH, boxes, dtype=torch.bool),
        masks=torch.randint(0, PIXELS, (BATCH, SIZE, SIZE), dtype=torch.uint8),
        image_ids=tuple(range(BATCH)),
        original_sizes_hw=torch.full((BATCH, 2), SIZE),
        resized_sizes_hw=torch.full((BATCH, 2), SIZE),
        with_boxes=torch.ones(BATCH, dtype=torch.bool),
        with_masks=torch.ones(BATCH, dtype=torch.bool),
    )
    return batch.pin_memory() if device == "cuda" and torch.cuda.is_available() else batch


LABELS = [
    pytest.param([True, True, True], [True, True, True], id="all of both"),
    pytest.param([True, False, True], [False, True, True], id="some of each"),
]


@pytest.mark.parametrize(("with_boxes", "with_masks"), LABELS)
@pytest.mark.parametrize("task", TASKS)
def test_a_step_never_asks_for_a_value(
    task: Callable[[], tuple[nn.Module, Losses]], with_boxes: list[bool], with_masks: list[bool]
) -> None:
    device = torch.device("meta")
    model, losses = task()
    model.to(device)
    settings = TrainingSettings(weights="none", amp="off")
    learner = build_learner(settings, model, model.backbone, batches_per_epoch=9, device=device)  # type: ignore[arg-type]
    host = replace(a_batch("cpu"), with_boxes=torch.tensor(with_boxes), with_masks=torch.tensor(with_masks))
    losses(host, device)  # what is made once for an image size is carried over
    meter = LossMeter(every=20)
    with NothingWaits():
        for _ in range(2):
            terms = losses(host, device)
            assert terms["total"].device == device
            meter.add(0, (1,), terms)
            backward(learner, terms["total"])
    assert learner.progress.step == 2


WAITING: list[Any] = [
    pytest.param(lambda x: float(x.sum()), id="one number"),
    pytest.param(lambda x: x.nonzero(), id="how many there are"),
    pytest.param(lambda x: x[x > 0], id="a mask as an index"),
    pytest.param(lambda x: bool((x > 0).any()), id="a question"),
    pytest.param(lambda x: x.unique(), id="the distinct values"),
    pytest.param(lambda x: torch.equal(x, x + 1), id="a comparison"),
    pytest.param(lambda x: x.index_put_((x > 0,), x), id="a mask to write by"),
    pytest.param(lambda x: torch.ones(5).to(x.device), id="a copy from the host"),
    pytest.param(lambda x: x.copy_(torch.ones(5)), id="a copy into it"),
]


@pytest.mark.parametrize("ask", WAITING)
def test_what_waits_is_found(ask: Callable[[Tensor], Any]) -> None:
    with pytest.raises(Waits), NothingWaits():
        ask(torch.ones(5, device="meta"))


def test_what_does_not_wait_is_left_alone() -> None:
    x = torch.ones(5, device="meta")
    with NothingWaits():
        assert float(torch.ones(5).sum()) == 5
        x[torch.tensor([1, 2]).to("meta", non_blocking=True)] = 0.0
        x.copy_(torch.ones(5), non_blocking=True)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_cuda_says_that_a_step_waits_for_nothing(task: Callable[[], tuple[nn.Module, Losses]], amp: str) -> None:
    device = torch.device("cuda")
    model, losses = task()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = TrainingSettings(weights="none", amp=amp)  # type: ignore[arg-type]
    learner = build_learner(settings, model, model.backbone, batches_per_epoch=9, device=device)  # type: ignore[arg-type]
    meter = LossMeter(every=20)

    def step(boxes: int) -> None:
        with learner.precision.autocast():
            terms = losses(a_batch("cuda", boxes), device)
        meter.add(0, (1,), terms)
        backward(learner, terms["total"])

    for boxes in (5, 0):
        step(boxes)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for boxes in (0, 1, 7):
            step(boxes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.means()["total"] > 0
