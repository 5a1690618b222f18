"""BiFPN, the weighted bidirectional feature pyramid of EfficientDet (arXiv 1911.09070, section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effdense.necks.separable import SeparableConv, activation, batch_norm, in_place, init_glorot_uniform

FUSION_EPS = 1e-4
"""Added to the sum of the fusion weights (paper, section 3.3)."""


class BiFPN(nn.Module):
    """Takes the backbone's feature maps, adds coarser ones, and fuses all of them top-down and bottom-up, repeatedly.

    A map is brought to another level by nearest upsampling to the target's own size, or by 3x3 max pooling with stride
    2, which yields ceil(size / 2); so any image size works.

    Attributes:
        num_inputs: feature maps that it reads.
        channels: of every level that comes out.
        strides: of the levels that come out, finest first.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_levels: int = 5,
        channels: int = 64,
        repeats: int = 3,
        fusion: str = "fastattn",
        act: str = "silu",
        finest_only: bool = False,
    ):
        """Build the pyramid.

        Args:
            in_channels: of the backbone's feature maps, finest first.
            in_strides: of the same maps; each twice the one before.
            num_levels: levels that come out; those beyond the backbone's are made by pooling.
            channels: of every level that comes out.
            repeats: how many times the two-way fusion is applied.
            fusion: ``"fastattn"``, learned non-negative weights divided by their sum, or ``"sum"``, a plain sum.
            act: ``"silu"`` or ``"relu6"``.
            finest_only: yield the finest level alone, for a head that reads no other; the last repeat then ends with
                its top-down pass, as nothing would ever read or train its bottom-up one.

        Raises:
            ValueError: if the values do not fit together.
        """
        super().__init__()
        _check(in_channels, in_strides, num_levels, repeats, fusion)
        self.num_inputs = len(in_channels)
        levels_out = 1 if finest_only else num_levels
        self.channels = (channels,) * levels_out
        self.strides = tuple(in_strides[0] * 2**level for level in range(levels_out))
        sources = [in_channels[-1]] + [channels] * (num_levels - len(in_channels) - 1)
        self.extra = nn.ModuleList(_lateral(source, channels) for source in sources[: num_levels - len(in_channels)])
        widths = list(in_channels) + [channels] * (num_levels - len(in_channels))
        cells = []
        for number in range(1, repeats + 1):
            cells.append(_Cell(widths, channels, fusion, act, finest_only=finest_only and number == repeats))
            widths = [channels] * num_levels
        self.cells = nn.Sequential(*cells)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_glorot_uniform(module)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the backbone's features, finest first, to one (B, channels, h, w) for each level that comes out.

        Maps finer than those that the pyramid was built for, as another head on the same backbone may need, come first
        in the list and are left aside.
        """
        pyramid = list(features[-self.num_inputs :])
        for lateral in self.extra:
            pyramid.append(halve(lateral(pyramid[-1])))
        fused: list[Tensor] = self.cells(pyramid)
        return fused


class FinerLevel(nn.Module):
    """One level below a pyramid that is there already: its finest level, brought up, fused with a map of that size.

    The last step of a BiFPN's top-down pass (arXiv 1911.09070, figure 3), for a head that reads finer maps than the
    pyramid has, such as P2 below the P3 to P7 of a detector.

    Attributes:
        channels: of the map that comes out.
    """

    def __init__(self, in_channels: int, channels: int, fusion: str = "fastattn", act: str = "silu"):
        """Build the level.

        Args:
            in_channels: of the backbone's feature map.
            channels: of the pyramid, and of the map that comes out.
            fusion: as the pyramid's.
            act: as the pyramid's.
        """
        super().__init__()
        self.channels = channels
        self.lateral = _lateral(in_channels, channels)
        self.node = _Node(2, channels, fusion, act)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_glorot_uniform(module)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Map the backbone's (B, C, h, w) and the pyramid's (B, channels, h / 2, w / 2) to (B, channels, h, w)."""
        lateral = self.lateral(fine)
        fused: Tensor = self.node([lateral, resize_like(coarse, lateral)])
        return fused


class _Cell(nn.Module):
    """One two-way pass over all levels.

    Top-down, each level but the coarsest is fused with the one above; bottom-up, each level but the finest is fused
    from its input, its top-down result and the level below. The coarsest level has no top-down result of its own.
    With ``finest_only`` there is no bottom-up pass, and the finest level comes out alone.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, fusion: str, act: str, finest_only: bool = False):
        super().__init__()
        last = len(in_channels) - 1
        bottom_up = range(1, 1 if finest_only else last + 1)
        # The first level's input is used once, the middle ones' twice: each use has a 1x1 convolution of its own.
        self.down_laterals = nn.ModuleList(_lateral(width, channels) for width in in_channels)
        self.up_laterals = nn.ModuleList(_lateral(in_channels[level], channels) for level in bottom_up if level < last)
        self.down = nn.ModuleList(_Node(2, channels, fusion, act) for _ in range(last))
        self.up = nn.ModuleList(_Node(3 if level < last else 2, channels, fusion, act) for level in bottom_up)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        last = len(pyramid) - 1
        laterals = [lateral(level) for lateral, level in zip(self.down_laterals, pyramid, strict=True)]
        down = laterals.copy()
        for i in range(last - 1, -1, -1):
            down[i] = self.down[i]([laterals[i], resize_like(down[i + 1], laterals[i])])
        out = [down[0]]
        for i in range(1, len(self.up) + 1):
            below = halve(out[-1])
            inputs = [self.up_laterals[i - 1](pyramid[i]), down[i], below] if i < last else [laterals[i], below]
            out.append(self.up[i - 1](inputs))
        return out


class _Node(nn.Module):
    """Fuses maps of one size, then activation, separable convolution and BatchNorm."""

    def __init__(self, num_inputs: int, channels: int, fusion: str, act: str):
        super().__init__()
        self.num_inputs = num_inputs
        self.weights = nn.Parameter(torch.ones(num_inputs)) if fusion == "fastattn" else None
        self.constant_shares: tuple[float, ...] = ()  # of a network in its inference form
        self.act = activation(act)
        self.conv = SeparableConv(channels, channels)
        self.norm = batch_norm(channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        y: Tensor = self.norm(self.conv(self.act(self._fused(maps))))
        return y

    def specialise(self) -> None:
        """Count the weights once; see `effdense.inference_form`."""
        shares = [1.0] * self.num_inputs if self.weights is None else self._shares(self.weights).tolist()
        self.constant_shares = tuple(shares)
        self.act = in_place(self.act)

    def _fused(self, maps: list[Tensor]) -> Tensor:
        """Return the weighted sum of maps (B, C, h, w), which nobody else holds."""
        if self.constant_shares:
            fused = maps[0] * self.constant_shares[0]
            for one, share in zip(maps[1:], self.constant_shares[1:], strict=True):
                fused = fused.add_(one, alpha=share)
            return fused
        if self.weights is not None:
            shares = self._shares(self.weights).to(maps[0].dtype).unbind()
            maps = [share * one for share, one in zip(shares, maps, strict=True)]
        fused = maps[0] + maps[1]
        for one in maps[2:]:
            fused = fused + one
        return fused

    def _shares(self, weights: Tensor) -> Tensor:
        # In float32, also under autocast or where the whole model is half: the weights are few and decide much.
        weights = F.relu(weights.float())
        return weights / (weights.sum() + FUSION_EPS)


def halve(x: Tensor) -> Tensor:
    """Max-pool (B, C, h, w) to (B, C, ceil(h / 2), ceil(w / 2)), windows laid as TensorFlow's SAME padding lays them.

    That pads an odd size by one on both sides, and an even one at the end only, which is what ``ceil_mode`` does.
    """
    if torch.compiler.is_compiling():  # an exported program is to hold the parity as a number, not as the branch taken
        padded = F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1), value=float("-inf"))
        return F.max_pool2d(padded, 3, stride=2)
    return F.max_pool2d(x, 3, stride=2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


def resize_like(x: Tensor, target: Tensor) -> Tensor:
    """Resize (B, C, h, w) to the height and width of ``target`` by repeating the nearest cell."""
    if not torch.compiler.is_compiling() and x.shape[2:] == target.shape[2:]:  # compiled, it would hold for one size
        return x
    return F.interpolate(x, size=target.shape[2:], mode="nearest")


def _lateral(in_channels: int, channels: int) -> nn.Module:
    """Bring a map to the pyramid's channels: 1x1 convolution and BatchNorm, or nothing where it has them already."""
    if in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), batch_norm(channels))


def _check(in_channels: Sequence[int], in_strides: Sequence[int], num_levels: int, repeats: int, fusion: str) -> None:
    if len(in_channels) != len(in_strides) or not in_channels:
        raise ValueError(
            f"a BiFPN needs one stride for each feature map; got channels {tuple(in_channels)} and strides "
            f"{tuple(in_strides)}"
        )
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(in_strides)):
        raise ValueError(f"each stride must be twice the one before, for example 8, 16, 32; got {tuple(in_strides)}")
    if num_levels < max(2, len(in_channels)):
        raise ValueError(
            f"num_levels is {num_levels}, but at least {max(2, len(in_channels))} are needed for {len(in_channels)} "
            "feature maps"
        )
    if repeats < 1:
        raise ValueError(f"a BiFPN needs at least one repeat; got {repeats}")
    if fusion not in ("fastattn", "sum"):
        raise ValueError(f"fusion {fusion!r} is unknown; known are 'fastattn' and 'sum'")
