"""The form in which a trained network runs: the same function in fewer operations.

A BatchNorm that follows a convolution is a factor and a summand for each channel, which the convolution's own weight
and bias can carry (arXiv 1712.05877, section 3.2). Which follows which is not guessed from names but seen: the network
runs once on a small image, and every call that takes a convolution's output is noted.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

M = TypeVar("M", bound=nn.Module)

SEEN_SIZE = 64
"""Side in pixels of the image on which a network is watched."""

_CONVOLUTIONS = frozenset({F.conv2d, F.conv_transpose2d})
_READ_ONLY = frozenset({"__get__", "size", "dim", "numel", "stride", "is_contiguous"})
"""What may ask about a tensor without using its values."""


@runtime_checkable
class Separates(Protocol):
    """A module in which several BatchNorms follow one convolution."""

    def separate(self) -> None:
        """Give each BatchNorm a convolution of its own; called once, on a copy."""


@runtime_checkable
class Specialises(Protocol):
    """A module that knows of itself what computes the same once there are no gradients."""

    def specialise(self) -> None:
        """Change to that; called once, on a copy, when the BatchNorms are gone."""


def fuse(model: M, image_size: int = SEEN_SIZE) -> M:
    """Return a copy of a network for inference: equal to rounding, faster, with nothing left to train.

    BatchNorm goes into the convolution before it, weights that only training changes become constants, and the memory
    format is channels-last. A BatchNorm that follows no convolution, or one that others read as well, stays.

    Args:
        model: takes uint8 images (B, 3, H, W); it is left as it is.
        image_size: side in pixels of an image that it takes.
    """
    with torch.inference_mode(False), torch.no_grad():
        fused = copy.deepcopy(model).eval().requires_grad_(False)
        for module in list(fused.modules()):
            if isinstance(module, Separates):
                module.separate()
        device = next(fused.parameters()).device
        calls = _Calls()
        with calls:
            fused(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device))
        for conv, norm in _pairs(fused, calls):
            _fold(fused.get_submodule(conv), fused.get_submodule(norm))
            _replace(fused, norm, _activation_of(fused.get_submodule(norm)))
        for name, module in list(fused.named_modules()):
            if isinstance(module, Specialises):
                module.specialise()
            elif type(module) is SqueezeExcite:
                _replace(fused, name, _InPlaceGate(module))
        return fused.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Made(Generic[M]):
    """A network's inference form, and what it was made of.

    Attributes:
        network: the inference form.
        of: address and version of each tensor, and how many fused steps there had been.
        kept: the tensors, whose memory no others can get meanwhile, so that addresses tell.
    """

    network: M
    of: tuple[int, list[tuple[int, int]]]
    kept: list[Tensor]


class InferenceForm(Generic[M]):
    """The inference form of a network, made at first use and anew whenever the network's tensors have changed.

    Seen are optimizer steps, loaded weights, assigned parameters and modules, BatchNorm's statistics and moves to
    another device. Not seen is what PyTorch itself does not count: writes through ``tensor.data`` or an array that
    shares the memory, a broadcast between processes, and attributes that are no tensors, such as BatchNorm's ``eps``;
    call `refresh` after those. A network runs as it is where it has no ``fuse()``, where somebody watches it through
    hooks, or where it was made in inference mode, which does not count changes. Threads may share one; pickles and
    copies take only the network along.
    """

    def __init__(self, model: M) -> None:
        self.model = model
        self._made: _Made[M] | None = None
        self._making = threading.Lock()

    def __reduce__(self) -> tuple[type[InferenceForm[M]], tuple[M]]:
        """Leave behind what can be made again."""
        return InferenceForm, (self.model,)

    @property
    def network(self) -> M:
        """What is to run."""
        tensors, fused = _tensors(self.model), getattr(self.model, "fuse", None)
        if tensors is None or fused is None:
            return self.model
        now = (_fused_steps, [(tensor.data_ptr(), tensor._version) for tensor in tensors])
        made = self._made
        if made is None or made.of != now:
            with self._making:
                made = self._made
                if made is None or made.of != now:  # no other thread has made it meanwhile
                    made = self._made = None  # first the old one goes
                    made = self._made = _Made(fused(), now, [tensor.detach() for tensor in tensors])
        return made.network

    def run(self, images: Tensor) -> Any:
        """Return the network's outputs, those of a detection level by level where that spares a CPU a copy of all.

        That is what ``by_level`` of an inference form is for. A network that runs as it is, is called, as hooks want;
        so is one whose class changes ``forward`` and leaves ``by_level`` as it was.
        """
        network = self.network
        by_level = getattr(network, "by_level", None)
        if by_level is None or network is self.model or images.device.type != "cpu":
            return network(images)
        where = [next(cls for cls in type(network).__mro__ if name in vars(cls)) for name in ("forward", "by_level")]
        return by_level(images) if where[0] is where[1] else network(images)

    def refresh(self) -> None:
        """Have it made anew at the next use, after a change that cannot be seen."""
        self._made = None


def _tensors(model: nn.Module) -> list[Tensor] | None:
    """Return parameters and buffers, or None where a copy would not do what the model does; a third of a millisecond.

    PyTorch's own iterators take three times as long, which counts beside a forward pass.
    """
    found: list[Tensor] = []
    modules = [model]
    while modules:
        module = modules.pop()
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        for tensors in (module._parameters, module._buffers):
            found += [tensor for tensor in tensors.values() if tensor is not None]
        modules += [child for child in module._modules.values() if child is not None]
    return None if any(tensor.is_inference() for tensor in found) else found


_fused_steps = 0


def _count_fused_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Count a step of a fused optimizer, which PyTorch does not count in the tensors' versions."""
    global _fused_steps
    _fused_steps += any(group.get("fused") for group in optimizer.param_groups)


register_optimizer_step_post_hook(_count_fused_step)  # counts, and touches nothing


class _InPlaceGate(nn.Module):
    """timm's squeeze-and-excitation, written over its input, which a convolution made for it alone."""

    def __init__(self, gate: SqueezeExcite) -> None:
        super().__init__()
        self.inner = nn.Sequential(gate.conv_reduce, gate.act1, gate.conv_expand, gate.gate)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of (B, C, h, w) by a number in 0..1 that the means of all channels decide."""
        return x.mul_(self.inner(x.mean((2, 3), keepdim=True)))


class _Calls(TorchFunctionMode):
    """Notes who makes a convolution's output, and who takes it.

    Attributes:
        made: of each output's id, the id of the weight that made it.
        uses: of each output's id, how many calls took it.
        normalised: ids of an output and of the running mean by which it was normalised, in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, int] = {}
        self.uses: dict[int, int] = {}
        self.normalised: list[tuple[int, int]] = []
        self._alive: list[Tensor] = []  # so that no two have one id; a weight may be made by the forward pass as well

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and note it."""
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _READ_ONLY:
            return output
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.made:
                self.uses[id(value)] = self.uses.get(id(value), 0) + 1
        if func in _CONVOLUTIONS:
            self.made[id(output)] = id(args[1])
            self._alive += [output, args[1]]
        elif func is F.batch_norm and len(args) > 1 and id(args[0]) in self.made:
            self.normalised.append((id(args[0]), id(args[1])))
            self._alive.append(args[1])
        return output


def _pairs(model: nn.Module, calls: _Calls) -> list[tuple[str, str]]:
    """Return names of convolution and BatchNorm where the one ran once, and the other alone took what came out."""
    convs = {id(module.weight): name for name, module in model.named_modules() if _is_convolution(module)}
    norms = {id(module.running_mean): name for name, module in model.named_modules() if _is_batch_norm(module)}
    weights, means = list(calls.made.values()), [mean for _, mean in calls.normalised]
    found = []
    for output, mean in calls.normalised:
        weight = calls.made[output]
        known = weight in convs and mean in norms
        if known and calls.uses[output] == weights.count(weight) == means.count(mean) == 1:
            found.append((convs[weight], norms[mean]))
    return found


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) or (isinstance(module, nn.ConvTranspose2d) and module.groups == 1)


def _is_batch_norm(module: nn.Module) -> bool:
    known = type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
    return known and module.running_mean is not None  # else it counts anew in every batch


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Let a convolution yield what the BatchNorm after it would, in evaluation mode; counted in float32 at least."""
    assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
    assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    factor = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.to(dtype)
    mean = norm.running_mean.to(dtype)
    bias = (-mean if conv.bias is None else conv.bias.to(dtype) - mean) * factor
    if norm.bias is not None:
        bias = bias + norm.bias.to(dtype)
    outputs = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    weight = (conv.weight.to(dtype) * factor.view(outputs)).to(conv.weight.dtype)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


def _activation_of(norm: nn.Module) -> nn.Module:
    """Return what remains of a BatchNorm: nothing, or the activation that timm puts into it."""
    return norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
