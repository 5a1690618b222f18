"""Anchors, and the codes that say where a box lies relative to its anchor.

Order, everywhere in this package: anchors run over level, row, column, anchor; the anchors of one position over scale
octave, then aspect ratio. The four numbers of a box code are (ty, tx, th, tw), y before x, as TensorFlow's EfficientDet
has them, so that published weights need no permutation. All boxes are xyxy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CODE_EPS = 1e-7
"""Added to widths and heights before dividing (google/automl ``faster_rcnn_box_coder.py``)."""

_CACHED_SIZES = 16


class Anchors:
    """The anchors of any image size, made once for each size and device."""

    def __init__(
        self,
        min_level: int = 3,
        max_level: int = 7,
        num_scales: int = 3,
        aspect_ratios: Sequence[tuple[float, float]] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)),
        anchor_scale: float = 4.0,
    ):
        """Describe the anchors (google/automl ``anchors.py``).

        Args:
            min_level: finest level.
            max_level: coarsest level.
            num_scales: sizes in an octave: 2 ** (i / num_scales).
            aspect_ratios: width and height factors.
            anchor_scale: side of the smallest square anchor, in strides of its level.
        """
        self.levels = range(min_level, max_level + 1)
        self.shapes = tuple(
            (anchor_scale * 2 ** (octave / num_scales) * wide, anchor_scale * 2 ** (octave / num_scales) * high)
            for octave in range(num_scales)
            for wide, high in aspect_ratios
        )
        self._cache: dict[tuple[int, int, torch.device], Tensor] = {}

    @property
    def per_cell(self) -> int:
        """Anchors at one position of one level."""
        return len(self.shapes)

    def feature_sizes(self, image_size_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of each level: the image's, halved and rounded up once for each level."""
        height, width = image_size_hw
        return [(-(-height // 2**level), -(-width // 2**level)) for level in self.levels]

    def __call__(self, image_size_hw: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
        """Return the anchors of an image: float32, (A, 4), corners in pixels, also beyond the image's edges.

        Args:
            image_size_hw: height and width of the model's input, in pixels.
            device: where to put them.
        """
        height, width = int(image_size_hw[0]), int(image_size_hw[1])
        key = (height, width, torch.device(device or "cpu"))
        if key not in self._cache:
            if len(self._cache) >= _CACHED_SIZES:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = self._make(height, width).to(key[2])
        return self._cache[key]

    def _make(self, height: int, width: int) -> Tensor:
        """Compute in float64, where an image that is no multiple of the stride has fractional strides."""
        levels = []
        shapes = torch.tensor(self.shapes, dtype=torch.float64, device="cpu")  # (n, 2), width and height in strides
        for rows, columns in self.feature_sizes((height, width)):
            stride = torch.tensor((width / columns, height / rows), dtype=torch.float64, device="cpu")
            x = (torch.arange(columns, dtype=torch.float64, device="cpu") + 0.5) * stride[0]
            y = (torch.arange(rows, dtype=torch.float64, device="cpu") + 0.5) * stride[1]
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2)  # (rows * columns, 1, 2)
            halves = shapes * stride / 2  # (n, 2)
            levels.append(torch.cat((centres - halves, centres + halves), -1).reshape(-1, 4))
        return torch.cat(levels).float()


def encode(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Describe boxes relative to anchors, one for one (arXiv 1506.01497, section 3.1.2).

    Args:
        boxes_xyxy: (..., 4).
        anchors_xyxy: (..., 4).

    Returns:
        Codes (ty, tx, th, tw), (..., 4): the centre's offset in anchor sizes and the logarithm of the size ratio.
    """
    x, y, width, height = _centres_and_sizes(boxes_xyxy)
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sizes(anchors_xyxy)
    width, height = width + CODE_EPS, height + CODE_EPS
    anchor_width, anchor_height = anchor_width + CODE_EPS, anchor_height + CODE_EPS
    return torch.stack(
        (
            (y - anchor_y) / anchor_height,
            (x - anchor_x) / anchor_width,
            torch.log(height / anchor_height),
            torch.log(width / anchor_width),
        ),
        -1,
    )


def decode(box_codes: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Undo ``encode``: codes (ty, tx, th, tw), (..., 4), and their anchors, (..., 4), to boxes_xyxy, (..., 4)."""
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sizes(anchors_xyxy)
    ty, tx, th, tw = box_codes.unbind(-1)
    x, y = tx * anchor_width + anchor_x, ty * anchor_height + anchor_y
    half_width, half_height = torch.exp(tw) * anchor_width / 2, torch.exp(th) * anchor_height / 2
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), -1)


def _centres_and_sizes(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + width / 2, y1 + height / 2, width, height
