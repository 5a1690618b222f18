"""Depthwise-separable convolution, the building block of the BiFPN and of the heads, and its initialisations."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

NORM_EPS = 1e-3
"""BatchNorm's epsilon in EfficientDet (google/automl hparams, ``batch_norm_epsilon``)."""

NORM_MOMENTUM = 0.01
"""BatchNorm's momentum in EfficientDet, as PyTorch counts it (google/automl has 0.99, the share that is kept)."""


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return BatchNorm with the constants that EfficientDet was published with."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,  # not in place: autograd would have to clone the input first
    "relu6": lambda: nn.ReLU6(inplace=True),
}


def activation(name: str) -> nn.Module:
    """Return the activation module: ``"silu"`` (D0-D7x) or ``"relu6"`` (Lite).

    Raises:
        ValueError: for any other name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; known are {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]()


def in_place(act: nn.Module) -> nn.Module:
    """Return an activation that overwrites its input, for where no gradient is asked for."""
    return nn.SiLU(inplace=True) if isinstance(act, nn.SiLU) else act


class SeparableConv(nn.Module):
    """3x3 depthwise, then 1x1 pointwise convolution; keeps height and width.

    A bias belongs to the pointwise convolution, and only where no BatchNorm follows: the original TensorFlow models
    carry one before BatchNorm as well, where it has no effect (``effdense.tasks.detection.weights`` folds it away).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, h, w) to (B, C_out, h, w)."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


def init_glorot_uniform(conv: nn.Conv2d) -> None:
    """Initialise as TensorFlow's layers do by default (Glorot and Bengio 2010), the bias with zeros."""
    fan_in, fan_out = _fans(conv)
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    nn.init.uniform_(conv.weight, -limit, limit)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_fan_in_normal(conv: nn.Conv2d) -> None:
    """Initialise with variance 1 / fan-in, as TensorFlow's ``VarianceScaling`` does, the bias with zeros."""
    fan_in, _ = _fans(conv)
    nn.init.normal_(conv.weight, std=math.sqrt(1.0 / fan_in))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _fans(conv: nn.Conv2d) -> tuple[int, int]:
    """Inputs that one output sees, and outputs that one input reaches."""
    area = conv.kernel_size[0] * conv.kernel_size[1]
    return conv.in_channels // conv.groups * area, conv.out_channels // conv.groups * area
