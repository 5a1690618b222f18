"""Samples to transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from effdense.types import Sample

SampleOf = Callable[..., Sample]


@pytest.fixture
def sample_of() -> SampleOf:
    """Return a maker of samples: noise as image, or, drawn, each box as a rectangle in image and mask."""

    def make(
        size_hw: tuple[int, int] = (60, 80),
        boxes: Sequence[Sequence[float]] = (),
        *,
        drawn: bool = False,
        seed: int = 0,
    ) -> Sample:
        boxes_xyxy = np.array(boxes, np.float32).reshape(-1, 4)
        count = len(boxes_xyxy)
        image = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        mask = None
        if drawn:
            image = np.zeros((*size_hw, 3), np.uint8)
            mask = np.zeros(size_hw, np.uint8)
            for number, (x1, y1, x2, y2) in enumerate(boxes_xyxy.astype(int), start=1):
                mask[y1:y2, x1:x2] = number
                image[y1:y2, x1:x2] = 255
        return Sample(
            image=image,
            boxes_xyxy=boxes_xyxy,
            labels=np.arange(count, dtype=np.int64),
            crowd=np.arange(count) % 2 == 1,
            difficult=np.arange(count) % 3 == 2,
            mask=mask,
            image_id=7,
            original_size_hw=size_hw,
            resized_size_hw=size_hw,
        )

    return make
