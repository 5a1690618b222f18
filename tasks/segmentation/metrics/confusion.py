"""Which class each pixel is taken for: one integer confusion matrix over a data set.

Every score of a segmentation but Boundary IoU and calibration is read off this matrix, so that none of them depends on
how the images were batched or shared out among processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from effdense.errors import UserError
from effdense.tasks.segmentation.metrics.labels import (
    LabelMap,
    check_alike,
    check_labels,
    check_num_classes,
    no_class,
    on_host,
)
from effdense.tasks.segmentation.metrics.processes import summed
from effdense.types import IGNORE_INDEX, Int64, UInt8

if TYPE_CHECKING:
    import torch

_LABELS = 256
_PIXELS_AT_ONCE = 2**24
"""Pixels counted in one go on a GPU: each takes eight bytes while it is."""


class ConfusionMatrix:
    """Counts of pixels by true and predicted class, exact for up to 2**63 of them.

    Pixels whose truth is 255 do not count, whatever is predicted there. Every other pixel needs a class: a prediction
    of 255 is refused, for to leave a pixel out would raise the score of whoever is in doubt.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = check_num_classes(num_classes)
        self._matrix = np.zeros((num_classes, num_classes), np.int64)
        self._pending: dict[torch.device, torch.Tensor] = {}  # (65536,) by device, index = 256 * truth + predicted

    @property
    def matrix(self) -> Int64:
        """(K, K) pixels, row = truth, column = prediction. Reading it waits for a GPU that still counts.

        Raises:
            UserError: a label that was counted on a GPU is no class. On a CPU `update` itself finds out.
        """
        while self._pending:
            _, counts = self._pending.popitem()
            self._matrix += self._classes_only(np.asarray(counts.cpu().numpy(), np.int64))
        return self._matrix

    def update(self, truth: LabelMap, predicted: LabelMap, *, where: str = "") -> None:
        """Count one image or a batch. Tensors on a GPU are counted there, without waiting for it.

        Args:
            truth: uint8, (..., H, W); 255 is ignored.
            predicted: uint8, the same shape.
            where: what the maps are of, such as a file name; errors begin with it.

        Raises:
            UserError: the shapes differ, or a label is no class; nothing of the pair is counted then.
            ValueError: the labels are not uint8.
        """
        check_alike(truth, predicted, where)
        if not isinstance(predicted, np.ndarray) and predicted.device.type == "cuda":
            self._count_on_device(truth, predicted)
        else:
            self._count(on_host(truth), on_host(predicted), where)

    def add(self, matrix: Int64) -> None:
        """Add counts, (K, K), row = truth.

        Raises:
            ValueError: the matrix is of another number of classes.
        """
        if matrix.shape != self._matrix.shape:
            raise ValueError(f"expected counts of {self.num_classes} classes, got a matrix of {matrix.shape}")
        self._matrix += matrix

    def merge(self, other: ConfusionMatrix) -> None:
        """Add what another one has counted.

        Raises:
            ValueError: it is of another number of classes.
        """
        self.add(other.matrix)

    def all_reduce(self) -> None:
        """Add up what all processes of a distributed run have counted; each then holds the whole. Call it once."""
        self._matrix = summed(self.matrix)

    def _count(self, truth: UInt8, predicted: UInt8, where: str) -> None:
        from hotcoco.semantic import SemanticEval  # half the time of np.bincount

        counter = SemanticEval(self.num_classes, ignore_index=IGNORE_INDEX)
        try:
            counter.update(truth.reshape(-1), predicted.reshape(-1))
        except ValueError:
            check_labels(truth, predicted, self.num_classes, where)  # says which pixel
            raise
        self._matrix += counter.confusion().astype(np.int64)

    def _count_on_device(self, truth: Any, predicted: torch.Tensor) -> None:
        import torch

        device = predicted.device
        if isinstance(truth, np.ndarray):
            truth = torch.from_numpy(truth)
        truth = truth.to(device, non_blocking=True)
        if device not in self._pending:
            self._pending[device] = torch.zeros(_LABELS**2, dtype=torch.int64, device=device)
        one = torch.ones((), dtype=torch.int64, device=device)
        truth, predicted = truth.flatten(), predicted.flatten()
        for start in range(0, len(truth), _PIXELS_AT_ONCE):
            part = slice(start, start + _PIXELS_AT_ONCE)
            place = truth[part].long() * _LABELS + predicted[part]
            self._pending[device].scatter_add_(0, place, one.expand(place.shape))  # bincount would wait for the GPU

    def _classes_only(self, counts: Int64) -> Int64:
        """Return counts (65536,) over all labels as a matrix over the classes; ignored pixels are dropped."""
        by_label = counts.reshape(_LABELS, _LABELS)[:IGNORE_INDEX]
        for whose, axis in (("the truth", 1), ("the prediction", 0)):
            found = np.flatnonzero(by_label.sum(axis))
            if len(found) and found[-1] >= self.num_classes:
                label = int(found[found >= self.num_classes][0])
                raise UserError(no_class(whose, label, self.num_classes))
        return by_label[: self.num_classes, : self.num_classes]
