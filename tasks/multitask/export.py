"""A model of both tasks as one ONNX file: uint8 images in, boxes and label maps out, of one pass."""

from __future__ import annotations

from pathlib import Path

import torch

from effdense.runtime.export import export_header, joined, network_to_onnx, write_onnx
from effdense.runtime.onnx_boxes import contents
from effdense.runtime.onnx_pieces import fitting, labelling
from effdense.tasks.detection.export import check_selection, detecting, with_product_head
from effdense.tasks.multitask.exported import OUTPUTS
from effdense.tasks.multitask.predict import Multitask
from effdense.transforms import mean_fill


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
    network = network_to_onnx(
        with_product_head(model.fuse().cpu()),
        (torch.zeros(2, 3, side, side),),
        inputs=("pixels",),
        outputs=("class_logits", "box_codes", "mask_logits"),
    )
    pieces = (
        fitting(side, mean_fill(model.backbone.mean), may_be_done=True),
        contents(),
        network,
        *detecting(model.efficientdet.anchor_maker((side, side)), model.num_classes, selection),
        labelling(model.seg_classes, side),
    )
    write_onnx(Path(path), joined(pieces), OUTPUTS, header)
