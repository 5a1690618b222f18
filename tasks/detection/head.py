"""The class and the box head of EfficientDet (arXiv 1911.09070, section 4.2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from effdense.necks.separable import SeparableConv, activation, batch_norm, in_place, init_fan_in_normal

PRIOR = 0.01
"""Score that an untrained class head gives to everything (arXiv 1708.02002, section 4.1)."""


class Predictor(nn.Module):
    """A tower of separable convolutions that all levels share, with BatchNorms of each level's own, then the outputs.

    Initialised as TensorFlow's EfficientDet is: normal with variance 1 / fan-in.
    """

    def __init__(self, channels: int, repeats: int, num_levels: int, num_outputs: int, act: str, prior: float = 0.5):
        """Build the tower.

        Args:
            channels: that come in and go through.
            repeats: convolutions before the last one.
            num_levels: levels that come in.
            num_outputs: channels that come out.
            act: ``"silu"`` or ``"relu6"``.
            prior: the last convolution's bias is set so that its sigmoid is this; 0.5 is a bias of 0.
        """
        super().__init__()
        self.num_levels = num_levels
        self.convs = nn.ModuleList(SeparableConv(channels, channels) for _ in range(repeats))
        self.norms = nn.ModuleList(
            nn.ModuleList(batch_norm(channels) for _ in range(num_levels)) for _ in range(repeats)
        )
        self.act = activation(act)
        self.predict = SeparableConv(channels, num_outputs, bias=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_fan_in_normal(module)
        if self.predict.pointwise.bias is not None:
            nn.init.constant_(self.predict.pointwise.bias, math.log(prior / (1 - prior)))

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Map (B, channels, h, w) of each level to (B, num_outputs, h, w)."""
        outputs = []
        for level, x in enumerate(pyramid):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                of_level = conv[level] if isinstance(conv, nn.ModuleList) else conv
                x = self.act(norms[level](of_level(x)))  # type: ignore[index]
            outputs.append(self.predict(x))
        return outputs

    def separate(self) -> None:
        """Give each level convolutions of its own, into which its BatchNorms can go; see `effdense.inference_form`."""
        for number, conv in enumerate(self.convs):
            self.convs[number] = nn.ModuleList(copy.deepcopy(conv) for _ in range(self.num_levels))

    def specialise(self) -> None:
        """Need no gradients; see `effdense.inference_form`."""
        self.act = in_place(self.act)


class DetectionHead(nn.Module):
    """Class logits and box codes of every anchor."""

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        anchors_per_cell: int = 9,
        repeats: int = 3,
        act: str = "silu",
    ):
        """Build both heads.

        Args:
            in_channels: of the pyramid's levels; all the same.
            num_classes: K.
            anchors_per_cell: anchors at one position of one level.
            repeats: convolutions of each head before its last one.
            act: ``"silu"`` or ``"relu6"``.

        Raises:
            ValueError: if the levels differ in channels, or there is no class.
        """
        super().__init__()
        if len(set(in_channels)) != 1:
            raise ValueError(f"the heads are shared by all levels, which must have equal channels; got {in_channels}")
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class; got {num_classes}")
        self.num_classes = num_classes
        channels, levels = in_channels[0], len(in_channels)
        self.classes = Predictor(channels, repeats, levels, anchors_per_cell * num_classes, act, prior=PRIOR)
        self.boxes = Predictor(channels, repeats, levels, anchors_per_cell * 4, act)

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits (B, A, K) and box codes (B, A, 4); ``anchors`` says in which order."""
        classes, boxes = self.by_level(pyramid)
        return torch.cat(classes, 1), torch.cat(boxes, 1)

    def by_level(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the same level by level, for those who do not need them behind each other, which takes a copy."""
        return rows_of_anchors(self.classes(pyramid), self.num_classes), rows_of_anchors(self.boxes(pyramid), 4)


def rows_of_anchors(maps: list[Tensor], size: int) -> list[Tensor]:
    """Return (B, anchors * size, h, w) of each level as (B, A, size), over row, column, anchor."""
    return [one.permute(0, 2, 3, 1).reshape(one.shape[0], -1, size) for one in maps]
