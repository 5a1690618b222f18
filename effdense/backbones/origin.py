"""Where a backbone's weights come from, as a run's state keeps it: the normalisation belongs to the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effdense.backbones.backbone import Backbone

log = logging.getLogger(__name__)


def origin_of(backbone: Backbone) -> dict[str, Any]:
    """Return what `restore_origin` needs."""
    return {"mean": list(backbone.mean), "std": list(backbone.std), "source": backbone.weights_source}


def restore_origin(backbone: Backbone, origin: Mapping[str, Any]) -> None:
    """Give a backbone the normalisation of the weights that will be put into it, and say where they once came from."""
    backbone.set_statistics(origin["mean"], origin["std"])
    backbone.weights_source = origin["source"]


def freeze_and_say(backbone: Backbone, stages: int) -> None:
    """Log where the weights come from, and freeze the first stages; frozen random weights are warned of."""
    log.info("weights: %s", backbone.weights_source)
    if backbone.weights_source == "none" and stages:
        log.warning("what is frozen of the backbone has random weights, as no pretrained ones were found")
    backbone.freeze_stages(stages)
