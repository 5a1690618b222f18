"""Targets agree with effdet's labeler, ties and forced matches included; where it is wrong, the test says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import effdet
    from effdet.anchors import AnchorLabeler
    from effdet.anchors import Anchors as EffdetAnchors

from effdense.tasks.detection.anchors import Anchors
from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.specs import get_spec

pytestmark = pytest.mark.parity


def effdet_targets(name: str, size_hw: tuple[int, int], boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    config.image_size = size_hw
    labeler = AnchorLabeler(EffdetAnchors.from_config(config), 90)
    classes, codes, positives = labeler.batch_label_anchors(
        boxes[..., [1, 0, 3, 2]], torch.where(labels < 0, -1, labels + 1)
    )
    flat = torch.cat([one.reshape(len(boxes), -1) for one in classes], 1)
    return flat, torch.cat([one.reshape(len(boxes), -1, 4) for one in codes], 1), positives


def our_anchors(name: str, size_hw: tuple[int, int]) -> Tensor:
    spec = get_spec(name)
    return Anchors(spec.min_level, spec.max_level, spec.num_scales, spec.aspect_ratios, spec.anchor_scale)(size_hw)


def scene(kind: str, size_hw: tuple[int, int], batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(kind))
    limit = torch.tensor([size_hw[1], size_hw[0]])
    if kind == "whole image":
        corner, size = torch.zeros(batch, 1, 2), limit.float().expand(batch, 1, 2).clone()
    elif kind == "twins":
        corner = torch.rand(batch, 4, 2, generator=generator) * 60
        size = torch.rand(batch, 4, 2, generator=generator) * 50 + 4
        corner, size = corner.repeat(1, 3, 1), size.repeat(1, 3, 1)
    else:
        n, scale, grid = {
            "few": (3, 4.0, None),
            "crowded": (60, 4.0, None),
            "tiny": (20, 1.5, None),
            "whole pixels": (25, 4.0, 1.0),
            "on the grid": (25, 4.0, 8.0),
            "over a hundred": (150, 3.0, None),
        }[kind]
        corner = torch.rand(batch, n, 2, generator=generator) * (limit - 8)
        size = torch.exp(torch.rand(batch, n, 2, generator=generator) * scale) + 1
        if grid:
            corner, size = (corner / grid).floor() * grid, (size / grid).ceil() * grid
    boxes = torch.cat((corner, corner + size), -1)
    return boxes.minimum(torch.cat((limit, limit))), torch.randint(0, 90, boxes.shape[:2], generator=generator)


KINDS = ["few", "crowded", "tiny", "whole pixels", "on the grid", "over a hundred", "whole image", "twins"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "size_hw"), [("d0", (128, 128)), ("lite0", (192, 128)), ("d7x", (256, 256)), ("d7", (97, 131))], ids=str
)
def test_labels_codes_and_counts_agree(name: str, size_hw: tuple[int, int], kind: str) -> None:
    boxes, labels = scene(kind, size_hw)
    expected_labels, expected_codes, expected_positives = effdet_targets(name, size_hw, boxes, labels)
    targets = assign(our_anchors(name, size_hw), boxes, labels)
    assert torch.equal(targets.labels, expected_labels)
    torch.testing.assert_close(targets.box_codes, expected_codes, rtol=1e-5, atol=1e-5)
    assert torch.equal(targets.num_positive.float(), expected_positives)
    assert (targets.num_positive > 0).all()


def test_padding_and_images_without_boxes_agree() -> None:
    boxes, labels = scene("few", (128, 128))
    boxes[1], labels[1] = -1.0, -1
    boxes[2, 1:], labels[2, 1:] = -1.0, -1
    expected_labels, expected_codes, expected_positives = effdet_targets("d0", (128, 128), boxes, labels)
    targets = assign(our_anchors("d0", (128, 128)), boxes, labels)
    assert torch.equal(targets.labels, expected_labels)
    torch.testing.assert_close(targets.box_codes, expected_codes, rtol=1e-5, atol=1e-5)
    assert torch.equal(targets.num_positive.float(), expected_positives)


def test_effdet_forces_a_degenerate_box_upon_the_first_anchor_and_we_do_not() -> None:
    boxes, labels = torch.tensor([[[20.0, 20, 20, 50]]]), torch.tensor([[4]])
    expected_labels, _, _ = effdet_targets("d0", (128, 128), boxes, labels)
    assert expected_labels[0, 0] == 4
    targets = assign(our_anchors("d0", (128, 128)), boxes, labels)
    assert targets.labels.eq(-1).all()
    assert targets.num_positive.item() == 0
