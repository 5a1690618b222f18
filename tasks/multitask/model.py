"""Both tasks on one backbone: the model, and how one is made by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from effdense.backbones.backbone import Backbone
from effdense.errors import UserError, nearest
from effdense.inference_form import SEEN_SIZE, fuse
from effdense.tasks.detection.model import EfficientDet, create_efficientdet
from effdense.tasks.detection.model import choose_spec as choose_detection_spec
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.specs import EfficientDetSpec
from effdense.tasks.multitask.specs import SIZE_STEP, MultitaskSpec, check_size, choose_spec, least_size
from effdense.tasks.segmentation.bifpn_head import DetectorPyramidDecoder
from effdense.tasks.segmentation.model import (
    SegmentationModel,
    auxiliary_logits,
    check_batch,
    create_segmentation_model,
    decode,
)
from effdense.tasks.segmentation.predict import Segmenter

if TYPE_CHECKING:
    from effdense.necks.bifpn import BiFPN, FinerLevel
    from effdense.tasks.detection.head import DetectionHead

BACKBONE_WEIGHTS = ("auto", "imagenet", "none")

PARTS = ("backbone", "detection", "segmentation")
"""What can be frozen; the BiFPN belongs to the detection, also where both heads read it."""


@dataclass
class MultitaskOutputs:
    """What the losses need of a batch of B images; None where no image carries a head's label.

    Attributes:
        class_logits: (B', A, K) of the B' images with boxes.
        box_codes: (B', A, 4) of the same.
        masks: of the images with masks, ``"logits"`` (B'', S, H, W), and ``"auxiliary"`` of the same shape where there
            is an auxiliary head.
    """

    class_logits: Tensor | None = None
    box_codes: Tensor | None = None
    masks: dict[str, Tensor] | None = None


class MultitaskModel(nn.Module):
    """A detector and a segmenter on one backbone, which runs once.

    Images have sides that are whole multiples of ``size_step`` (pan: and of 256 or more), so that the shared pass and
    both views see the same features.

    Attributes:
        backbone: yields the levels that either head reads; its parameters are those that the tasks share.
        detection: ``neck`` and ``head`` of the EfficientDet.
        segmentation: ``decoder``, ``head`` and perhaps ``auxiliary`` of the segmenter. Where both heads read one BiFPN,
            the decoder is the one level below it, P2.
        spec: the constants that it was made with.
        num_classes: K of the detection.
        seg_classes: S of the segmentation.
        class_names: of the detection, in the order of the labels.
        seg_class_names: of the segmentation.
        image_size: side of the square that images are fitted into, in pixels.
        size_step: that heights and widths are multiples of, in pixels.
        frozen: the parts that do not learn.
    """

    size_step = SIZE_STEP

    def __init__(
        self,
        backbone: Backbone,
        efficientdet: EfficientDet,
        segmentation_model: SegmentationModel,
        *,
        class_names: Sequence[str],
        seg_class_names: Sequence[str],
        image_size: int,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: yields the levels that either of the two reads.
            efficientdet: whose neck and head are taken; its own backbone is left aside.
            segmentation_model: whose decoder and heads are taken; its own backbone is left aside, and so is its pyramid
                where it works below a detector's.
            class_names: of the detection.
            seg_class_names: of the segmentation.
            image_size: side of the square that images are fitted into, in pixels.

        Raises:
            UserError: the two do not go together, the backbone does not yield what they read, names are too few or too
                many, or the image size does not suit both.
        """
        super().__init__()
        det, seg = efficientdet, segmentation_model
        assert det.spec is not None
        assert seg.spec is not None
        self.spec = MultitaskSpec(det.spec, seg.spec)
        self._det_levels = _levels(backbone, self.spec.detection_strides)
        self._seg_levels = _levels(backbone, self.spec.segmentation_strides)
        check_size((image_size, image_size), seg.spec.arch)
        self.image_size = image_size
        self.num_classes, self.seg_classes = det.num_classes, seg.num_classes
        self.class_names = _names(class_names, det.num_classes, "the detection")
        self.seg_class_names = _names(seg_class_names, seg.num_classes, "the segmentation")
        self.frozen: frozenset[str] = frozenset()
        self._anchors = det.anchor_maker
        self._depth, self._least_cells, self._norm_stride = seg.depth, seg.least_cells, seg.norm_stride

        self.backbone = backbone
        self.detection = nn.ModuleDict({"neck": det.neck, "head": det.head})
        decoder = seg.decoder.finest if isinstance(seg.decoder, DetectorPyramidDecoder) else seg.decoder
        self.segmentation = nn.ModuleDict({"decoder": decoder, "head": seg.head})
        if seg.auxiliary is not None:
            self.segmentation["auxiliary"] = seg.auxiliary

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Say both of images.

        Args:
            images: (B, 3, H, W), RGB in 0..255; H and W are multiples of ``size_step``.

        Returns:
            Class logits (B, A, K) and box codes (B, A, 4) of every anchor, and logits (B, S, H, W) of every pixel.

        Raises:
            UserError: images of another size.
        """
        pyramid, decoded = self._shared(images)
        class_logits, box_codes = self.detection["head"](pyramid)
        return class_logits, box_codes, self.segmentation["head"](decoded)

    def by_level(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the same with the detection's outputs level by level: what finding the best anchors needs."""
        pyramid, decoded = self._shared(images)
        head = cast("DetectionHead", self.detection["head"])
        return *head.by_level(pyramid), self.segmentation["head"](decoded)

    def _shared(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what the two heads read."""
        if self.training:
            self.check_batch(len(images), len(images), (images.shape[-2], images.shape[-1]))
        x = self._prepared(images)
        features = self.backbone.features(x)
        pyramid = self._pyramid([features[i] for i in self._det_levels])
        return pyramid, self._decoded(x, [features[i] for i in self._seg_levels], pyramid)

    def training_outputs(
        self, images: Tensor, with_boxes: Tensor | None = None, with_masks: Tensor | None = None
    ) -> MultitaskOutputs:
        """Return what the losses need of images of which some carry boxes, some masks, and some both.

        A head sees the images that carry its label and no other: the rest leave no gradient and no BatchNorm
        statistics in it. A BiFPN that both heads read sees every image that carries a label.

        Args:
            images: (B, 3, H, W), as in `forward`.
            with_boxes: bool (B,), which images somebody looked for objects in; None is all of them.
            with_masks: bool (B,), which images have a mask; None is all of them.

        Raises:
            UserError: images of another size, or a single image that leaves BatchNorm one value to learn from.
        """
        boxed, masked = _positions(with_boxes, len(images)), _positions(with_masks, len(images))
        labelled = sorted({*boxed, *masked})
        outputs = MultitaskOutputs()
        if not labelled:
            return outputs
        if self.training:
            self.check_batch(len(boxed), len(masked), (images.shape[-2], images.shape[-1]))
        (images,) = _picked([images], _rows(labelled, range(len(images)), images.device))
        x = self._prepared(images)
        of_boxes, of_masks = (_rows(own, labelled, x.device) for own in (boxed, masked))
        features = self.backbone.features(x)
        read = [features[i] for i in self._det_levels]
        shared = self._pyramid(read) if self.spec.shares_bifpn else []
        if boxed:
            own = _picked(shared or read, of_boxes)
            outputs.class_logits, outputs.box_codes = self.detection["head"](own if shared else self._pyramid(own))
        if masked:
            x, *levels = _picked([x, *(features[i] for i in self._seg_levels)], of_masks)
            decoded = self._decoded(x, levels, _picked(shared[:1], of_masks))
            outputs.masks = {"logits": self.segmentation["head"](decoded)}
            if "auxiliary" in self.segmentation:
                outputs.masks["auxiliary"] = auxiliary_logits(self.segmentation["auxiliary"], levels, x)
        return outputs

    def check_batch(self, with_boxes: int, with_masks: int, size_hw: tuple[int, int]) -> None:
        """See that a batch is enough for what is not frozen to train on.

        Args:
            with_boxes: images in the batch that carry boxes.
            with_masks: images that carry a mask.
            size_hw: of the images, in pixels.

        Raises:
            UserError: a single image that leaves BatchNorm one value to learn from.
        """
        learns = {part: part not in self.frozen for part in PARTS}
        alone = with_boxes == 1 or (self.spec.shares_bifpn and with_boxes == 0 and with_masks == 1)
        if alone and learns["detection"]:
            check_batch(1, size_hw, 2**self.spec.detection.max_level, "the EfficientDet")
        if learns["segmentation"] and not self.spec.shares_bifpn:
            check_batch(with_masks, size_hw, self._norm_stride, self.spec.segmentation.arch)

    def anchors(self, image_size_hw: tuple[int, int]) -> Tensor:
        """Return the anchors (A, 4), xyxy in pixels, of images of this size, where the model's parameters are."""
        return self._anchors(image_size_hw, next(self.parameters()).device)

    def fuse(self) -> MultitaskModel:
        """Return a copy for inference that computes the same faster; see `effdense.inference_form`."""
        return fuse(self, image_size=max(SEEN_SIZE, least_size(self.spec.segmentation.arch)))

    @property
    def efficientdet(self) -> EfficientDet:
        """The detection's network, on the same modules."""
        neck, head = cast("BiFPN", self.detection["neck"]), cast("DetectionHead", self.detection["head"])
        backbone = self.backbone.yielding(self.spec.detection_strides)
        view = EfficientDet(backbone, neck, head, self._anchors)
        view.spec = self.spec.detection
        view.training = self.training  # its own flag alone: what is frozen keeps its mode
        return view

    @property
    def segmentation_model(self) -> SegmentationModel:
        """The segmentation's network, on the same modules."""
        parts = dict(self.segmentation.items())
        decoder = parts["decoder"]
        if self.spec.shares_bifpn:
            neck = cast("BiFPN", self.detection["neck"])
            decoder = DetectorPyramidDecoder(neck, cast("FinerLevel", decoder))
        view = SegmentationModel(
            self.backbone.yielding(self.spec.segmentation_strides),
            decoder,
            parts["head"],
            self.seg_classes,
            depth=self._depth,
            least_cells=self._least_cells,
            norm_stride=self._norm_stride,
            auxiliary=parts.get("auxiliary"),
        )
        view.spec = self.spec.segmentation
        view.training = self.training
        return view

    @property
    def detector(self) -> Detector:
        """A detector on the same modules, that predicts, evaluates and saves alone; puts all in evaluation mode."""
        self.eval()
        return Detector(self.efficientdet, self.class_names, image_size=self.image_size)

    @property
    def segmenter(self) -> Segmenter:
        """A segmenter on the same modules, that predicts, evaluates and saves alone; puts all in evaluation mode."""
        self.eval()
        return Segmenter(self.segmentation_model, self.seg_class_names, image_size=self.image_size)

    def freeze(self, parts: Iterable[str]) -> None:
        """Keep parts as they are, to the bit: neither weights nor BatchNorm statistics change in training.

        Replaces what was frozen before, so that an empty list thaws all but the stages that `Backbone.freeze_stages`
        froze.

        Args:
            parts: of ``PARTS``; the BiFPN belongs to the detection, also where both heads read it.

        Raises:
            UserError: there is no such part.
        """
        chosen = [parts] if isinstance(parts, str) else list(parts)
        for name in chosen:
            if name not in PARTS:
                raise UserError(f"a model has no part {name!r}{nearest(name, PARTS)}; it has {', '.join(PARTS)}")
        self.frozen = frozenset(chosen)
        for name in PARTS:
            for parameter in self.get_submodule(name).parameters():
                parameter.requires_grad_(name not in self.frozen)
                if name in self.frozen:
                    parameter.grad = None  # else an optimizer would still apply the last one
        if "backbone" not in self.frozen:
            self.backbone.freeze_stages(self.backbone.frozen_stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultitaskModel:
        """Set training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def _prepared(self, images: Tensor) -> Tensor:
        """Normalise images; sizes that would have to be padded are refused."""
        check_size((images.shape[-2], images.shape[-1]), self.spec.segmentation.arch)
        return self.backbone.normalise(images)

    def _pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        pyramid: list[Tensor] = self.detection["neck"](levels)
        return pyramid

    def _decoded(self, x: Tensor, levels: Sequence[Tensor], pyramid: Sequence[Tensor]) -> Tensor:
        """Return the map (B, C, h, w) that the segmentation head reads."""
        decoder = self.segmentation["decoder"]
        if self.spec.shares_bifpn:
            p2: Tensor = decoder(levels[0], pyramid[0])
            return p2
        return decode(decoder, x, levels, self._depth)


def create_multitask(
    backbone: str | Backbone,
    num_classes: int,
    seg_classes: int,
    arch: str = "fpn",
    *,
    det_arch: str | EfficientDetSpec = "auto",
    share_bifpn: bool = True,
    weights: str = "none",
    replace_head: bool = False,
    class_names: Sequence[str] | None = None,
    seg_class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    auxiliary: bool = False,
    drop_path_rate: float | None = None,
    offline: bool = False,
    frozen: Iterable[str] = (),
    **detection_overrides: Any,
) -> MultitaskModel:
    """Make a model of both tasks by name.

    Args:
        backbone: name of the backbone, or one ready made that has all the stages; it is used, not copied.
        num_classes: K of the detection.
        seg_classes: S of the segmentation.
        arch: segmentation architecture, as for ``create_segmentation_model``. The backbone is not dilated.
        det_arch: EfficientDet configuration, as for ``create_efficientdet``; ``"auto"`` goes with the backbone.
        share_bifpn: with ``bifpn``, the segmentation head reads the detector's own pyramid and P2, else it has a
            pyramid of its own; without effect on the other architectures.
        weights: ``"auto"``, ``"imagenet"`` or ``"none"`` concern the backbone, as for ``create_backbone``; else a file:
            of a multitask model, of a detector or segmenter to which the other head is added, or of a backbone.
        replace_head: leave the layers that know the classes untrained where the file's are for other classes.
        class_names: of the detection; a file that says other names is refused without ``replace_head``.
        seg_class_names: of the segmentation; the same.
        image_size: side of the square that images are fitted into, in pixels; default is the EfficientDet's.
        auxiliary: train an auxiliary segmentation head (deep supervision).
        drop_path_rate: stochastic depth of the backbone; default is the EfficientDet's.
        offline: never look for weights on the network.
        frozen: parts to freeze, as `MultitaskModel.freeze` does; a file of weights has to hold them as they are to be.
        detection_overrides: constants of EfficientDetSpec to replace, for example ``channels=88``.

    Raises:
        UserError: for an unknown name, a constant that does not exist, parts that do not go together, or weights that
            cannot be had or do not fit.
    """
    whole, frozen = weights not in BACKBONE_WEIGHTS, tuple(frozen)
    if replace_head and not whole:
        raise UserError(f"weights {weights} hold no head to replace: leave --replace-head out")
    ready = backbone if isinstance(backbone, Backbone) else None
    if ready is not None and (drop_path_rate is not None or weights in ("auto", "imagenet")):
        given = f"weights {weights}" if drop_path_rate is None else f"drop_path_rate {drop_path_rate}"
        raise UserError(f"{given} concerns the backbone, but the one handed in is made already")
    changes = {"image_size": image_size, "drop_path_rate": drop_path_rate, **detection_overrides}
    det = choose_detection_spec(det_arch, backbone, **changes)
    det = replace(det, backbone=backbone if isinstance(backbone, str) else backbone.name)
    spec = choose_spec(det, arch, share_bifpn=share_bifpn, auxiliary=auxiliary)
    if ready is None:
        ready = _create_backbone(spec, "none" if whole else weights, offline)
    model = model_from_spec(
        spec, num_classes, seg_classes, class_names=class_names, seg_class_names=seg_class_names, backbone=ready
    )
    if whole:
        from effdense.tasks.multitask.weights import load_weights

        load_weights(
            model,
            weights,
            replace_head=replace_head,
            class_names=class_names,
            seg_class_names=seg_class_names,
            frozen=frozen,
        )
    if frozen:
        model.freeze(frozen)
    return model


def model_from_spec(
    spec: MultitaskSpec,
    num_classes: int,
    seg_classes: int,
    *,
    class_names: Sequence[str] | None = None,
    seg_class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    backbone: Backbone | None = None,
) -> MultitaskModel:
    """Make the model of these constants, with random weights.

    Args:
        spec: the constants.
        num_classes: K of the detection.
        seg_classes: S of the segmentation.
        class_names: of the detection; default is their numbers.
        seg_class_names: of the segmentation; default is their numbers.
        image_size: side of the square that images are fitted into, in pixels; default is the EfficientDet's.
        backbone: one ready made, used and not copied; default is a random one.

    Raises:
        UserError: whatever `MultitaskModel` refuses.
    """
    backbone = backbone or _create_backbone(spec, "none", offline=True)
    if backbone.strides != spec.strides:
        backbone = backbone.yielding(spec.strides)
    if backbone.strides != spec.strides:
        raise UserError(
            f"backbone {backbone.name!r} is dilated to output stride {backbone.strides[-1]}, which a detector cannot "
            "share: make it with output_stride=32"
        )
    efficientdet = create_efficientdet(spec.detection, num_classes, backbone=backbone.yielding(spec.detection_strides))
    seg = spec.segmentation
    segmentation_model = create_segmentation_model(
        seg.arch,
        seg_classes,
        backbone=backbone.yielding(spec.segmentation_strides),
        output_stride=seg.output_stride,
        auxiliary=seg.auxiliary,
        pyramid=seg.pyramid,
    )
    segmentation_model.spec = seg  # with the backbone's name and rate, which is made already
    return MultitaskModel(
        backbone,
        efficientdet,
        segmentation_model,
        class_names=class_names or [str(number) for number in range(num_classes)],
        seg_class_names=seg_class_names or [str(number) for number in range(seg_classes)],
        image_size=image_size or spec.detection.image_size,
    )


def _create_backbone(spec: MultitaskSpec, weights: str, offline: bool) -> Backbone:
    from effdense.backbones.registry import create_backbone

    rate = spec.detection.drop_path_rate
    return create_backbone(
        spec.detection.backbone, weights=weights, out_strides=spec.strides, drop_path_rate=rate, offline=offline
    )


def _levels(backbone: Backbone, strides: Sequence[int]) -> tuple[int, ...]:
    """Return where a backbone's levels of these strides are."""
    if not set(strides) <= set(backbone.strides):
        raise UserError(
            f"a head reads levels of strides {', '.join(map(str, strides))}; backbone {backbone.name!r} was made with "
            f"strides {', '.join(map(str, backbone.strides))}"
        )
    return tuple(backbone.strides.index(stride) for stride in strides)


def _names(names: Sequence[str], number: int, what: str) -> tuple[str, ...]:
    if len(names) != number:
        raise UserError(f"{what} has {number} classes, but {len(names)} names came: {', '.join(names)}")
    return tuple(names)


def _positions(flags: Tensor | None, num_images: int) -> list[int]:
    """Return which of a batch's images carry a label."""
    if flags is None:
        return list(range(num_images))
    if flags.shape != (num_images,):
        raise ValueError(f"flags have shape {tuple(flags.shape)}; a batch of {num_images} images takes ({num_images},)")
    return [i for i, there in enumerate(flags.tolist()) if there]


def _rows(chosen: Sequence[int], images: Sequence[int], device: torch.device) -> Tensor | None:
    """Return where some of the images of a batch are, as an index on a device; None where that is all of them."""
    if len(chosen) == len(images):
        return None
    rows = torch.tensor([images.index(image) for image in chosen], dtype=torch.int64)
    if device.type == "cuda":
        rows = rows.pin_memory()  # else the copy would wait for all that the device still has to do
    return rows.to(device, non_blocking=True)


def _picked(maps: Sequence[Tensor], rows: Tensor | None) -> list[Tensor]:
    """Return the rows of maps (B, ...), in their memory format; all of them without a copy."""
    return list(maps) if rows is None else [values[rows] for values in maps]
