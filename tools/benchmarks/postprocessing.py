"""From the network's maps to detections beside effdet's way, on scores that are mostly low and on scores alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from effdense.tools.benchmarks.checks import check_close, check_same_labels
from effdense.tools.benchmarks.effdet_parts import VERSION, effdet_config
from effdense.tools.benchmarks.rows import BenchSettings, Part, Row, row
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser

if TYPE_CHECKING:
    from torch import Tensor

    from effdense.tasks.detection.postprocess import BatchDetections

BATCH, CLASSES, TARGET = 8, 90, 5.0
OUTPUTS = {"most scores near 0": (-7.5, 1.5), "all scores alike": (-2.0, 2.0)}
"""Mean and spread of the class logits. effdet always takes 5,000 candidates an image; so do we, above 0.001."""


def run(settings: BenchSettings) -> list[Row]:
    """Measure both kinds of outputs."""
    size = 128 if settings.quick else 512
    return [measure(settings, says, size, *spread) for says, spread in OUTPUTS.items()]


def measure(settings: BenchSettings, says: str, size: int, mean: float, spread: float) -> Row:
    """Return the row of one kind of outputs, from the maps of all levels.

    Raises:
        Unequal: the detections differ.
    """
    import torch
    from effdet.anchors import Anchors as EffdetAnchors
    from effdet.bench import _batch_detection, _post_process

    from effdense.tasks.detection.anchors import Anchors
    from effdense.tasks.detection.head import rows_of_anchors
    from effdense.tasks.detection.postprocess import postprocess

    device = settings.device
    generator = torch.Generator().manual_seed(0)
    cells = [size // 2**level for level in range(3, 8)]

    def maps(channels: int, mean: float, spread: float) -> list[Tensor]:
        drawn = [torch.randn(BATCH, channels, cell, cell, generator=generator) * spread + mean for cell in cells]
        return [one.to(device, memory_format=torch.channels_last) for one in drawn]

    logits, codes = maps(9 * CLASSES, mean, spread), maps(36, 0.0, 0.2)
    their_anchors = EffdetAnchors.from_config(effdet_config("d0", size, CLASSES)).to(device).boxes
    anchors = Anchors()((size, size), device)
    sizes = torch.full((BATCH, 2), size, device=device)
    scale, their_sizes = torch.ones(BATCH, device=device), sizes.float()

    def ours() -> BatchDetections:
        return postprocess(
            rows_of_anchors(logits, CLASSES),
            rows_of_anchors(codes, 4),
            anchors,
            image_size_hw=(size, size),
            original_sizes_hw=sizes,
            resized_sizes_hw=sizes,
        )

    def peer() -> Tensor:
        best = _post_process(logits, codes, num_levels=len(cells), num_classes=CLASSES)
        found: Tensor = _batch_detection(
            BATCH, best[0], best[1], their_anchors, best[2], best[3], scale, their_sizes, 100, False
        )
        return found

    with torch.inference_mode():
        check_same_detections(ours(), peer())
        samples = alternate({"ours": ours, "peer": peer}, repeats=settings.rounds(11), synchronise=synchroniser(device))
    return row(
        f"batch {BATCH}, {CLASSES} classes, {size} px, {says}",
        Ratio.of(samples["ours"], samples["peer"]),
        target=TARGET,
        note="same detections",
    )


def check_same_detections(ours: BatchDetections, theirs: Tensor) -> None:
    """See that both found the same, best first and those of one score in any order; effdet counts classes from 1.

    Raises:
        Unequal: they did not.
    """
    check_close("scores", ours.scores, theirs[..., 4], 1e-6)
    mine = _in_order(ours.boxes_xyxy, ours.scores, ours.labels)
    others = _in_order(theirs[..., :4], theirs[..., 4], theirs[..., 5].long() - 1)
    check_same_labels("labels", mine[1], others[1])
    check_close("boxes", mine[0], others[0], 1e-5)


def _in_order(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[list[Any], list[Any]]:
    """Return boxes and labels of each image by score, then label, then left edge."""
    columns = [one.cpu().numpy() for one in (boxes, scores, labels)]
    orders = [np.lexsort((box[:, 0].round(2), label, -score)) for box, score, label in zip(*columns, strict=True)]
    return [box[order] for box, order in zip(columns[0], orders, strict=True)], [
        label[order] for label, order in zip(columns[2], orders, strict=True)
    ]


PART = Part("postprocessing", "post-processing", f"{VERSION}'s", run, ("cpu", "cuda"))
