"""torch.compile, part by part: the network's large modules are compiled, the loop around them stays as it is written.

What depends on how many boxes there are, assignment and loss, is not compiled, so that no batch makes it begin anew. A
part is compiled in place, which leaves names and weights alone: checkpoints, the moving average and a run resumed
without --compile know nothing of it. Copies of a compiled network, such as those that evaluate, are not compiled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effdense.errors import UserError
from effdense.training.device import choose_device
from effdense.training.interrupt import InterruptWatch

log = logging.getLogger(__name__)

BACKEND = "inductor"

_GRAPHS_A_PART = 8
"""How often a part may be compiled, as for image sizes that change or another memory format; PyTorch's own limit."""

_BACKWARD_LOG = "torch._functorch._aot_autograd.graph_compile"
"""Shows all that a compiler printed where a backward pass cannot be compiled ahead; it fails again when it runs."""

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
        raise UserError(
            f"--compile does not work here: {_first_line(error)}. It needs {needed} (on Debian and Ubuntu: apt install "
            "g++ python3-dev): install them, or leave --compile out"
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
    logging.getLogger(_BACKWARD_LOG).setLevel(logging.ERROR)
    for part in chosen:
        part.compile(backend=BACKEND)
    log.info("the network is compiled as it first runs: the first steps take longer, up to minutes")


@contextmanager
def explained_compiling(watch: InterruptWatch, folder: Path) -> Iterator[None]:
    """Say in a sentence that the compiler failed in the steps within: parts are compiled as they first run.

    Ctrl-C and SIGTERM reach the compiler's own processes too, which end at once, where the loop would have finished its
    step: such a failure is the interrupt that was asked for, and what was saved last is what remains.

    Args:
        watch: over the loop within.
        folder: of the run.

    Raises:
        UserError: the network cannot be compiled.
        KeyboardInterrupt: as from `InterruptWatch.stop`, where the watch has been asked to stop.
    """
    try:
        yield
    except Exception as error:
        if not _of_compiler(error):
            raise
        if watch.requested:
            message = f"Stopped while the network was being compiled; go on with: --resume {folder}"
            raise KeyboardInterrupt(message) from error
        raise UserError(
            f"the network could not be compiled: {_first_line(error)}. Leave --compile out, in a run of its own: "
            f"{folder} holds this one"
        ) from error


def _of_compiler(error: BaseException) -> bool:
    """Whether an exception, or what caused it, is one of torch's compiler."""
    origin = type(error).__module__
    if origin.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")):
        return True
    return error.__cause__ is not None and _of_compiler(error.__cause__)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # "backend='inductor' raised:", and then what
    return said.rstrip(".:")


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
