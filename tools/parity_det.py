"""Print how far every published EfficientDet is from effdet's with the same random weights."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ParityConfig:
    """What to compare."""

    arch: tuple[str, ...] = ()
    """Configurations, as d0 or lite3x; by default all fifteen."""
    size: int = 128
    """Side of the random input, in pixels."""
    classes: int = 7
    """Number of classes."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 128:
            raise UserError(f"size is {self.size}, expected a multiple of 128: effdet takes no other")
        if self.classes < 1:
            raise UserError(f"classes is {self.classes}, expected 1 or more")


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, compare, print the table; 1 where a difference is above 1e-4."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(ParityConfig, arguments, prog="parity_det", description=__doc__ or "").config
    from rich.console import Console
    from rich.table import Table

    from effdense.tasks.detection.specs import SPECS, get_spec

    table = Table(title=f"EfficientDet beside effdet, same random weights, {config.size} px")
    for heading in ("arch", "parameters", "effdet's", "class logits", "box codes"):
        table.add_column(heading, justify="left" if heading == "arch" else "right")
    worst = 0.0
    for name in config.arch or tuple(SPECS):
        ours, theirs, logits, codes = compare(get_spec(name).name, config.size, config.classes)
        table.add_row(name, f"{ours / 1e6:.2f} M", f"{theirs / 1e6:.2f} M", f"{logits:.1e}", f"{codes:.1e}")
        worst = max(worst, logits, codes)
    Console().print(table)
    print("largest difference, relative to the largest output:", f"{worst:.1e}", "(1e-4 is asked for)")
    return 0 if worst <= 1e-4 else 1


def compare(name: str, size: int, classes: int) -> tuple[int, int, float, float]:
    """Return the parameters of both networks, and the largest difference of their outputs relative to the largest."""
    import torch

    from effdense.backbones.weights import load_complete
    from effdense.tasks.detection.model import create_efficientdet
    from effdense.tasks.detection.weights import from_effdet

    theirs = random_effdet(name, size, classes)
    ours = create_efficientdet(name, classes).eval()
    load_complete(ours, from_effdet(theirs.state_dict()), source="effdet")
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(x)
        got = ours.head(ours.neck(ours.backbone.features(x)))
    differences = [
        float((mine - _flat(maps, mine.shape[-1])).abs().max() / mine.abs().max())
        for mine, maps in zip(got, expected, strict=True)
    ]
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    return counts[0], counts[1], differences[0], differences[1]


def random_effdet(name: str, size: int, classes: int) -> Any:
    """Return effdet's network with every weight random, also those that start as constants."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import effdet

    settings = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    settings.image_size, settings.num_classes = (size, size), classes
    torch.manual_seed(0)
    model = effdet.EfficientDet(settings, pretrained_backbone=False).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith("edge_weights"):
            value.uniform_(-0.2, 2)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.randn(value.shape) * 0.1)
    return model


def _flat(maps: list[Tensor], size: int) -> Tensor:
    """Return effdet's maps, (B, anchors * size, h, w) each, as (B, A, size)."""
    import torch

    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, size) for one in maps], 1)


if __name__ == "__main__":
    raise SystemExit(main())
