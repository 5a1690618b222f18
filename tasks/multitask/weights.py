"""Weights for a model of both tasks: of another one, of a detector or a segmenter, or of a backbone alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effdense.backbones.build import fill_backbone
from effdense.backbones.registry import network_of
from effdense.backbones.weights import read_model_state, recorded_backbone
from effdense.errors import UserError
from effdense.model_parts import DETECTION, SEGMENTATION
from effdense.tasks.detection import weights as detection
from effdense.tasks.multitask.model import BACKBONE_WEIGHTS, MultitaskModel
from effdense.tasks.segmentation import weights as segmentation

_LOG = logging.getLogger("effdense")


def load_weights(
    model: MultitaskModel,
    path: str | Path,
    *,
    replace_head: bool = False,
    class_names: Sequence[str] | None = None,
    seg_class_names: Sequence[str] | None = None,
    frozen: Collection[str] = (),
) -> None:
    """Load whatever of a file the model has a place for, and the mean and std that it was trained with.

    Of a multitask model that is everything; of a detector, effdet's too, backbone and detection head; of a segmenter of
    the same architecture, smp's too, backbone and segmentation head; of anything else, the backbone. Where the file is
    more than a backbone, what stays untrained is said.

    Args:
        model: what to fill.
        path: of a safetensors or weights-only torch file.
        replace_head: where the classes differ in number or name, leave the layers that know them as they are.
        class_names: what the objects' classes are called, if known.
        seg_class_names: what the pixels' classes are called, if known.
        frozen: the tasks whose heads are not to learn, so that the file has to hold them for these very classes.

    Raises:
        UserError: the file cannot be read, its backbone is another one or lacks stages, weights are missing or do not
            fit, or classes differ and ``replace_head`` was not asked for or a head is frozen. The model is then filled
            in part.
    """
    whole, header = read_model_state(path, BACKBONE_WEIGHTS)
    pixels, boxes = segmentation.part_read(path, whole, header), detection.part_read(path, whole, header)
    seg = model.spec.segmentation
    has_boxes = boxes.is_detector
    has_pixels = pixels.is_segmenter(seg.arch, on_pyramid=seg.pyramid is not None)
    if replace_head and not (has_boxes or has_pixels):
        raise UserError(
            f"weights {path} hold neither a detector nor a {seg.arch}, hence no head to replace: leave out "
            "--replace-head"
        )
    _check_network(model, recorded_backbone(pixels.header), path)
    for task, has in ((DETECTION, has_boxes), (SEGMENTATION, has_pixels)):
        if task in frozen and not has:
            head = "EfficientDet" if task == DETECTION else seg.arch
            raise UserError(
                f"--freeze {task} keeps a head that {path} does not hold ({head}): give --weights FILE that does, or "
                f"leave {task} out of --freeze"
            )
    if has_pixels:
        _check_segmenter(model, pixels, frozen)
    detector, segmenter = model.efficientdet, model.segmentation_model
    there = [view for view, has in ((detector, has_boxes), (segmenter, has_pixels)) if has]
    if all(len(view.backbone.blocks) < len(model.backbone.blocks) for view in there):
        fill_backbone(model.backbone, path, whole, header)  # what a view reads of it, if any, is not all
    replace_boxes, replace_pixels = (replace_head and task not in frozen for task in (DETECTION, SEGMENTATION))
    if replace_boxes and replace_pixels and len(there) == 2:  # a head for the same classes stays as it is
        state, det = boxes.state, model.spec.detection
        replace_boxes = bool(detection.class_difference(detector, boxes, state, det, class_names))
        replace_pixels = bool(segmentation.class_difference(segmenter, pixels, pixels.state, seg_class_names))
        if not (replace_boxes or replace_pixels):
            _LOG.warning("--replace-head changes nothing: %s is for the same classes", path)
    if has_boxes:
        det = model.spec.detection
        with _kept(DETECTION, frozen):
            detection.load_detector(detector, boxes, det, replace_head=replace_boxes, class_names=class_names)
        model.class_names = _names(class_names, boxes.header, model.class_names)
    if has_pixels:
        with _kept(SEGMENTATION, frozen):
            segmentation.load_segmenter(
                segmenter, pixels, seg, replace_head=replace_pixels, class_names=seg_class_names
            )
        model.seg_class_names = _names(seg_class_names, pixels.header, model.seg_class_names)
    untrained = [] if has_boxes else ["BiFPN and head of the detection"]
    untrained += [] if has_pixels else [f"decoder and head of the {seg.arch}"]
    if not untrained:
        model.backbone.weights_source = f"{path} (whole multitask model)"
    elif there or pixels.has_head:
        _LOG.warning("%s start untrained: of %s the rest is used", " and ".join(untrained), path)


def _check_segmenter(model: MultitaskModel, file: segmentation.WeightsFile, frozen: Collection[str]) -> None:
    """Say what a segmenter is bound to that its weights do not show, and what a frozen one would have to hold."""
    seg, recorded = model.spec.segmentation, file.header.get("model", {})
    stride = recorded.get("output_stride", seg.output_stride)
    if stride != seg.output_stride:
        says = (
            f"{file.source} is a {seg.arch} with output stride {stride}, which dilates the backbone; a detector shares "
            f"it undilated, with output stride {seg.output_stride}, and so its label maps are others"
        )
        if SEGMENTATION in frozen:
            raise UserError(f"{says}: leave segmentation out of --freeze, or train it with that --output-stride")
        _LOG.warning("%s until it is trained further", says)
    pyramid = recorded.get("pyramid")
    if pyramid is not None and seg.pyramid is not None and pyramid != asdict(seg.pyramid):
        raise UserError(
            f"{file.source} reads a detector's pyramid of {pyramid}, that of this detector is {asdict(seg.pyramid)}: "
            "make them alike, or give other weights"
        )
    if SEGMENTATION in frozen and seg.auxiliary and not any(name.startswith("auxiliary.") for name in file.state):
        raise UserError(
            f"--freeze segmentation keeps the segmentation as {file.source} has it, which is without an auxiliary "
            "head: leave --auxiliary-weight out"
        )


@contextlib.contextmanager
def _kept(task: str, frozen: Collection[str]) -> Iterator[None]:
    """Say which head is for other classes; and of one that is frozen, that no other may take its place."""
    try:
        yield
    except UserError as error:
        said = f"for the {task} head, {error}" if "--replace-head" in str(error) else str(error)
        if task not in frozen:
            raise UserError(said) from error
        raise UserError(
            f"{said}. --freeze {task} keeps that head, which so has to fit as it is: else leave {task} out of --freeze"
        ) from error


def _check_network(model: MultitaskModel, theirs: str | None, path: str | Path) -> None:
    """Say that a file is of another backbone before a hundred names do."""
    ours = model.backbone.name
    if theirs is not None and network_of(theirs) != network_of(ours):
        raise UserError(
            f"{path} is on backbone {theirs!r}, the model is on {ours!r}: give --backbone {theirs}, or other weights"
        )


def _names(given: Sequence[str] | None, header: Mapping[str, Any], own: tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names that were given, else those in a header if they are as many, else the model's own."""
    recorded = header.get("class_names")
    known = recorded if isinstance(recorded, list) and len(recorded) == len(own) else own
    return tuple(known if given is None else given)
