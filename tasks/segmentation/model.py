"""Segmentation models: backbone, decoder and head, and how one is made by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effdense.backbones.backbone import Backbone
from effdense.errors import UserError
from effdense.inference_form import fuse
from effdense.tasks.segmentation.decoders import build_decoder
from effdense.tasks.segmentation.specs import ARCHITECTURES, Architecture, PyramidSpec, SegmentationSpec, choose_spec
from effdense.tasks.segmentation.weights import load_segmenter, read_weights
from effdense.types import IGNORE_INDEX

_LOG = logging.getLogger("effdense")

BACKBONE_WEIGHTS = ("auto", "imagenet", "none")

AUXILIARY_CHANNELS = 256
"""Of the auxiliary head, as in the network that PSPNet's authors published."""


class SegmentationModel(nn.Module):
    """A segmenter: images in, class logits of every pixel out.

    An image of any size will do. It is padded at the bottom and the right to whole cells of the coarsest level, with
    the mean that normalisation subtracts, and the logits are cropped again: features lie as they did in training, and
    every step up in a decoder meets a map of exactly its size.

    Attributes:
        spec: the constants that it was made with, or None where it was put together by hand.
        num_classes: K.
        depth: how many times the backbone halves the image, dilation left aside.
        least_cells: rows and columns that the coarsest level must have.
        norm_stride: of the coarsest map that BatchNorm follows.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: nn.Module,
        head: nn.Module,
        num_classes: int,
        *,
        depth: int = 5,
        least_cells: int = 1,
        norm_stride: float | None = None,
        auxiliary: nn.Module | None = None,
    ):
        """Put the parts together.

        Args:
            backbone: its last map is the coarsest level.
            decoder: takes ``depth`` + 1 maps, the padded image first and None in place of those that the backbone
                does not yield; yields one map.
            head: from that map to logits of the padded image's size.
            num_classes: K.
            depth: how many times the backbone halves the image, dilation left aside.
            least_cells: rows and columns that the coarsest level must have.
            norm_stride: of the coarsest map that BatchNorm follows, infinite for the mean of an image; None is the
                coarsest level's.
            auxiliary: from the decoder's last level but one to logits of its size; it helps training only.
        """
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.head = head
        self.auxiliary = auxiliary
        self.num_classes = num_classes
        self.spec: SegmentationSpec | None = None
        self.depth = depth
        self.least_cells = least_cells
        self.norm_stride = backbone.strides[-1] if norm_stride is None else norm_stride

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W), RGB in 0..255, to class logits (B, K, H, W).

        Raises:
            UserError: training on a single image that leaves BatchNorm one value to learn from.
        """
        x = self._prepared(images)
        features = self.backbone.features(x)
        decoded = decode(self.decoder, x, features, self.depth)
        return _cropped(self.head(decoded), images)

    def training_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return what a loss needs of images (B, 3, H, W).

        Returns:
            ``"logits"`` (B, K, H, W), and ``"auxiliary"`` of the same shape where there is an auxiliary head.

        Raises:
            UserError: training on a single image that leaves BatchNorm one value to learn from.
        """
        x = self._prepared(images)
        features = self.backbone.features(x)
        decoded = decode(self.decoder, x, features, self.depth)
        outputs = {"logits": _cropped(self.head(decoded), images)}
        if self.auxiliary is not None:
            outputs["auxiliary"] = _cropped(auxiliary_logits(self.auxiliary, features, x), images)
        return outputs

    def check_batch(self, num_images: int, size_hw: tuple[int, int]) -> None:
        """See that a batch is enough to train on.

        Args:
            num_images: in the batch.
            size_hw: of the images, in pixels.

        Raises:
            UserError: a single image that leaves BatchNorm one value to learn from.
        """
        check_batch(num_images, size_hw, self.norm_stride, self.spec.arch if self.spec else "this model")

    def fuse(self) -> SegmentationModel:
        """Return a copy for inference that computes the same faster; see `effdense.inference_form`."""
        return fuse(self)

    def _prepared(self, images: Tensor) -> Tensor:
        """Normalise images and pad them with zeros, which are the mean, to a size that the parts take."""
        if self.training:
            self.check_batch(images.shape[0], (images.shape[-2], images.shape[-1]))
        x = self.backbone.normalise(images)
        bottom, right = (self._padded_size(size) - size for size in x.shape[-2:])
        return F.pad(x, (0, right, 0, bottom))

    def _padded_size(self, size: int) -> int:
        """Return a height or width, in pixels, in whole cells of the coarsest level, and as many as are needed."""
        stride = self.backbone.strides[-1]
        cells = (size + stride - 1) // stride
        if self.least_cells > 1:
            cells = torch.sym_max(cells, self.least_cells)  # type: ignore[assignment]  # for an exporter, a symbol
        return cells * stride


def decode(decoder: nn.Module, x: Tensor, features: Sequence[Tensor], depth: int) -> Tensor:
    """Run a decoder on what a backbone yields.

    Args:
        decoder: takes ``depth`` + 1 maps, of which the finer ones that the backbone does not yield are None.
        x: the normalised images that the features were made of.
        features: the levels that the decoder reads, finest first.
        depth: how many times the backbone halves the image, dilation left aside.

    Returns:
        The decoder's one map (B, C, h, w).
    """
    decoded: Tensor = decoder([x, *[None] * (depth - len(features)), *features])
    return decoded


def auxiliary_logits(auxiliary: nn.Module, features: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the auxiliary head's logits (B, K, H, W), of the size of ``x``, from the last level but one."""
    return F.interpolate(auxiliary(features[-2]), size=x.shape[-2:], mode="bilinear")


def check_batch(num_images: int, size_hw: tuple[int, int], norm_stride: float, name: str) -> None:
    """See that a batch is enough for a network to train on; the arguments are as in `SegmentationModel`.

    Raises:
        UserError: a single image that leaves BatchNorm one value to learn from.
    """
    if num_images == 1 and max(size_hw) <= norm_stride:
        raise UserError(
            f"training on one image of {size_hw[1]} x {size_hw[0]} pixels leaves BatchNorm in {name} one value to "
            "learn from: give a larger --batch-size, and as many images"
        )


class AuxiliaryHead(nn.Module):
    """Deep supervision (arXiv 1612.01105, section 3.3): logits of a map halfway, for the loss alone.

    The map is the last but one that the decoder reads: mostly that of stride 16, but of stride 4 in pspnet, whose
    levels have strides 4 and 8.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = AUXILIARY_CHANNELS, dropout: float = 0.1):
        """Build the head.

        Args:
            in_channels: of the map that comes in.
            num_classes: K.
            channels: between its two convolutions.
            dropout: share of the channels that are left out in training.
        """
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.predict = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, K, h, w)."""
        logits: Tensor = self.predict(self.dropout(F.relu(self.norm(self.conv(x)))))
        return logits


def create_segmentation_model(
    arch: str,
    num_classes: int,
    *,
    backbone: str | Backbone = "lite0",
    weights: str = "none",
    output_stride: int | None = None,
    drop_path_rate: float = 0.0,
    auxiliary: bool = False,
    replace_head: bool = False,
    class_names: Sequence[str] | None = None,
    offline: bool = False,
    pyramid: PyramidSpec | None = None,
) -> SegmentationModel:
    """Make a segmentation model by name.

    Args:
        arch: one of ``ARCHITECTURES``.
        num_classes: K.
        backbone: name of the backbone, or one ready made.
        weights: ``"auto"``, ``"imagenet"`` or ``"none"`` concern the backbone, as for ``create_backbone``; else a
            file. A model of the same architecture is loaded whole; of any other model, a detector too, the backbone.
        output_stride: of the coarsest level; default is the architecture's own.
        drop_path_rate: stochastic depth of the backbone.
        auxiliary: train an auxiliary head on the decoder's last level but one (deep supervision; see `AuxiliaryHead`).
        replace_head: leave the layers that know the classes untrained where the weights are for other classes.
        class_names: what the classes are called; a file that says other names is refused without ``replace_head``.
        offline: never look for weights on the network.
        pyramid: the detector's pyramid below which ``bifpn`` works, as in a model of both tasks; default is its own.

    Raises:
        UserError: for an unknown name, a stride that the architecture does not take, or weights that cannot be had or
            do not fit.
    """
    if not 1 <= num_classes <= IGNORE_INDEX:
        raise UserError(f"a segmentation model has 1 to {IGNORE_INDEX} classes; got {num_classes}")
    name = backbone.name if isinstance(backbone, Backbone) else backbone
    spec = choose_spec(
        arch,
        name,
        output_stride=output_stride,
        auxiliary=auxiliary,
        drop_path_rate=drop_path_rate,
        pyramid=pyramid,
    )
    file = None if weights in BACKBONE_WEIGHTS else read_weights(weights)
    whole = file is not None and file.is_segmenter(spec.arch, on_pyramid=spec.pyramid is not None)
    if replace_head and not whole:
        raise UserError(f"weights {weights} hold no {spec.arch}, hence no head to replace: leave --replace-head out")
    if not isinstance(backbone, Backbone):
        backbone = _create_backbone(spec, "none" if whole else weights, offline)
    elif drop_path_rate or (weights != "none" and not whole):
        given = f"drop_path_rate {drop_path_rate}" if drop_path_rate else f"weights {weights}"
        raise UserError(f"{given} concerns the backbone, but the one handed in is made already")
    model = _assemble(spec, num_classes, backbone)
    if file is not None and whole:
        load_segmenter(model, file, spec, replace_head=replace_head, class_names=class_names)
    elif file is not None and file.has_head:
        _LOG.warning("of %s the backbone is used; decoder and head of the %s start untrained", weights, spec.arch)
    return model


def model_from_spec(spec: SegmentationSpec, num_classes: int) -> SegmentationModel:
    """Make the model of these constants, with random weights."""
    return create_segmentation_model(
        spec.arch,
        num_classes,
        backbone=spec.backbone,
        output_stride=spec.output_stride,
        drop_path_rate=spec.drop_path_rate,
        auxiliary=spec.auxiliary,
        pyramid=spec.pyramid,
    )


def _create_backbone(spec: SegmentationSpec, weights: str, offline: bool) -> Backbone:
    from effdense.backbones.registry import create_backbone

    strides = ARCHITECTURES[spec.arch].strides
    return create_backbone(
        spec.backbone,
        weights=weights,
        out_strides=strides,
        drop_path_rate=spec.drop_path_rate,
        output_stride=spec.output_stride if spec.output_stride < strides[-1] else 32,  # 32 dilates nothing
        offline=offline,
    )


def _assemble(spec: SegmentationSpec, num_classes: int, backbone: Backbone) -> SegmentationModel:
    arch = ARCHITECTURES[spec.arch]
    _check_backbone(arch, spec.output_stride, backbone)
    decoder, head = build_decoder(arch, backbone.channels, backbone.strides, num_classes, spec.pyramid)
    model = SegmentationModel(
        backbone,
        decoder,
        head,
        num_classes,
        depth=arch.depth,
        least_cells=arch.least_cells,
        norm_stride=spec.pyramid.norm_stride if spec.pyramid else arch.norm_stride,
        auxiliary=AuxiliaryHead(backbone.channels[-2], num_classes) if spec.auxiliary else None,
    )
    model.spec = spec
    return model


def _check_backbone(arch: Architecture, output_stride: int, backbone: Backbone) -> None:
    """Refuse a backbone that does not yield the levels which an architecture reads; finer ones do no harm."""
    wanted = tuple(min(stride, output_stride) for stride in arch.strides)
    finer = len(backbone.strides) - len(wanted)
    if backbone.strides[-len(wanted) :] != wanted or finer > arch.depth - len(wanted):
        raise UserError(
            f"{arch.name} with output stride {output_stride} reads levels of strides {', '.join(map(str, wanted))}; "
            f"backbone {backbone.name!r} was made with strides {', '.join(map(str, backbone.strides))}"
        )


def _cropped(logits: Tensor, images: Tensor) -> Tensor:
    """Cut logits of padded images back to the images' size."""
    height, width = images.shape[-2:]
    if torch.compiler.is_compiling():  # whether a view is contiguous would tie an exported program to such sizes
        return F.pad(logits, (0, width - logits.shape[-1], 0, height - logits.shape[-2]))
    return logits[..., :height, :width]
