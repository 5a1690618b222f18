from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effdense.ops.boxes import pairwise_iou
from effdense.tasks.detection import assign as module
from effdense.tasks.detection.anchors import Anchors, encode
from effdense.tasks.detection.assign import BACKGROUND, IGNORED, Targets, assign

SIZE = (128, 160)
ANCHORS = Anchors()(SIZE)


def scene(batch: int, boxes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, boxes, 2, generator=generator) * 100
    size = torch.exp(torch.rand(batch, boxes, 2, generator=generator) * 4)
    limit = torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    return torch.cat((corner, corner + size), -1).minimum(limit), torch.randint(
        0, 7, (batch, boxes), generator=generator
    )


def plain(boxes: Tensor, labels: Tensor) -> tuple[list[int], list[int]]:
    """Labels and boxes of all anchors for one image, by the words of the definition."""
    iou = pairwise_iou(boxes, ANCHORS)
    match = [int(iou[:, a].argmax()) if iou[:, a].max() >= 0.5 else -1 for a in range(len(ANCHORS))]
    for box in reversed(range(len(boxes))):
        match[int(iou[box].argmax())] = box
    return [int(labels[m]) if m >= 0 else BACKGROUND for m in match], match


@pytest.mark.parametrize("boxes", [1, 2, 30])
def test_targets_are_those_of_the_definition(boxes: int) -> None:
    boxes_xyxy, labels = scene(2, boxes)
    targets = assign(ANCHORS, boxes_xyxy, labels)
    for i in range(2):
        expected, match = plain(boxes_xyxy[i], labels[i])
        assert targets.labels[i].tolist() == expected
        assert targets.num_positive[i] == sum(m >= 0 for m in match)
        positive = torch.tensor([m >= 0 for m in match])
        codes = encode(boxes_xyxy[i, torch.tensor(match)[positive]], ANCHORS[positive])
        torch.testing.assert_close(targets.box_codes[i, positive], codes)
        assert targets.box_codes[i, ~positive].eq(0).all()


def same(one: Targets, other: Targets) -> None:
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.num_positive, other.num_positive)
    torch.testing.assert_close(one.box_codes, other.box_codes)


def test_targets_are_never_cut_at_100() -> None:
    boxes_xyxy, labels = scene(1, 250)
    labels[0, 200:] = 8  # only among the last
    assert (assign(ANCHORS, boxes_xyxy, labels).labels == 8).any()


def test_a_batch_gets_what_its_images_get_alone_and_padding_changes_nothing() -> None:
    boxes_xyxy, labels = scene(3, 20)
    boxes_xyxy[1, 5:], labels[1, 5:] = -1.0, -1
    boxes_xyxy[2], labels[2] = -1.0, -1
    together = assign(ANCHORS, boxes_xyxy, labels)
    for i, n in enumerate((20, 5, 0)):
        alone = assign(ANCHORS, boxes_xyxy[i : i + 1, :n], labels[i : i + 1, :n])
        pick = slice(i, i + 1)
        same(Targets(together.labels[pick], together.box_codes[pick], together.num_positive[pick]), alone)


@pytest.mark.parametrize("boxes", [0, 3], ids=["no column", "only padding"])
def test_an_image_without_boxes_is_plain_background(boxes: int) -> None:
    targets = assign(ANCHORS, torch.full((2, boxes, 4), -1.0), torch.full((2, boxes), -1))
    assert targets.labels.eq(BACKGROUND).all()
    assert targets.box_codes.eq(0).all()
    assert targets.num_positive.tolist() == [0, 0]


@pytest.mark.parametrize(
    "box",
    [(20.0, 20, 20, 50), (20, 20, 50, 20), (50, 50, 20, 20), (30, 30, 30, 30), (5000, 5000, 5100, 5100)],
    ids=["no width", "no height", "inside out", "a point", "far outside"],
)
def test_a_box_without_area_or_anchor_matches_nothing_where_effdet_forces_the_first_anchor(
    box: tuple[float, ...],
) -> None:
    good, labels = scene(1, 4)
    alone = assign(ANCHORS, good, labels)
    boxes_xyxy = torch.cat((torch.tensor([[box]]), good), 1)
    targets = assign(ANCHORS, boxes_xyxy, torch.cat((torch.tensor([[6]]), labels), 1))
    assert targets.box_codes.isfinite().all()
    same(targets, alone)


def test_ignored_boxes_make_no_positive_and_no_background_inside_them() -> None:
    wanted, crowd = [10.0, 10, 40, 40], [60.0, 20, 150, 120]
    boxes_xyxy = torch.tensor([[wanted, crowd]])
    labels = torch.tensor([[1, 2]])
    targets = assign(ANCHORS, boxes_xyxy, labels, torch.tensor([[False, True]]))
    alone = assign(ANCHORS, boxes_xyxy[:, :1], labels[:, :1])
    crowd_box = boxes_xyxy[0, 1:]
    sides = torch.minimum(ANCHORS[:, 2:], crowd_box[:, 2:]) - torch.maximum(ANCHORS[:, :2], crowd_box[:, :2])
    inside = sides.clamp(min=0).prod(1) / (ANCHORS[:, 2:] - ANCHORS[:, :2]).prod(1) >= 0.5
    assert inside.any()
    assert (pairwise_iou(ANCHORS, crowd_box)[:, 0] >= 0.5).logical_and(~inside).sum() == 0
    assert torch.equal(targets.labels, alone.labels.masked_fill((inside & (alone.labels[0] < 0)).unsqueeze(0), IGNORED))
    assert torch.equal(targets.num_positive, alone.num_positive)


def test_a_positive_anchor_inside_a_crowd_stays_positive() -> None:
    boxes_xyxy = torch.tensor([[[60.0, 40, 92, 72], [0.0, 0, 160, 128]]])
    targets = assign(ANCHORS, boxes_xyxy, torch.tensor([[3, 3]]), torch.tensor([[False, True]]))
    assert targets.num_positive.item() == (targets.labels == 3).sum() > 0
    assert (targets.labels == IGNORED).any()


def test_an_anchor_that_two_boxes_want_most_goes_to_the_first() -> None:
    box = [3.0, 3, 5, 5]
    targets = assign(ANCHORS, torch.tensor([[box, box]]), torch.tensor([[4, 5]]))
    assert (targets.labels == 4).sum() == 1
    assert (targets.labels == 5).sum() == 0


@pytest.mark.parametrize("at_a_time", [1, 3000, 10**9], ids=["one by one", "some at a time", "all at once"])
@pytest.mark.parametrize("boxes", [0, 1, 40])
def test_looking_at_few_anchors_gives_what_looking_at_all_gives(
    boxes: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors = ANCHORS[-700:].clone()
    boxes_xyxy, labels = scene(3, boxes, seed=boxes)
    boxes_xyxy[1, 3:], labels[1, 3:] = -1.0, -1
    ignore = torch.arange(boxes).remainder(3).eq(1).expand(3, -1)
    present = labels >= 0
    dense = module._assign_densely(anchors, boxes_xyxy, labels, present & ~ignore, present & ignore, 0.5)
    monkeypatch.setattr(module, "_CPU_BOUNDS", at_a_time)
    same(assign(anchors, boxes_xyxy, labels, ignore), dense)
    if boxes < 40:
        monkeypatch.setattr(module, "_DEVICE_PAIRS", at_a_time)
        same(module._assign_densely(anchors, boxes_xyxy, labels, present & ~ignore, present & ignore, 0.5), dense)


def test_anchors_in_no_order_and_changed_in_place_are_matched_as_well() -> None:
    boxes_xyxy, labels = scene(2, 12)
    generator = torch.Generator().manual_seed(0)
    anchors = ANCHORS[torch.randperm(len(ANCHORS), generator=generator)].clone()
    everything = torch.ones_like(labels, dtype=torch.bool)
    for _ in range(2):
        same(
            assign(anchors, boxes_xyxy, labels),
            module._assign_densely(anchors, boxes_xyxy, labels, everything, None, 0.5),
        )
        anchors += 3.0


def scattered(rows: int | None) -> Tensor:
    """Return anchors anywhere, or with only so many different tops; of all widths either way."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(600, 2, generator=generator) * 160 - 10
    size = torch.exp(torch.rand(600, 2, generator=generator) * 5)
    if rows is not None:
        corner[:, 1], size[:, 1] = (corner[:, 1] / 150 * rows).floor() * 20, 30.0
    return torch.cat((corner, corner + size), 1)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.7])
@pytest.mark.parametrize(
    ("anchors", "to_boxes"),
    [
        (scattered(None), (1.0, 0.0)),
        (scattered(6), (1.0, 0.0)),
        (ANCHORS, (1.5, -20.0)),
        (ANCHORS, (0.0001, 0.0)),
        (ANCHORS + 5000, (1.0, 5000.0)),
        (ANCHORS[:1], (1.0, 0.0)),
    ],
    ids=["anywhere", "rows of all widths", "beyond the edges", "specks", "far from zero", "one anchor"],
)
def test_few_anchors_are_enough_wherever_anchors_and_boxes_lie(
    anchors: Tensor, to_boxes: tuple[float, float], threshold: float
) -> None:
    boxes_xyxy, labels = scene(3, 40)
    boxes_xyxy = boxes_xyxy * to_boxes[0] + to_boxes[1]
    wanted = (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(-1)
    same(
        assign(anchors, boxes_xyxy, labels, threshold=threshold),
        module._assign_densely(anchors, boxes_xyxy, labels, wanted, None, threshold),
    )


def test_anchors_made_in_inference_mode_are_matched_as_well() -> None:
    boxes_xyxy, labels = scene(2, 12)
    with torch.inference_mode():
        anchors = ANCHORS.clone()
        inside = assign(anchors, boxes_xyxy, labels)
    same(inside, assign(ANCHORS, boxes_xyxy, labels))
    same(assign(anchors, boxes_xyxy, labels), inside)
