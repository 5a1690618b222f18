"""What a batch's outputs cost in both tasks, each judged by the images that carry its label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.loss import BOX_WEIGHT, DetectionLoss
from effdense.tasks.segmentation.loss import SegmentationLoss
from effdense.types import Batch

if TYPE_CHECKING:
    from effdense.tasks.multitask.model import MultitaskOutputs

TASKS = ("detection", "segmentation")
"""The tasks, by the names that their losses, weights and gradient norms have everywhere."""


class MultitaskLoss:
    """The losses of both tasks, term by term, with nothing of one in the other.

    Each is exactly what its own loss says of the images that carry its label, as if the others were not in the batch.
    How much the tasks count against each other is for a `Balance` to say.
    """

    def __init__(
        self, detection: DetectionLoss | None, segmentation: SegmentationLoss | None, box_weight: float = BOX_WEIGHT
    ) -> None:
        """Join two losses.

        Args:
            detection: of classes and boxes; None where no image will ever have boxes.
            segmentation: of the label maps; None where no image will ever have a mask.
            box_weight: of the box loss against the class loss.
        """
        self.detection, self.segmentation, self.box_weight = detection, segmentation, box_weight

    def __call__(self, outputs: MultitaskOutputs, anchors_xyxy: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return scalars by name; a task that no image of the batch has a label for adds none.

        ``"class"``, ``"box"`` and their weighted sum ``"detection"``; each term of the segmentation loss, not yet
        weighted, with ``"auxiliary"`` where there is one, and their weighted sum ``"segmentation"``.

        Args:
            outputs: of the rows that carry each label, in the batch's order.
            anchors_xyxy: (A, 4), the model's for images of this size.
            batch: with the labels.

        Raises:
            ValueError: the outputs of a task are of more or fewer images than carry its label. (Where the batch is on
                a GPU this goes unnoticed if the images are all there: to look would make it wait.)
        """
        losses: dict[str, Tensor] = {}
        if outputs.class_logits is not None and outputs.box_codes is not None:
            assert self.detection is not None
            rows = _rows(batch.with_boxes, len(outputs.class_logits), "boxes")
            truth = (_picked(one, rows) for one in (batch.boxes_xyxy, batch.labels, batch.ignore))
            losses |= self.detection(outputs.class_logits, outputs.box_codes, assign(anchors_xyxy, *truth))
            losses["detection"] = losses["class"] + self.box_weight * losses["box"]
        if outputs.masks is not None:
            if batch.masks is None:
                raise ValueError("there are outputs for masks, but no image of the batch has one")
            assert self.segmentation is not None
            rows = _rows(batch.with_masks, len(outputs.masks["logits"]), "masks")
            terms = self.segmentation(outputs.masks, _picked(batch.masks, rows))
            total = terms.pop("total")
            losses |= {**terms, "segmentation": total}
        return losses


def _rows(labelled: Tensor, count: int, what: str) -> Tensor | None:
    """Return where the ``count`` labelled images of a batch are, in order, (count,); None where that is all of them.

    Args:
        labelled: bool, (B,).
        count: of the images that there are outputs for.
        what: the labels, for the error.
    """
    if count > len(labelled) or (labelled.device.type == "cpu" and count != int(labelled.sum())):
        raise ValueError(f"there are outputs for the {what} of {count} images, and {int(labelled.sum())} have them")
    if count == len(labelled):
        return None
    # nonzero() would make a GPU wait, to know how many there are
    return (~labelled).byte().argsort(stable=True)[:count]


def _picked(values: Tensor, rows: Tensor | None) -> Tensor:
    """Return the rows of a tensor, (B, ...); all of them without a copy."""
    return values if rows is None else values.index_select(0, rows.to(values.device, non_blocking=True))
