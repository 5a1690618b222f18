"""Print the table of backbones: what was published beside what is measured from the built networks."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effdense.backbones.registry import list_backbones, resolve_backbone
from effdense.command_line import run_tool
from effdense.config import parse
from effdense.errors import UserError

if TYPE_CHECKING:
    from effdense.backbones.specs import BackboneSpec

_MISSING = "-"


@dataclass(frozen=True)
class BackbonesConfig:
    """Which backbones to list."""

    names: str | None = None
    """Shell pattern, as 'lite*' or 'efficientnetv2_rw_*'; by default all with a short name."""
    measure: bool = True
    """Build each network and measure it; --no-measure prints the published numbers only."""


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the table."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(BackbonesConfig, arguments, prog="backbones", description=__doc__).config
    _print_table(_chosen(config.names), measure=config.measure)
    return 0


def _chosen(pattern: str | None) -> list[BackboneSpec]:
    """Return the specs that a pattern names; without one, all with a short name."""
    if pattern is None:
        from effdense.backbones.specs import SPECS

        return list(SPECS)
    names = list_backbones(pattern)
    if not names:
        raise UserError(f"no backbone is called {pattern!r}; without --names all with a short name are shown")
    return list(dict.fromkeys(resolve_backbone(name) for name in names))


def _print_table(specs: list[BackboneSpec], *, measure: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="EfficientNet backbones",
        caption="parameters in millions and multiply-adds in billions of the whole classifier with 1000 classes"
        + ("; trunk: parameters in millions without head; features at strides 2 to 32" if measure else ""),
    )
    for heading in ("name", "timm name", "source of the published numbers"):
        table.add_column(heading, overflow="fold")
    for heading in ("pixels", "depth", "width", "top-1 %", "params", "FLOPs"):
        table.add_column(heading, justify="right")
    if measure:
        for heading in ("params, measured", "FLOPs, measured", "trunk"):
            table.add_column(heading, justify="right")
        table.add_column("channels", no_wrap=True)
    for spec in specs:
        published = (spec.resolution, spec.depth, spec.width, spec.top1, spec.params_m, spec.flops_b)
        cells = [_MISSING if value is None else f"{value:g}" for value in published]
        table.add_row(spec.name, spec.timm_name, spec.source or _MISSING, *cells, *(_measured(spec) if measure else ()))
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)  # a file or a pipe has no edge to wrap at
    console.print(table)


def _measured(spec: BackboneSpec) -> tuple[str, ...]:
    import torch

    from effdense.backbones.build import build_network, published_size
    from effdense.backbones.measure import count_multiply_adds, count_parameters
    from effdense.backbones.registry import create_backbone

    with torch.device("meta"):
        network = build_network(spec)
        backbone = create_backbone(spec.timm_name)
        multiply_adds = count_multiply_adds(network, published_size(spec))
    return (
        f"{count_parameters(network) / 1e6:.2f}",
        f"{multiply_adds / 1e9:.3g}",
        f"{count_parameters(backbone) / 1e6:.2f}",
        " ".join(map(str, backbone.channels)),
    )


if __name__ == "__main__":
    raise SystemExit(main())
