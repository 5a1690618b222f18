"""Names of EfficientNet weights: whatever a file calls them, to timm's.

lukemelas' EfficientNet-PyTorch, the lite weight packages and segmentation_models_pytorch's classic encoders number the
blocks through (``_blocks.7._depthwise_conv``) where timm counts them within a stage (``blocks.2.1.conv_dw``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from effdense.errors import UserError

_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

_HOLDERS = ("", "backbone.", "encoder.model.", "encoder.", "model.")
"""Where a backbone stands in a classifier, a detector (effdet's and ours), and smp's segmentation models."""

HEAD = ("conv_head.", "bn2.", "classifier.")
"""Prefixes, in timm's names, of what a classification network has and a backbone does not need."""

_AROUND = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_NOT_EXPANDED = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""Blocks with expansion ratio 1 have no expanding convolution, and timm numbers their norms from the next one on."""

_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def to_timm(state: Mapping[str, Tensor], stage_lengths: Sequence[int], source: str) -> tuple[dict[str, Tensor], str]:
    """Find the backbone in a state dict and give its weights timm's names.

    Args:
        state: weights of a classifier, a detector, a segmenter or a backbone.
        stage_lengths: blocks in each stage of the network that the names are for.
        source: where the weights came from, for the error.

    Returns:
        The backbone's weights, with a classifier's head where there is one, and whose names they had ("timm" or
        "lukemelas").

    Raises:
        UserError: no EfficientNet is recognised by its keys.
    """
    for wrapper in _WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = _inside(state, wrapper)
    for holder in _HOLDERS:
        if f"{holder}conv_stem.weight" in state:
            return _inside(state, holder), "timm"
        if f"{holder}_conv_stem.weight" in state:
            return from_lukemelas(_inside(state, holder), stage_lengths), "lukemelas"
    raise UserError(
        f"weights from {source} are no EfficientNet's in timm, lukemelas, effdet or effdense naming; their names begin "
        f"with {', '.join(list(state)[:5])}"
    )


def from_lukemelas(state: Mapping[str, Tensor], stage_lengths: Sequence[int]) -> dict[str, Tensor]:
    """Give lukemelas' names timm's; a name that is not known stays as it is, for the complete load to complain of."""
    places = [(stage, block) for stage, length in enumerate(stage_lengths) for block in range(length)]
    expanded = {match[1] for name in state if (match := _BLOCK.fullmatch(name)) and match[2] == "_expand_conv"}
    renamed = {}
    for name, value in state.items():
        match = _BLOCK.fullmatch(name)
        if match and int(match[1]) < len(places):
            stage, block = places[int(match[1])]
            leaf = (_EXPANDED if match[1] in expanded else _NOT_EXPANDED).get(match[2])
            renamed[f"blocks.{stage}.{block}.{leaf}.{match[3]}" if leaf else name] = value
        else:
            outer, dot, inner = name.partition(".")
            renamed[f"{_AROUND.get(outer, outer)}{dot}{inner}"] = value
    return renamed


def _inside(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
