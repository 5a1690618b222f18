"""A detector as one ONNX file: uint8 images in, boxes in their own pixels out."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from effdense.errors import UserError
from effdense.ops.boxes import clip
from effdense.runtime.export import export_header, joined, network_to_onnx, write_onnx
from effdense.runtime.onnx_pieces import contents, fitting, suppression
from effdense.tasks.detection.anchors import decode
from effdense.tasks.detection.exported import OUTPUTS
from effdense.tasks.detection.postprocess import PRE_NMS_TOP
from effdense.tasks.detection.predict import Detector, Selection
from effdense.transforms import mean_fill


class _Candidates(nn.Module):
    """`candidates` with the anchors of one image size."""

    def __init__(self, anchors_xyxy: Tensor, top: int) -> None:
        super().__init__()
        self.top = top
        self.anchors_xyxy: Tensor
        self.register_buffer("anchors_xyxy", anchors_xyxy.clone())

    def forward(self, class_logits: Tensor, box_codes: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        return candidates(class_logits, box_codes, self.anchors_xyxy, limits, self.top)


def candidates(
    class_logits: Tensor, box_codes: Tensor, anchors_xyxy: Tensor, limits: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """Return the boxes of the best anchors, clipped to the content, and what each scores in each class.

    As in `postprocess`, of which this is the part before NMS, with sizes that depend on no value. There the best
    pairs of anchor and class go on; here all classes of the best anchors do, among which those pairs are.

    Args:
        class_logits: (B, A, K).
        box_codes: (B, A, 4).
        anchors_xyxy: (A, 4).
        limits: (B, 2), height and width of each image's content, in pixels.
        top: C, anchors of an image that go on.

    Returns:
        boxes_xyxy (B, C, 4), and scores (B, K, C), 0 where the box has no area.
    """
    anchor = class_logits.amax(2).topk(top, 1).indices  # (B, C)
    image = torch.arange(anchor.shape[0], device=anchor.device).unsqueeze(1)
    logits, codes = class_logits[image, anchor], box_codes[image, anchor]  # whole rows, where gather() takes elements
    boxes = clip(decode(codes, anchors_xyxy[anchor]), limits)
    usable = (boxes[..., 2:] > boxes[..., :2]).all(-1, keepdim=True)
    return boxes, torch.where(usable, logits.sigmoid(), 0.0).transpose(1, 2)


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
        model.fuse().cpu(), (torch.zeros(2, 3, side, side),), inputs=("pixels",), outputs=("class_logits", "box_codes")
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
    count = len(anchors_xyxy)
    top = min(PRE_NMS_TOP, count)
    best = network_to_onnx(
        _Candidates(anchors_xyxy, top),
        (torch.zeros(2, count, num_classes), torch.zeros(2, count, 4), torch.ones(2, 2)),
        inputs=("class_logits", "box_codes", "limits"),
        outputs=("candidate_boxes", "candidate_scores"),
    )
    kept = suppression(
        top,
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
