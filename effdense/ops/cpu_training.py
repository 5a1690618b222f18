"""What a training step on a CPU computes in another way than PyTorch does, to the same result.

`FastCpuTraining` puts these in the place of the calls that modules make, whichever module calls:

- depthwise convolutions have a backward pass of their own (`effdense.ops.depthwise`);
- 1x1 convolutions of channels-last maps are matrix products, whose gradients are up to five times faster in float32;
- ReLU6 in place in bfloat16 compares bit patterns instead of converting every number to float32 and back;
- SiLU is not done in place where that would have autograd copy its input first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from effdense.ops.depthwise import Pads, depthwise_conv2d

_CONVOLUTIONS = frozenset({torch.conv2d, F.conv2d})
_DTYPES = (torch.float32, torch.bfloat16)

_SIX = 6.0
_BITS_OF_SIX = 0x40C0
"""In bfloat16; as integers, the bits of numbers not below 0 are in the order of the numbers, and others are below 0."""

_RELU6 = {"min_val": 0.0, "max_val": _SIX, "inplace": True}

_active: ContextVar[bool] = ContextVar("effdense_fast_cpu_training", default=False)


class FastCpuTraining(TorchFunctionMode):
    """A context in which training on a CPU takes the faster ways; under autocast in its type."""

    def __enter__(self) -> FastCpuTraining:
        """Begin."""
        self._before: Token[bool] = _active.set(True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _active.reset(self._before)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, in our way where there is one."""
        if func in _CONVOLUTIONS and not kwargs and len(args) == 7 and torch.is_grad_enabled():
            x, weight, bias, stride, padding, dilation, groups = args
            if tuple(dilation) == (1, 1) and not isinstance(padding, str):
                pads = (padding[0], padding[1], padding[0], padding[1])
                if is_fast_depthwise(x, weight, bias, groups):
                    return fast_depthwise(x, weight, tuple(stride), pads)
                if groups == 1 and weight.shape[2:] == (1, 1) == tuple(stride) and not any(padding):
                    return _pointwise(x, weight, bias)
        elif func is F.hardtanh and kwargs == _RELU6:  # PyTorch names all of them here, however it was called
            if args[0].dtype == torch.bfloat16 and args[0].device.type == "cpu" and args[0].dim() == 4:
                return _ReLU6.apply(args[0])
        elif func is F.silu and args[0].requires_grad and torch.is_grad_enabled():
            return F.silu(args[0])
        return func(*args, **(kwargs or {}))


def is_fast_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> bool:
    """Whether `fast_depthwise` is to compute a convolution without dilation."""
    return (
        groups == weight.shape[0] == x.shape[1] > 1
        and bias is None
        and _active.get()
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and _dtype_of(x) in _DTYPES
    )


def fast_depthwise(x: Tensor, weight: Tensor, stride: tuple[int, int], pads: Pads) -> Tensor:
    """Convolve each channel, under autocast in its type; see `effdense.ops.depthwise.depthwise_conv2d`."""
    dtype = _dtype_of(x)
    return depthwise_conv2d(x.to(dtype), weight.to(dtype), stride, pads)


def _dtype_of(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class _ReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # The bits of a NaN would pass for a large number. What a BatchNorm makes of one fills its channel: one pixel
        # of each, clamped as numbers are, lets it through.
        corner = x[..., :1, :1].clamp(0.0, _SIX)
        x.view(torch.int16).clamp_(0, _BITS_OF_SIX)
        x[..., :1, :1] = corner
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.hardtanh_backward(grad, y, 0.0, _SIX)
        return result
