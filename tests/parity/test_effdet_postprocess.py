"""Detections agree with effdet's, hard and soft NMS.

effdet numbers classes from 1; ours start at 0, so its numbers are compared less one. It also moves classes apart by an
offset in float32 before soft NMS, which rounds the boxes; few classes and small boxes keep that below the tolerance.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import effdet
    from effdet.anchors import Anchors as EffdetAnchors
    from effdet.bench import _batch_detection, _post_process

from effdense.tasks.detection.anchors import Anchors
from effdense.tasks.detection.postprocess import postprocess

pytestmark = pytest.mark.parity
SIZE, CLASSES = (128, 128), 3


def raw(batch: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor], EffdetAnchors]:
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = SIZE
    anchors = EffdetAnchors.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    cells = [tuple(size) for size in anchors.feat_sizes[3:8]]
    classes = [torch.randn(batch, 9 * CLASSES, *cell, generator=generator) * 2 - 2 for cell in cells]
    codes = [torch.randn(batch, 36, *cell, generator=generator) * 0.2 for cell in cells]
    return classes, codes, anchors


def flat(maps: list[Tensor], size: int) -> Tensor:
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, size) for one in maps], 1)


def effdet_detections(
    classes: list[Tensor], codes: list[Tensor], anchors: EffdetAnchors, scale: Tensor, size: Tensor, soft: bool
) -> Tensor:
    top = _post_process(classes, codes, num_levels=5, num_classes=CLASSES, max_detection_points=5000)
    return _batch_detection(len(scale), top[0], top[1], anchors.boxes, top[2], top[3], scale, size, 1000, soft)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_boxes_scores_and_classes_agree(soft: bool) -> None:
    batch = 3
    classes, codes, anchors = raw(batch)
    # Original sizes (W, H for effdet) of content that fills the input, its width, and its height.
    originals_hw = torch.tensor([[256, 256], [128, 256], [384, 192]])
    resized_hw = torch.tensor([[128, 128], [64, 128], [128, 64]])
    scale = (originals_hw[:, 0] / resized_hw[:, 0]).float()
    expected = effdet_detections(classes, codes, anchors, scale, originals_hw.flip(1).float(), soft)
    found = postprocess(
        flat(classes, CLASSES),
        flat(codes, 4),
        Anchors()(SIZE),
        image_size_hw=SIZE,
        original_sizes_hw=originals_hw,
        resized_sizes_hw=resized_hw,
        score_threshold=0.001 if soft else 0.0,
        nms="soft" if soft else "hard",
        max_detections=100,
    )
    for i in range(batch):
        # effdet keeps boxes without area, which lie wholly in the padding; we drop them
        area = (expected[i, :, 2:4] - expected[i, :, :2]).prod(1)
        theirs = expected[i][(area > 0) & (expected[i, :, 4] > 0)][:100]
        assert found.counts[i] == len(theirs) == 100
        torch.testing.assert_close(found.scores[i], theirs[:, 4], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes_xyxy[i], theirs[:, :4], rtol=1e-5, atol=1e-3)
        assert torch.equal(found.labels[i], theirs[:, 5].long() - 1)


def test_without_a_scale_nothing_is_resized() -> None:
    classes, codes, anchors = raw(1, seed=1)
    top = _post_process(classes, codes, num_levels=5, num_classes=CLASSES, max_detection_points=5000)
    full = torch.tensor([[float(SIZE[1]), float(SIZE[0])]])
    expected = _batch_detection(1, top[0], top[1], anchors.boxes, top[2], top[3], torch.ones(1), full, 100, False)[0]
    sizes = torch.tensor([SIZE])
    found = postprocess(
        flat(classes, CLASSES),
        flat(codes, 4),
        Anchors()(SIZE),
        image_size_hw=SIZE,
        original_sizes_hw=sizes,
        resized_sizes_hw=sizes,
    )
    torch.testing.assert_close(found.boxes_xyxy[0], expected[:, :4], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.scores[0], expected[:, 4])
