"""Sums over the processes of a distributed run."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", np.int64, np.float64)


def summed(array: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return the sum of an array over all processes; the array itself where there is only this one.

    Every process has to call it, with the same shape.
    """
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return array
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(array.copy()).to(device)
    distributed.all_reduce(total)
    return np.asarray(total.cpu().numpy(), array.dtype)
