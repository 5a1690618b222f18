"""torch.compile, part by part: the network's large modules are compiled, the loop around them stays as it is written.

What depends on how many boxes there are, assignment and loss, is not compiled, so that no batch makes it begin anew. A
part is compiled in place, which leaves names and weights alone: checkpoints, the moving average and a run resumed
without --compile know nothing of it. Copies of a compiled network, such as those that evaluate, are not compiled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from effdense.errors import UserError
from effdense.training.device import choose_device

log = logging.getLogger(__name__)

BACKEND = "inductor"

_GRAPHS_A_PART = 8
"""How often a part may be compiled, as for image sizes that change or another memory format; PyTorch's own limit."""

_SIZES_TRIED = 8
"""Elements of the tensor that the compiler is tried on."""


def check_compiler(device: str) -> None:
    """See that torch.compile works on this machine, before a run has begun.

    Args:
        device: the setting.

    Raises:
        UserError: it does not; says why, and what is missing as a rule.
    """
    x = torch.ones(_SIZES_TRIED, device=choose_device(device))
    try:
        torch.compile(_try, backend=BACKEND)(x)
    except Exception as error:  # whatever keeps a compiler from working, there are many
        needed = "Triton and a C compiler" if x.device.type == "cuda" else "a C++ compiler and Python's header files"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"--compile does not work here: {reason[0]}. It needs {needed} (on Debian and Ubuntu: apt install g++ "
            "python3-dev): install them, or leave --compile out"
        ) from error


def compile_parts(parts: Iterable[nn.Module | None], *, measures_gradients: bool = False) -> None:
    """Compile modules in place, each when it first runs; None is passed over.

    Args:
        parts: called with tensors and nothing else, most of the network's work.
        measures_gradients: whether the gradient of a loss is asked for before the backward pass, which then finds the
            tensors that it needs still there.
    """
    if measures_gradients:
        import torch._functorch.config as functorch

        functorch.donated_buffer = False
    chosen = [part for part in parts if part is not None]
    _allow_graphs(_GRAPHS_A_PART * len(chosen))
    for part in chosen:
        part.compile(backend=BACKEND)
    log.info("the network is compiled as it first runs: the first steps take longer, up to minutes")


def _allow_graphs(number: int) -> None:
    """Let PyTorch compile so many graphs of one function before it gives up and runs the rest as it is written.

    All parts enter by the same function of ``nn.Module``, and share its limit.
    """
    import torch._dynamo.config as dynamo

    for name in ("recompile_limit", "accumulated_recompile_limit", "cache_size_limit", "accumulated_cache_size_limit"):
        if hasattr(dynamo, name):  # the first two since PyTorch 2.7, the others before
            setattr(dynamo, name, max(number, getattr(dynamo, name)))


def _try(x: Any) -> Any:
    return torch.relu(x + 1).sum()
