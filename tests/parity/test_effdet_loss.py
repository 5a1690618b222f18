"""Loss and gradients agree with effdet's, both of its focal losses, from one set of outputs and boxes."""

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
    from effdet.loss import DetectionLoss as EffdetLoss

from effdense.tasks.detection.anchors import Anchors
from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.loss import BOX_WEIGHT, DetectionLoss
from effdense.tasks.detection.specs import SPECS

pytestmark = pytest.mark.parity
SIZE, CLASSES = (128, 128), 5


def flat(maps: list[Tensor], size: int) -> Tensor:
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, size) for one in maps], 1)


@pytest.mark.parametrize("legacy", [False, True], ids=["new focal", "legacy focal"])
@pytest.mark.parametrize("boxes", [0, 1, 12], ids=["no box", "one box", "twelve boxes"])
@pytest.mark.parametrize("spread", [1.0, 8.0], ids=["moderate logits", "extreme logits"])
def test_loss_and_gradients_agree_to_1e_5(legacy: bool, boxes: int, spread: float) -> None:
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size, config.num_classes, config.legacy_focal = SIZE, CLASSES, legacy
    anchors = EffdetAnchors.from_config(config)
    generator = torch.Generator().manual_seed(boxes)
    cells = [tuple(size) for size in anchors.feat_sizes[3:8]]
    classes = [(torch.randn(2, 9 * CLASSES, *cell, generator=generator) * spread).requires_grad_() for cell in cells]
    codes = [torch.randn(2, 36, *cell, generator=generator).requires_grad_() for cell in cells]
    corner = torch.rand(2, boxes, 2, generator=generator) * 80
    boxes_xyxy = torch.cat((corner, corner + torch.rand(2, boxes, 2, generator=generator) * 40 + 4), -1)
    labels = torch.randint(0, CLASSES, (2, boxes), generator=generator)

    wanted = AnchorLabeler(anchors, CLASSES).batch_label_anchors(boxes_xyxy[..., [1, 0, 3, 2]], labels + 1)
    total, class_loss, box_loss = EffdetLoss(config)(classes, codes, *wanted)
    expected = torch.autograd.grad(total, classes + codes)

    losses = DetectionLoss()(flat(classes, CLASSES), flat(codes, 4), assign(Anchors()(SIZE), boxes_xyxy, labels))
    torch.testing.assert_close(losses["class"], class_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["box"], box_loss, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(losses["class"] + BOX_WEIGHT * losses["box"], classes + codes)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_the_constants_are_effdets_for_every_configuration(name: str) -> None:
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    ours = DetectionLoss()
    assert (ours.alpha, ours.gamma, ours.delta, ours.label_smoothing, BOX_WEIGHT) == (
        config.alpha,
        config.gamma,
        config.delta,
        config.label_smoothing,
        config.box_loss_weight,
    )
