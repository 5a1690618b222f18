"""Giving every anchor its target, beside effdet's labeler; and how both grow with the boxes of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effdense.tools.benchmarks.boxes import random_boxes
from effdense.tools.benchmarks.checks import check_close, check_same_labels
from effdense.tools.benchmarks.effdet_parts import VERSION, effdet_boxes, effdet_config
from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line, Part, Row, row
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser

if TYPE_CHECKING:
    from effdense.tasks.detection.assign import Targets

BATCH, CLASSES = 16, 90
COUNTS = (1, 10, 50, 100)
ASKED_AT, TARGET = 50, 10.0
SIZES = {"d0": 512, "lite0": 320}


def run(settings: BenchSettings) -> list[Row]:
    """Measure every number of boxes at the image size of D0 and at that of lite0."""
    rows = []
    for arch, size in {"d0": 128}.items() if settings.quick else SIZES.items():
        for count in COUNTS[:2] if settings.quick else COUNTS:
            ratio, anchors = measure(settings, arch, size, count)
            boxes = f"{count} box{'es' * (count > 1)} an image"
            target = TARGET if count == ASKED_AT else None
            note = f"same labels, codes to 1e-5; {anchors} anchors, batch {BATCH}"
            rows.append(row(f"{size} px, {boxes}", ratio, target=target, note=note))
    return rows


def measure(settings: BenchSettings, arch: str, size: int, count: int, rounds: int = 11) -> tuple[Ratio, int]:
    """Return the ratio of both times for one batch, and the number of anchors.

    Raises:
        Unequal: their labels or codes differ.
    """
    from effdet.anchors import AnchorLabeler
    from effdet.anchors import Anchors as EffdetAnchors

    from effdense.tasks.detection.anchors import Anchors
    from effdense.tasks.detection.assign import assign
    from effdense.tasks.detection.specs import get_spec

    device, spec = settings.device, get_spec(arch)
    boxes, labels = (one.to(device) for one in random_boxes(BATCH, count, size, CLASSES))
    maker = Anchors(spec.min_level, spec.max_level, spec.num_scales, spec.aspect_ratios, spec.anchor_scale)
    anchors = maker((size, size), device)
    labeler = AnchorLabeler(EffdetAnchors.from_config(effdet_config(arch, size, CLASSES)).to(device), CLASSES)
    their_boxes, their_labels = effdet_boxes(boxes, labels)

    def ours() -> Targets:
        return assign(anchors, boxes, labels)

    def peer() -> Any:
        return labeler.batch_label_anchors(their_boxes, their_labels)

    check_same_targets(ours(), peer())
    samples = alternate({"ours": ours, "peer": peer}, repeats=settings.rounds(rounds), synchronise=synchroniser(device))
    return Ratio.of(samples["ours"], samples["peer"]), len(anchors)


def check_same_targets(ours: Targets, theirs: Any) -> None:
    """See that both give all anchors the same label and the same codes.

    Raises:
        Unequal: they do not.
    """
    import torch

    labels, codes, _ = theirs
    batch = len(ours.labels)
    check_same_labels("labels", ours.labels, torch.cat([one.reshape(batch, -1) for one in labels], 1))
    check_close("codes", ours.box_codes, torch.cat([one.reshape(batch, -1, 4) for one in codes], 1), 1e-5)


def boxes_an_image(settings: BenchSettings) -> list[Line]:
    """Return milliseconds a batch over the boxes of an image, ours and effdet's."""
    counts = (1, 10) if settings.quick else (1, 2, 5, 10, 20, 50, 100, 200, 500)
    ratios = [measure(settings, "d0", 128 if settings.quick else SIZES["d0"], count, 5)[0] for count in counts]
    xs = tuple(float(count) for count in counts)
    return [
        Line("effdense", xs, tuple(1e3 * ratio.ours for ratio in ratios)),
        Line("effdet", xs, tuple(1e3 * ratio.peer for ratio in ratios)),
    ]


PART = Part("labelling", f"labelling anchors, batch {BATCH}", f"{VERSION}'s labeler", run, ("cpu", "cuda"))
CURVES = (
    Curve(
        "labelling",
        f"labelling anchors: D0, 512 px, batch {BATCH}",
        "boxes an image",
        "ms a batch",
        boxes_an_image,
        devices=("cpu", "cuda"),
    ),
)
