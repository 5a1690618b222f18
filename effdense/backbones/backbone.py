"""The one backbone class: an EfficientNet trunk that yields features at several strides."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effdense.backbones.statistics import Triple, triple
from effdense.errors import UserError

FREEZE_LIMIT = 8
"""The most that ``freeze_stages`` takes: the stem and seven stages, all that any network has."""


@dataclass
class _Shared:
    """What backbones on the same modules have in common besides them."""

    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    weights_source: str = "none"
    frozen: int = 0


class Backbone(nn.Module):
    """An EfficientNet without its classifier; parameters keep timm's names.

    Attributes:
        name: alias or timm name.
        channels: C of each feature map returned.
        strides: true stride of each feature map returned; feature sizes are ceil(size / stride).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        out_strides: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Take the stem and the blocks of a timm EfficientNet, as deep as the strides ask.

        Args:
            network: timm's ``EfficientNet``; its modules are shared, not copied.
            name: what to call the backbone.
            out_strides: strides wanted, any order; features are returned from fine to coarse. Each is the stride that
                its level has without dilation.
            mean: of the input in 0..1, per channel.
            std: of the input in 0..1, per channel.

        Raises:
            UserError: a stride that the network does not have, or a mean or std that is no three numbers.
        """
        super().__init__()
        self.name = name
        self._levels = _levels(network)
        self._shared = _Shared()
        self.conv_stem: nn.Module = network.get_submodule("conv_stem")
        self.bn1: nn.Module = network.get_submodule("bn1")
        self._read(out_strides, network.get_submodule("blocks"))
        self.set_statistics(mean, std)

    @property
    def mean(self) -> Triple:
        """Mean of the input in 0..1, per channel."""
        return self._shared.mean

    @property
    def std(self) -> Triple:
        """Standard deviation of the input in 0..1, per channel."""
        return self._shared.std

    @property
    def weights_source(self) -> str:
        """``"none"``, or a sentence that says where the weights came from."""
        return self._shared.weights_source

    @weights_source.setter
    def weights_source(self, source: str) -> None:
        self._shared.weights_source = source

    def yielding(self, out_strides: Sequence[int]) -> Backbone:
        """Return a backbone on the same modules that yields other levels, for another head.

        The two have one set of weights, one normalisation and one count of frozen stages, also where these change
        later. Where fewer levels are read there are fewer stages.

        Args:
            out_strides: as in the constructor.

        Raises:
            UserError: a stride that this backbone, perhaps cut short itself, does not have.
        """
        other = copy.copy(self)
        # The buffers stay one dictionary: what moves the one to another device moves the other.
        other._modules = dict(self._modules)
        other._read(out_strides, self.blocks)
        return other

    def _read(self, out_strides: Sequence[int], stages: nn.Module) -> None:
        """Choose the levels that come out, and keep the stages which that takes."""
        wanted = sorted(set(out_strides))
        if not wanted or not set(wanted) <= self._levels.keys():
            known = ", ".join(map(str, self._levels))
            raise UserError(f"out_strides is {tuple(out_strides)}; backbone {self.name!r} yields strides {known}")
        self._taps = tuple(self._levels[stride]["stage"] for stride in wanted)
        self.channels: tuple[int, ...] = tuple(self._levels[stride]["num_chs"] for stride in wanted)
        self.strides: tuple[int, ...] = tuple(self._levels[stride]["reduction"] for stride in wanted)
        self._levels = {stride: level for stride, level in self._levels.items() if stride <= wanted[-1]}
        self.blocks = nn.Sequential(*list(stages.children())[: self._taps[-1]])
        self.blocks.training = stages.training  # its own flag alone: each stage keeps its mode

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of RGB images.

        Args:
            images: (B, 3, H, W), uint8 or floats in 0..255, any H and W.

        Returns:
            One (B, C, h, w) per stride, fine to coarse.
        """
        return self.features(self.normalise(images))

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and std, in 0..1 and one per channel, by which images are normalised.

        Raises:
            UserError: either is no three numbers, or a std is not above 0.
        """
        mean, std = triple(mean, "mean"), triple(std, "std")
        if min(std) <= 0:
            raise UserError(f"std is {std}; each of its three numbers must be above 0")
        self._shared.mean, self._shared.std = mean, std
        device = next(self.parameters()).device
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):
            pixels = torch.tensor([value * 255 for value in values], device=device)  # images come in 0..255
            self.register_buffer(name, pixels.view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) images in 0..255 as (images / 255 - mean) / std."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; a backbone takes (B, 3, H, W)")
        return (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def features(self, x: Tensor) -> list[Tensor]:
        """Return one (B, C, h, w) per stride for already normalised (B, 3, H, W) floats."""
        outputs = []
        with self._gradients(0):
            x = self.bn1(self.conv_stem(x))
        if 0 in self._taps:
            outputs.append(x)
        for number, stage in enumerate(self.blocks, start=1):
            with self._gradients(number):
                x = stage(x)
            if number in self._taps:
                outputs.append(x)
        return outputs

    def freeze_stages(self, n: int) -> None:
        """Freeze the first ``n`` of stem and stages: weights, BatchNorm statistics and their backward pass.

        Replaces what was frozen before, so 0 thaws all. A network with fewer stages is frozen whole.

        Args:
            n: 0 none, 1 the stem, 2 the stem and the first stage, and so on to 8, all of it.

        Raises:
            UserError: ``n`` is out of range.
        """
        if not 0 <= n <= FREEZE_LIMIT:
            raise UserError(
                f"freeze_stages is {n}; it counts the stem and the stages after it, from 0 to {FREEZE_LIMIT}"
            )
        for part in self._parts()[: self._shared.frozen]:
            part.requires_grad_(True).train(self.training)
        self._shared.frozen = n
        for part in self._parts()[:n]:
            part.requires_grad_(False).eval()

    @property
    def frozen_stages(self) -> int:
        """What `freeze_stages` was last told."""
        return self._shared.frozen

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._parts()[: self._shared.frozen]:
            part.eval()
        return self

    def parts(self) -> list[nn.Module]:
        """Return the modules that run one after the other: the stem's convolution and norm, then each stage."""
        return [self.conv_stem, self.bn1, *self.blocks]

    def _gradients(self, part: int) -> AbstractContextManager[Any]:
        """Return the context in which a part runs: a frozen one builds no backward graph."""
        return torch.no_grad() if part < self._shared.frozen else nullcontext()

    def _parts(self) -> list[nn.Module]:
        """What ``freeze_stages`` counts: the stem, then each stage."""
        return [nn.ModuleList([self.conv_stem, self.bn1]), *self.blocks]


def _levels(network: nn.Module) -> dict[int, dict[str, Any]]:
    """Return timm's feature levels by the stride that each has without dilation."""
    info: list[dict[str, Any]] = list(network.feature_info)  # type: ignore[arg-type]
    return {2 ** (index + 1): level for index, level in enumerate(info)}
