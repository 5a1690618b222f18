"""EfficientDet: backbone, BiFPN and heads (arXiv 1911.09070), and how one is made by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from effdense.backbones.backbone import Backbone
from effdense.errors import UserError
from effdense.inference_form import fuse
from effdense.necks.bifpn import BiFPN
from effdense.tasks.detection.anchors import Anchors
from effdense.tasks.detection.head import DetectionHead
from effdense.tasks.detection.specs import EfficientDetSpec, get_spec, overridden, spec_for_backbone
from effdense.tasks.detection.weights import load_coco, load_detector, read_weights

BACKBONE_WEIGHTS = ("auto", "imagenet", "none")


class EfficientDet(nn.Module):
    """A detector: images in, class logits and box codes of every anchor out.

    Attributes:
        spec: the constants that it was made with, or None where it was put together by hand.
        num_classes: K.
    """

    def __init__(self, backbone: Backbone, neck: BiFPN, head: DetectionHead, anchors: Anchors):
        """Put the parts together; the anchors' levels must be the neck's."""
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.anchor_maker = anchors
        self.num_classes = head.num_classes
        self.spec: EfficientDetSpec | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W), RGB in 0..255, to class logits (B, A, K) and box codes (B, A, 4)."""
        outputs: tuple[Tensor, Tensor] = self.head(self.neck(self.backbone(images)))
        return outputs

    def by_level(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the same level by level, (B, anchors of the level, K or 4): what finding the best anchors needs."""
        return self.head.by_level(self.neck(self.backbone(images)))

    def anchors(self, image_size_hw: tuple[int, int]) -> Tensor:
        """Return the anchors (A, 4), xyxy in pixels, of images of this size, where the model's parameters are."""
        return self.anchor_maker(image_size_hw, next(self.parameters()).device)

    def fuse(self) -> EfficientDet:
        """Return a copy for inference that computes the same faster; see `effdense.inference_form`."""
        return fuse(self)


def create_efficientdet(
    arch: str | EfficientDetSpec,
    num_classes: int,
    *,
    backbone: str | Backbone | None = None,
    weights: str = "none",
    replace_head: bool = False,
    class_names: Sequence[str] | None = None,
    offline: bool = False,
    **overrides: Any,
) -> EfficientDet:
    """Make an EfficientDet by name.

    Args:
        arch: ``"d0"`` to ``"d7"``, ``"d7x"``, ``"lite0"`` to ``"lite4"``, ``"lite3x"``, or ``"auto"``: what goes with
            the backbone; or the constants themselves.
        num_classes: K.
        backbone: name of the backbone, or one ready made; default is the configuration's own.
        weights: ``"auto"``, ``"imagenet"`` or ``"none"`` concern the backbone, as for ``create_backbone``; ``"coco"``
            is the whole detector's, as published; else a file of either. Of a segmentation model, the backbone is used.
        replace_head: leave the class head's last layer untrained where the weights are for other classes.
        class_names: what the classes are called; a file that says other names is refused without ``replace_head``.
            Of published weights the rows of these names are used, where all are among COCO's.
        offline: never look for weights on the network.
        overrides: constants of EfficientDetSpec to replace, for example ``image_size=640``.

    Raises:
        UserError: for an unknown name, a constant that does not exist, or weights that cannot be had or do not fit.
    """
    spec = choose_spec(arch, backbone, **overrides)
    file = None if weights in (*BACKBONE_WEIGHTS, "coco") else read_weights(weights)
    whole = weights == "coco" or (file is not None and file.is_detector)
    if replace_head and not whole:
        raise UserError(f"weights {weights} hold no detector, hence no class head: leave --replace-head out")
    if not isinstance(backbone, Backbone):
        backbone = _create_backbone(spec, "none" if whole else weights, offline)
    elif file is not None and not whole:
        raise UserError(f"{weights} holds a backbone's weights, but the backbone handed in has its own already")
    model = _assemble(spec, num_classes, backbone)
    if weights == "coco":
        load_coco(model, spec, replace_head=replace_head, class_names=class_names, offline=offline)
    elif file is not None and whole:
        load_detector(model, file, spec, replace_head=replace_head, class_names=class_names)
    return model


def choose_spec(
    arch: str | EfficientDetSpec, backbone: str | Backbone | None = None, **overrides: Any
) -> EfficientDetSpec:
    """Return the constants that `create_efficientdet` would build with; the arguments are as there."""
    if isinstance(arch, EfficientDetSpec):
        return overridden(arch, overrides)
    name = backbone.name if isinstance(backbone, Backbone) else backbone
    if arch == "auto":
        return spec_for_backbone(name or "b0", **overrides)
    return get_spec(arch, **({} if name is None else {"backbone": name}), **overrides)


def _create_backbone(spec: EfficientDetSpec, weights: str, offline: bool) -> Backbone:
    from effdense.backbones.registry import create_backbone

    return create_backbone(
        spec.backbone,
        weights=weights,
        out_strides=tuple(2**level for level in range(spec.min_level, min(spec.max_level, 5) + 1)),
        drop_path_rate=spec.drop_path_rate,
        offline=offline,
    )


def _assemble(spec: EfficientDetSpec, num_classes: int, backbone: Backbone) -> EfficientDet:
    coarse = [i for i, stride in enumerate(backbone.strides) if stride >= 2**spec.min_level]
    if not coarse or backbone.strides[coarse[0]] != 2**spec.min_level:
        raise UserError(
            f"the finest level of {spec.name} has stride {2**spec.min_level}; backbone {backbone.name!r} was made with "
            f"strides {', '.join(map(str, backbone.strides))}"
        )
    neck = BiFPN(
        [backbone.channels[i] for i in coarse],
        [backbone.strides[i] for i in coarse],
        spec.num_levels,
        spec.channels,
        spec.bifpn_repeats,
        spec.fusion,
        spec.act,
    )
    head = DetectionHead(neck.channels, num_classes, spec.anchors_per_cell, spec.head_repeats, spec.act)
    anchors = Anchors(spec.min_level, spec.max_level, spec.num_scales, spec.aspect_ratios, spec.anchor_scale)
    model = EfficientDet(backbone, neck, head, anchors)
    model.spec = spec
    return model
