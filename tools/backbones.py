"""Print the table of backbones: what was published beside what is measured from the built networks."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from effdense.backbones.registry import list_backbones, resolve_backbone
from effdense.errors import UserError

if TYPE_CHECKING:
    from effdense.backbones.specs import BackboneSpec

_MISSING = "-"


def main(argv: list[str] | None = None) -> int:
    """Print the table.

    Args:
        argv: command line without the program's name; default: the process's.

    Returns:
        Exit code: 0, or 2 where no backbone matches.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", metavar="PATTERN", help="shell pattern, as 'lite*' or 'efficientnetv2_rw_*'")
    parser.add_argument("--no-measure", action="store_true", help="published numbers only: builds nothing")
    options = parser.parse_args(argv)
    try:
        specs = _chosen(options.names)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    _print_table(specs, measure=not options.no_measure)
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
