"""The constants of a model of both tasks, and the image sizes that a shared pass takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from effdense.errors import UserError
from effdense.tasks.detection import specs as detection
from effdense.tasks.detection.specs import EfficientDetSpec
from effdense.tasks.segmentation import specs as segmentation
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.specs import ARCHITECTURES, PyramidSpec, SegmentationSpec

SIZE_STEP = 32
"""Heights and widths of images are whole multiples of it: cells of the backbone's coarsest level, so that no head pads
and all see the same features."""


@dataclass(frozen=True)
class MultitaskSpec:
    """What a model is rebuilt from, the numbers of classes aside.

    Attributes:
        detection: of the detector; its ``backbone`` and ``drop_path_rate`` are the model's.
        segmentation: of the segmenter, with the same backbone and no dilation; its ``pyramid`` is the detector's where
            both heads read one BiFPN, else None.

    Raises:
        UserError: the two do not go together.
    """

    detection: EfficientDetSpec
    segmentation: SegmentationSpec

    def __post_init__(self) -> None:
        det, seg = self.detection, self.segmentation
        if det.backbone != seg.backbone:
            raise UserError(
                f"the detector is on backbone {det.backbone!r}, the segmenter on {seg.backbone!r}: give both the same"
            )
        undilated = ARCHITECTURES[seg.arch].strides[-1]
        if seg.output_stride != undilated:
            raise UserError(
                f"{seg.arch} with output stride {seg.output_stride} dilates the backbone, which a detector cannot "
                f"share: train it with --output-stride {undilated}"
            )
        if seg.pyramid is not None and seg.pyramid != pyramid_of(det):
            raise UserError(
                f"the segmenter works below another BiFPN ({seg.pyramid}) than that of {det.name} ({pyramid_of(det)})"
            )

    @property
    def shares_bifpn(self) -> bool:
        """Whether the segmentation head reads the detector's pyramid."""
        return self.segmentation.pyramid is not None

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the levels that either head reads, finest first."""
        return tuple(sorted({*self.detection_strides, *self.segmentation_strides}))

    @property
    def detection_strides(self) -> tuple[int, ...]:
        """Of the backbone's levels that the detector reads, finest first."""
        return tuple(2**level for level in range(self.detection.min_level, min(self.detection.max_level, 5) + 1))

    @property
    def segmentation_strides(self) -> tuple[int, ...]:
        """Of the backbone's levels that the segmenter reads, finest first."""
        return ARCHITECTURES[self.segmentation.arch].strides


def choose_spec(
    det: EfficientDetSpec, arch: str, *, share_bifpn: bool = True, auxiliary: bool = False
) -> MultitaskSpec:
    """Return the constants of a detector and a segmentation architecture on its backbone.

    Args:
        det: of the detector.
        arch: one of the segmentation's ``ARCHITECTURES``.
        share_bifpn: with ``bifpn``, read the detector's pyramid; without effect on the others.
        auxiliary: train an auxiliary segmentation head.

    Raises:
        UserError: the architecture is unknown, or the detector's pyramid cannot be shared.
    """
    known = segmentation.get_architecture(arch)
    shared = share_bifpn and known.name == "bifpn"
    seg = segmentation.choose_spec(
        known.name,
        det.backbone,
        output_stride=known.strides[-1],
        auxiliary=auxiliary,
        drop_path_rate=det.drop_path_rate,
        pyramid=pyramid_of(det) if shared else None,
    )
    return MultitaskSpec(det, seg)


def pyramid_of(det: EfficientDetSpec) -> PyramidSpec:
    """Return the constants of a detector's pyramid, for a segmentation head that reads it and adds P2.

    Raises:
        UserError: the pyramid does not begin with P3, or ends before P5.
    """
    if det.min_level != 3 or det.max_level < 5:
        raise UserError(
            f"a segmentation head adds P2 to a detector's pyramid of P3 to P5 or coarser; that of {det.name} has "
            f"P{det.min_level} to P{det.max_level}: take its usual levels, or give the head a BiFPN of its own "
            "(share_bifpn=False)"
        )
    return PyramidSpec(det.channels, det.bifpn_repeats, det.num_levels, det.fusion, det.act)


def spec_from_dict(det: Mapping[str, Any], seg: Mapping[str, Any]) -> MultitaskSpec:
    """Return the constants that `dataclasses.asdict` took apart, after a way through JSON.

    Raises:
        UserError: a name or value that no model of this version has, or the two do not go together.
    """
    return MultitaskSpec(detection.spec_from_dict(dict(det)), segmentation.spec_from_dict(dict(seg)))


def joined_spec(det: EfficientDetSpec, seg: SegmentationSpec) -> MultitaskSpec:
    """Return the constants of a detector and a segmenter on one network: the detector's name and rate of the backbone.

    Raises:
        UserError: the segmenter's backbone is dilated, or it works below another pyramid.
    """
    return MultitaskSpec(det, replace(seg, backbone=det.backbone, drop_path_rate=det.drop_path_rate))


def least_size(arch: str) -> int:
    """Return the smallest height or width, in pixels, that a shared pass with this segmentation architecture takes."""
    known = ARCHITECTURES[arch]
    return max(SIZE_STEP, known.least_cells * known.strides[-1])


def check_size(size_hw: tuple[int, int], arch: str) -> None:
    """See that both heads can share a pass over images of this size.

    Args:
        size_hw: height and width, in pixels.
        arch: of the segmentation.

    Raises:
        UserError: they cannot; the message names sizes near by that would do.
    """
    least = least_size(arch)
    if all(size % SIZE_STEP == 0 and size >= least for size in size_hw):
        return
    below = tuple(max(least, size // SIZE_STEP * SIZE_STEP) for size in size_hw)
    above = tuple(max(least, -(-size // SIZE_STEP) * SIZE_STEP) for size in size_hw)
    such = " or ".join(f"{width} x {height}" for height, width in sorted({below, above}))
    limit = f" from {least} on" if least > SIZE_STEP else ""
    raise UserError(
        f"images are {size_hw[1]} x {size_hw[0]} pixels (width x height); a pass that both heads share takes multiples "
        f"of {SIZE_STEP}{limit}, such as {such}"
    )


def require_whole(inference: Inference, source: str) -> None:
    """Refuse a segmenter that looks at images otherwise than a multitask model does.

    Raises:
        UserError: it has a window or several views.
    """
    if inference.window or len(inference.views) > 1:
        how = f"a window of {inference.window} pixels" if inference.window else f"--tta {' '.join(inference.tta)}"
        raise UserError(
            f"{source} looks at images with {how}; a multitask model sees them whole and once. "
            "segmenter.with_inference(window=0, tta=()) in Python leaves that out, and gives other label maps"
        )
