"""A segmenter as one ONNX file: uint8 images in, label maps of their own size out."""

from __future__ import annotations

from pathlib import Path

import torch

from effdense.errors import UserError
from effdense.runtime.export import export_header, joined, network_to_onnx, write_onnx
from effdense.runtime.onnx_pieces import fitting, labelling
from effdense.tasks.segmentation.exported import OUTPUTS
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.predict import Segmenter
from effdense.transforms import mean_fill


def export_segmenter(segmenter: Segmenter, path: str | Path, *, precision: str = "float32") -> None:
    """Write a segmenter to one ONNX file, with resizing, normalisation and the label map inside.

    It takes ``images``, uint8 (batch, height, width, 3) in RGB, of any size, and gives ``OUTPUTS``.

    Args:
        segmenter: on any device; its image size goes into the file.
        path: the file.
        precision: in which the file is to be run, ``float32`` or ``bfloat16``; the weights are float32 either way.

    Raises:
        UserError: it looks through a window or in several views, an unknown precision, or a file that cannot be
            written.
    """
    header = export_header(segmenter.file_header(), precision=precision, image_size=segmenter.image_size)
    check_inference(segmenter.inference)
    side, model = segmenter.image_size, segmenter.model
    network = network_to_onnx(
        model.fuse().cpu(), (torch.zeros(2, 3, side, side),), inputs=("pixels",), outputs=("mask_logits",)
    )
    pieces = (
        fitting(side, mean_fill(model.backbone.mean), may_be_done=True),
        network,
        labelling(model.num_classes, side),
    )
    write_onnx(Path(path), joined(pieces), OUTPUTS, header)


def check_inference(inference: Inference) -> None:
    """Refuse a way of looking at images that an exported file cannot follow.

    Raises:
        UserError: a window, or more than one view.
    """
    if inference.window:
        raise UserError(
            f"the model looks at images through a window of {inference.window} pixels, and an exported file sees them "
            "whole: export it with --window 0 and the --image-size that whole images are to be fitted into"
        )
    if len(inference.views) > 1 or inference.resizes_itself:
        raise UserError(
            f"the model averages {len(inference.views)} views of an image, and an exported file has one: export it "
            "without test-time augmentation"
        )
