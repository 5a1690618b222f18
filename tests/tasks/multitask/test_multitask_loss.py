"""The losses of both tasks: each is its own loss of the images that carry its label, to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.multitask.loss import TASKS, MultitaskLoss, _picked, _rows
from effdense.tasks.multitask.model import MultitaskOutputs
from effdense.tasks.segmentation.loss import SegmentationLoss
from effdense.types import Batch

SIZE = 32
K, S = 3, 4

BOTH = [True, True, True, True]
CASES = [
    pytest.param(BOTH, BOTH, id="everything labelled"),
    pytest.param([True, False, True, False], [False, True, False, True], id="half each"),
    pytest.param([True, True, True, False], [False, True, True, True], id="some both"),
    pytest.param(BOTH, [False] * 4, id="boxes only"),
    pytest.param([False] * 4, BOTH, id="masks only"),
    pytest.param([False, False, False, True], [True, False, False, False], id="one each"),
    pytest.param([False] * 4, [False] * 4, id="neither"),
]


def grid(stride: int = 8, side: int = 12) -> Tensor:
    """Anchors of one level, (16, 4)."""
    centres = torch.arange(stride // 2, SIZE, stride).float()
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x - side / 2, y - side / 2, x + side / 2, y + side / 2), -1).reshape(-1, 4)


ANCHORS = grid()


def batch_of(with_boxes: list[bool], with_masks: list[bool], seed: int = 0) -> Batch:
    """Images with none to three boxes, one of them to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    count, most = len(with_boxes), 3
    corners = torch.rand(count, most, 2, generator=generator) * 16
    boxes = torch.cat((corners, corners + 6 + torch.rand(count, most, 2, generator=generator) * 10), -1)
    labels = torch.randint(0, K, (count, most), generator=generator)
    absent = (
        torch.arange(most) >= torch.tensor([(row % 4) if one else 0 for row, one in enumerate(with_boxes)])[:, None]
    )
    masks = torch.randint(0, S, (count, SIZE, SIZE), generator=generator).to(torch.uint8)
    masks[:, :3] = 255
    masks[~torch.tensor(with_masks)] = 255
    ignore = torch.zeros(count, most, dtype=torch.bool)
    ignore[:, 1] = ~absent[:, 1]
    return Batch(
        images=torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8),
        boxes_xyxy=boxes.masked_fill(absent.unsqueeze(-1), -1.0),
        labels=labels.masked_fill(absent, -1),
        ignore=ignore,
        masks=masks if any(with_masks) else None,
        image_ids=tuple(range(count)),
        original_sizes_hw=torch.full((count, 2), SIZE),
        resized_sizes_hw=torch.full((count, 2), SIZE),
        with_boxes=torch.tensor(with_boxes),
        with_masks=torch.tensor(with_masks),
    )


def raw_outputs(count: int = 4, seed: int = 1) -> dict[str, Tensor]:
    """What a network says of every image."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "class_logits": torch.randn(count, len(ANCHORS), K, generator=generator),
        "box_codes": torch.randn(count, len(ANCHORS), 4, generator=generator),
        "logits": torch.randn(count, S, SIZE, SIZE, generator=generator),
        "auxiliary": torch.randn(count, S, SIZE, SIZE, generator=generator),
    }


def outputs_of(raw: dict[str, Tensor], with_boxes: list[bool], with_masks: list[bool]) -> MultitaskOutputs:
    """Those rows of it that a multitask model returns."""
    boxes, masks = torch.tensor(with_boxes), torch.tensor(with_masks)
    return MultitaskOutputs(
        class_logits=raw["class_logits"][boxes] if any(with_boxes) else None,
        box_codes=raw["box_codes"][boxes] if any(with_boxes) else None,
        masks={name: raw[name][masks] for name in ("logits", "auxiliary")} if any(with_masks) else None,
    )


def segmentation_loss() -> SegmentationLoss:
    return SegmentationLoss({"ce": 1.0, "dice": 0.5}, S, class_weights=[1.0, 2.0, 0.5, 1.0])


def multitask_loss(box_weight: float = 50.0) -> MultitaskLoss:
    return MultitaskLoss(DetectionLoss(), segmentation_loss(), box_weight)


def alone(raw: dict[str, Tensor], batch: Batch, with_boxes: list[bool], with_masks: list[bool]) -> dict[str, Tensor]:
    """The two losses, each called by itself on a batch of its own images only."""
    expected: dict[str, Tensor] = {}
    rows = [row for row, one in enumerate(with_boxes) if one]
    if rows:
        targets = assign(ANCHORS, batch.boxes_xyxy[rows], batch.labels[rows], batch.ignore[rows])
        expected |= DetectionLoss()(raw["class_logits"][rows], raw["box_codes"][rows], targets)
        expected["detection"] = expected["class"] + 50.0 * expected["box"]
    rows = [row for row, one in enumerate(with_masks) if one]
    if rows:
        assert batch.masks is not None
        outputs = {name: raw[name][rows] for name in ("logits", "auxiliary")}
        terms = segmentation_loss()(outputs, batch.masks[rows])
        expected |= {("segmentation" if name == "total" else name): value for name, value in terms.items()}
    return expected


@pytest.mark.parametrize(("with_boxes", "with_masks"), CASES)
def test_each_task_is_its_own_loss_of_the_images_with_its_label_to_the_bit(
    with_boxes: list[bool], with_masks: list[bool]
) -> None:
    batch, raw = batch_of(with_boxes, with_masks), raw_outputs()
    got = multitask_loss()(outputs_of(raw, with_boxes, with_masks), ANCHORS, batch)
    expected = alone(raw, batch, with_boxes, with_masks)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert ("detection" in got, "segmentation" in got) == (any(with_boxes), any(with_masks))


@pytest.mark.parametrize(("with_boxes", "with_masks"), CASES)
def test_what_an_image_without_a_label_looks_like_changes_nothing(
    with_boxes: list[bool], with_masks: list[bool]
) -> None:
    batch, other = batch_of(with_boxes, with_masks), batch_of(BOTH, BOTH, seed=5)
    outputs = outputs_of(raw_outputs(), with_boxes, with_masks)
    before = multitask_loss()(outputs, ANCHORS, batch)
    changed = batch
    for field, marked in (
        ("boxes_xyxy", batch.with_boxes),
        ("labels", batch.with_boxes),
        ("ignore", batch.with_boxes),
        ("masks", batch.with_masks),
    ):
        if (value := getattr(batch, field)) is not None:
            nonsense = torch.where(marked.view(-1, *[1] * (value.ndim - 1)), value, getattr(other, field))
            changed = replace(changed, **{field: nonsense})
    after = multitask_loss()(outputs, ANCHORS, changed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_reach_each_output_as_if_its_task_were_alone() -> None:
    with_boxes, with_masks = [True, False, True, True], [False, True, False, True]
    batch = batch_of(with_boxes, with_masks)
    mine, theirs = [{name: value.clone().requires_grad_() for name, value in raw_outputs().items()} for _ in range(2)]
    got = multitask_loss()(outputs_of(mine, with_boxes, with_masks), ANCHORS, batch)
    (got["detection"] + got["segmentation"]).backward()
    expected = alone(theirs, batch, with_boxes, with_masks)
    expected["detection"].backward()
    expected["segmentation"].backward()
    for name, value in mine.items():
        assert value.grad is not None
        assert torch.equal(value.grad, theirs[name].grad), name
    assert not mine["class_logits"].grad[1].any()  # type: ignore[index]
    assert not mine["logits"].grad[0].any()  # type: ignore[index]


@pytest.mark.parametrize("box_weight", [0.0, 1.0, 50.0])
def test_the_detection_is_the_classes_and_the_weighted_boxes(box_weight: float) -> None:
    got = multitask_loss(box_weight)(outputs_of(raw_outputs(), BOTH, BOTH), ANCHORS, batch_of(BOTH, BOTH))
    assert got["box"] > 0
    assert torch.equal(got["detection"], got["class"] + box_weight * got["box"])


def test_nothing_is_copied_where_everything_is_labelled() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert _picked(masks, _rows(torch.ones(3, dtype=torch.bool), 3, "masks")) is masks


@pytest.mark.parametrize("count", range(6))
def test_rows_are_those_that_are_marked_in_their_order(count: int) -> None:
    marked = torch.zeros(11, dtype=torch.bool)
    marked[torch.randperm(11, generator=torch.Generator().manual_seed(count))[:count]] = True
    rows = _rows(marked, count, "boxes")
    assert rows is not None
    assert torch.equal(rows, marked.nonzero().squeeze(1))


WRONG: list[Any] = [
    pytest.param(BOTH, [True, False, True, True], "boxes of 4 images, and 3 have them", id="an image too many"),
    pytest.param([True, False, False, False], BOTH, "boxes of 1 images, and 4 have them", id="too few"),
]


@pytest.mark.parametrize(("answered", "labelled", "message"), WRONG)
def test_outputs_of_other_images_than_the_labelled_ones_are_an_error(
    answered: list[bool], labelled: list[bool], message: str
) -> None:
    outputs = outputs_of(raw_outputs(), answered, [False] * 4)
    with pytest.raises(ValueError, match=message):
        multitask_loss()(outputs, ANCHORS, batch_of(labelled, [False] * 4))


def test_outputs_for_masks_that_no_image_has_are_an_error() -> None:
    outputs = outputs_of(raw_outputs(), [False] * 4, BOTH)
    with pytest.raises(ValueError, match="no image of the batch has one"):
        multitask_loss()(outputs, ANCHORS, batch_of([False] * 4, [False] * 4))


def test_one_task_alone_needs_no_loss_of_the_other() -> None:
    with_boxes, with_masks = BOTH, [False] * 4
    outputs, batch = outputs_of(raw_outputs(), with_boxes, with_masks), batch_of(with_boxes, with_masks)
    got = MultitaskLoss(DetectionLoss(), None)(outputs, ANCHORS, batch)
    assert got == multitask_loss()(outputs, ANCHORS, batch)


def test_no_term_of_one_task_is_called_as_one_of_the_other() -> None:
    every = SegmentationLoss(dict.fromkeys(("ce", "dice", "lovasz", "focal", "tversky"), 1.0), S)
    loss = MultitaskLoss(DetectionLoss(), every)
    got = loss(outputs_of(raw_outputs(), BOTH, BOTH), ANCHORS, batch_of(BOTH, BOTH))
    assert set(got) == {"class", "box", "ce", "dice", "lovasz", "focal", "tversky", "auxiliary", *TASKS}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_picking_rows_on_a_gpu_waits_for_nothing() -> None:
    marked, values = torch.tensor([False, True, True, False]).cuda(), torch.arange(4).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        picked = _picked(values, _rows(marked, 2, "boxes"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert picked.tolist() == [1, 2]
