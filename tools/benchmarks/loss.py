"""The detection loss beside effdet's: memory that it saves for the backward pass, and its time there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from effdense.tools.benchmarks.boxes import random_boxes
from effdense.tools.benchmarks.checks import check_close
from effdense.tools.benchmarks.effdet_parts import VERSION, effdet_boxes, effdet_config, flat
from effdense.tools.benchmarks.rows import BenchSettings, Part, Row, amount, row
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser

if TYPE_CHECKING:
    from torch import Tensor

CLASSES, BATCH, SIZE, OBJECTS = 90, 4, 512, 8
MOST_SAVED = 2.0
"""In multiples of the class logits."""


def run(settings: BenchSettings) -> list[Row]:
    """Compare losses and gradients, then measure memory and time."""
    import torch

    size = 128 if settings.quick else SIZE
    ours, peer, outputs, logits_bytes = build(settings.device, size)
    check_close("loss", ours(), peer(), 1e-5)
    gradients = [torch.autograd.grad(loss(), outputs) for loss in (ours, peer)]
    for mine, theirs in zip(*gradients, strict=True):
        check_close("gradient", mine, theirs, 1e-5)
    saved = [saved_bytes(loss) / logits_bytes for loss in (ours, peer)]
    samples = alternate(
        {
            "ours": lambda: torch.autograd.grad(ours(), outputs),
            "peer": lambda: torch.autograd.grad(peer(), outputs),
        },
        repeats=settings.rounds(9),
        synchronise=synchroniser(settings.device),
    )
    note = "loss and gradients equal to 1e-5"
    case = f"batch {BATCH}, {CLASSES} classes, {size} px"
    return [
        amount(f"saved for backward, {case}", *saved, unit="logits", target=MOST_SAVED, target_is="most", note=note),
        row(f"forward and backward, {case}", Ratio.of(samples["ours"], samples["peer"]), note=note),
    ]


def build(device: str, size: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor], int]:
    """Return both losses of one set of outputs, these outputs, and the bytes of the class logits."""
    import torch
    from effdet.anchors import AnchorLabeler
    from effdet.anchors import Anchors as EffdetAnchors
    from effdet.loss import DetectionLoss as EffdetLoss

    from effdense.tasks.detection.anchors import Anchors
    from effdense.tasks.detection.assign import assign
    from effdense.tasks.detection.loss import BOX_WEIGHT, DetectionLoss

    config = effdet_config("d0", size, CLASSES)
    effdet_anchors = EffdetAnchors.from_config(config).to(device)
    generator = torch.Generator().manual_seed(0)
    cells = [size // 2**level for level in range(3, 8)]

    def maps(channels: int, mean: float) -> list[Tensor]:
        drawn = [torch.randn(BATCH, channels, cell, cell, generator=generator) + mean for cell in cells]
        return [one.to(device, memory_format=torch.channels_last).requires_grad_() for one in drawn]

    logits, codes = maps(9 * CLASSES, -4.6), maps(36, 0.0)
    boxes, labels = (one.to(device) for one in random_boxes(BATCH, OBJECTS, size, CLASSES))
    targets = assign(Anchors()((size, size), device), boxes, labels)
    their_targets: Any = AnchorLabeler(effdet_anchors, CLASSES).batch_label_anchors(*effdet_boxes(boxes, labels))
    our_loss, their_loss = DetectionLoss(), EffdetLoss(config)

    def ours() -> Tensor:
        losses = our_loss(flat(logits, CLASSES), flat(codes, 4), targets)
        return losses["class"] + BOX_WEIGHT * losses["box"]

    def peer() -> Tensor:
        total: Tensor = their_loss(logits, codes, *their_targets)[0]
        return total

    return ours, peer, logits + codes, sum(one.numel() * one.element_size() for one in logits)


def saved_bytes(loss: Callable[[], Tensor]) -> int:
    """Return how many bytes a loss keeps for its backward pass, memory that several tensors share counted once."""
    import torch

    kept: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that nothing else is put there before the end
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outcome = loss()
    del outcome
    return sum(storage.nbytes() for storage in kept.values())


PART = Part("loss", "loss: memory saved for backward, time", f"{VERSION}'s loss", run, ("cpu", "cuda"))
