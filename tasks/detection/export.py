"""A detector as one ONNX file: uint8 images in, boxes in their own pixels out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TypeVar

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effdense.errors import UserError
from effdense.runtime.export import export_header, joined, network_to_onnx, write_onnx
from effdense.runtime.onnx_boxes import candidates, contents, suppression
from effdense.runtime.onnx_pieces import fitting
from effdense.tasks.detection.exported import OUTPUTS
from effdense.tasks.detection.head import DetectionHead, Predictor
from effdense.tasks.detection.postprocess import PRE_NMS_TOP
from effdense.tasks.detection.predict import Detector, Selection
from effdense.transforms import mean_fill

M = TypeVar("M", bound=nn.Module)


class _ProductHead(nn.Module):
    """A head in its inference form, whose last convolutions are one matrix product over the cells of all levels.

    They are 1x1, so that is what they are. Convolutions leave maps to be turned, level by level, into rows of anchors
    and laid behind each other: of 90 classes, ten times as much memory to move as the product reads.
    """

    def __init__(self, head: DetectionHead) -> None:
        super().__init__()
        self.num_classes = head.num_classes
        self.classes, self.boxes = _Product(head.classes), _Product(head.boxes)

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits (B, A, K) and box codes (B, A, 4), as the head does."""
        classes, boxes = self.classes(pyramid), self.boxes(pyramid)
        batch = classes.shape[0]
        return classes.reshape(batch, -1, self.num_classes), boxes.reshape(batch, -1, 4)


class _Product(nn.Module):
    """A predictor whose last convolution is a matrix product.

    The bias is two rows of its matrix, for two channels that are 1 everywhere: runtimes would add it in a pass of its
    own. What bfloat16 holds of it is one, the rest the other, so that it loses little there and nothing in float32.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.tower = copy.deepcopy(predictor)
        last = self.tower.predict.pointwise
        assert last.bias is not None
        self.tower.predict.pointwise = nn.Identity()  # type: ignore[assignment]
        bias = last.bias.bfloat16().float()
        rows = (*last.weight.flatten(1).unbind(1), bias, last.bias - bias)
        self.matrix = nn.Parameter(torch.stack(rows), requires_grad=False)  # (C + 2, outputs)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Map (B, C, h, w) of each level to (B, cells of all levels, outputs)."""
        cells = torch.cat([one.permute(0, 2, 3, 1).flatten(1, 2) for one in self.tower(pyramid)], 1)
        product: Tensor = F.pad(cells, (0, 2), value=1.0) @ self.matrix
        return product


def with_product_head(network: M) -> M:
    """Return a network in its inference form whose `DetectionHead` computes the same in fewer passes over memory.

    Args:
        network: with one head; it is changed.
    """
    ((name, head),) = [(name, one) for name, one in network.named_modules() if isinstance(one, DetectionHead)]
    network.set_submodule(name, _ProductHead(head))
    return network


def export_detector(detector: Detector, path: str | Path, *, precision: str = "float32") -> None:
    """Write a detector to one ONNX file, with resizing, normalisation, decoding and NMS inside.

    It takes ``images``, uint8 (batch, height, width, 3) in RGB, of any size, and gives ``OUTPUTS``. Where the images of
    a batch are padded to one size, the optional input ``contents_hw`` says which part of each is image.

    Args:
        detector: on any device; its image size and selection go into the file.
        path: the file.
        precision: in which the file is to be run, ``float32`` or ``bfloat16``; the weights are float32 either way.

    Raises:
        UserError: a selection that ONNX has no operator for, an unknown precision, or a file that cannot be written.
    """
    header = export_header(detector.file_header(), precision=precision, image_size=detector.image_size)
    check_selection(detector.selection)
    side, model = detector.image_size, detector.model
    network = network_to_onnx(
        with_product_head(model.fuse().cpu()),
        (torch.zeros(2, 3, side, side),),
        inputs=("pixels",),
        outputs=("class_logits", "box_codes"),
    )
    last = detecting(model.anchor_maker((side, side)), model.num_classes, detector.selection)
    pieces = (fitting(side, mean_fill(model.backbone.mean)), contents(), network, *last)
    write_onnx(Path(path), joined(pieces), OUTPUTS, header)


def detecting(anchors_xyxy: Tensor, num_classes: int, selection: Selection) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the pieces that make detections of a network's ``class_logits`` and ``box_codes``.

    Args:
        anchors_xyxy: (A, 4), of the square that images are fitted into.
        num_classes: K.
        selection: which boxes become detections.
    """
    x1, y1, x2, y2 = anchors_xyxy.float().cpu().unbind(1)
    width, height = x2 - x1, y2 - y1
    centres_and_sizes = torch.stack((y1 + height / 2, x1 + width / 2, height, width), 1).numpy()
    best = candidates(centres_and_sizes, num_classes, score_threshold=selection.score_threshold, top=PRE_NMS_TOP)
    kept = suppression(
        num_classes,
        score_threshold=selection.score_threshold,
        iou_threshold=selection.nms_iou,
        max_detections=selection.max_detections,
    )
    return best, kept


def check_selection(selection: Selection) -> None:
    """Refuse a selection that an exported file cannot make.

    Raises:
        UserError: soft NMS.
    """
    if selection.nms != "hard":
        raise UserError(
            f"the model selects by {selection.nms} NMS, for which ONNX has no operator: export it with --nms hard"
        )
