"""A model of both tasks as one ONNX file: uint8 images in, boxes and label maps out, of one pass."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from effdense.runtime.export import export_header, joined, network_to_onnx, write_onnx
from effdense.runtime.onnx_pieces import contents, fitting, labelling
from effdense.tasks.detection.export import OUTPUTS as BOX_OUTPUTS
from effdense.tasks.detection.export import candidates, check_selection, suppression_of
from effdense.tasks.detection.postprocess import PRE_NMS_TOP
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.segmentation.export import OUTPUTS as MASK_OUTPUTS
from effdense.transforms import mean_fill

OUTPUTS = (*BOX_OUTPUTS, *MASK_OUTPUTS)
"""What comes out of the file: what a detector's and a segmenter's give."""


class _Network(nn.Module):
    """A network of both tasks whose box outputs become the boxes that suppression chooses from."""

    def __init__(self, network: nn.Module, anchors_xyxy: Tensor) -> None:
        super().__init__()
        self.network = network
        self.top = min(PRE_NMS_TOP, len(anchors_xyxy))
        self.anchors_xyxy: Tensor
        self.register_buffer("anchors_xyxy", anchors_xyxy.clone())

    def forward(self, pixels: Tensor, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        class_logits, box_codes, mask_logits = self.network(pixels)
        return *candidates(class_logits, box_codes, self.anchors_xyxy, limits, self.top), mask_logits


def export_multitask(multitask: Multitask, path: str | Path, *, precision: str = "float32") -> None:
    """Write a model of both tasks to one ONNX file, with all inside that comes before the network and after it.

    It takes ``images``, uint8 (batch, height, width, 3) in RGB, of any size, and gives ``OUTPUTS``.

    Args:
        multitask: on any device; its image size and selection go into the file.
        path: the file.
        precision: in which the file is to be run, ``float32`` or ``bfloat16``; the weights are float32 either way.

    Raises:
        UserError: a selection that ONNX has no operator for, an unknown precision, or a file that cannot be written.
    """
    header = export_header(multitask.file_header(), precision=precision, image_size=multitask.image_size)
    selection, model, side = multitask.detector.selection, multitask.model, multitask.image_size
    check_selection(selection)
    core = _Network(model.fuse().cpu(), model.efficientdet.anchor_maker((side, side)))
    network = network_to_onnx(
        core,
        (torch.zeros(2, 3, side, side), torch.full((2, 2), float(side))),
        inputs=("pixels", "limits"),
        outputs=("candidate_boxes", "candidate_scores", "mask_logits"),
    )
    pieces = (
        fitting(side, mean_fill(model.backbone.mean)),
        contents(),
        network,
        suppression_of(selection, core.top, model.num_classes),
        labelling(model.seg_classes, side),
    )
    write_onnx(Path(path), joined(pieces), OUTPUTS, header)
