"""Measure one shared pass against a detector and a segmenter in turn, on several backbones and decoders.

    python tools/bench_multitask.py                                    # 3 backbones, 4 heads; takes minutes
    python tools/bench_multitask.py --backbone lite0 --arch fpn --image-size 320 --device cpu

Weights are random; the two models in turn are copies of what the shared one consists of, each with a backbone of its
own. ms: from a uint8 array of the image's size to detections and label map, batch 1, the median of runs that alternate.
MiB: the most bytes of tensors at one time, weights included, both models being in memory in turn. bifpn stands for two
rows: the detector's own pyramid read by both heads, and one for each.
"""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effdense.backbones.registry import resolve_backbone
from effdense.command_line import run_tool
from effdense.config import parse
from effdense.errors import UserError
from effdense.tasks.segmentation.specs import get_architecture

if TYPE_CHECKING:
    from effdense.tasks.multitask.costs import Costs


@dataclass(frozen=True)
class MultitaskBenchConfig:
    """What to measure."""

    backbone: tuple[str, ...] = ("lite0", "b0", "b2")
    """Backbones, by short name or timm's."""
    arch: tuple[str, ...] = ("fpn", "unet", "bifpn")
    """Segmentation architectures; bifpn is measured with the detector's pyramid and with its own."""
    image_size: int | None = None
    """Side of the square image, in pixels, a multiple of 32; by default that of each backbone's EfficientDet."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N."""
    classes: int = 10
    """Number of classes of the objects."""
    seg_classes: int = 11
    """Number of classes of the pixels."""
    repeats: int = 9
    """Timed runs, of which the median counts."""

    def __post_init__(self) -> None:
        for name in ("image_size", "classes", "seg_classes", "repeats"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}, expected 1 or more")
        for name in ("backbone", "arch"):
            if not getattr(self, name):
                raise UserError(f"no {name} is given; expected one or more")
        for name in self.arch:
            get_architecture(name)


@dataclass(frozen=True)
class Case:
    """One model of both tasks.

    Attributes:
        backbone: its name.
        arch: of the segmentation.
        share_bifpn: whether both heads read one pyramid.
    """

    backbone: str
    arch: str
    share_bifpn: bool

    @property
    def decoder(self) -> str:
        """What the table calls the segmentation head."""
        return self.arch if self.arch != "bifpn" else f"bifpn, {'shared' if self.share_bifpn else 'its own'}"


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the table."""
    arguments = sys.argv[1:] if argv is None else argv
    description = (__doc__ or "").splitlines()[0]
    config = parse(MultitaskBenchConfig, arguments, prog="bench_multitask", description=description).config
    for backbone in config.backbone:
        resolve_backbone(backbone)
    cases = cases_of(config)
    found = []
    for case in cases:
        found.append(measure(case, config))
        if sys.stderr.isatty():
            print(f"{len(found)} of {len(cases)}", end="\r", file=sys.stderr, flush=True)
    print_table(cases, found)
    return 0


def cases_of(config: MultitaskBenchConfig) -> list[Case]:
    """Return what is to be measured, a backbone after the other."""
    names = [get_architecture(name).name for name in config.arch]
    return [
        Case(backbone, arch, shared)
        for backbone in config.backbone
        for arch in names
        for shared in ((True, False) if arch == "bifpn" else (False,))
    ]


def measure(case: Case, config: MultitaskBenchConfig) -> Costs:
    """Build the model and its two halves, each with a backbone of its own, and measure them."""
    import copy

    import torch

    from effdense.tasks.detection.predict import Detector
    from effdense.tasks.multitask.costs import measure_costs
    from effdense.tasks.multitask.model import create_multitask
    from effdense.tasks.multitask.predict import Multitask
    from effdense.tasks.segmentation.predict import Segmenter
    from effdense.training.device import choose_device

    torch.manual_seed(0)
    model = create_multitask(
        case.backbone,
        config.classes,
        config.seg_classes,
        case.arch,
        share_bifpn=case.share_bifpn,
        image_size=config.image_size,
    )
    model.to(choose_device(config.device)).to(memory_format=torch.channels_last)
    size = model.image_size
    return measure_costs(
        Detector(copy.deepcopy(model.efficientdet), model.class_names, image_size=size),
        Segmenter(copy.deepcopy(model.segmentation_model), model.seg_class_names, image_size=size),
        Multitask(model),
        repeats=config.repeats,
    )


def print_table(cases: Sequence[Case], found: Sequence[Costs]) -> None:
    """Print a row a model."""
    from rich.console import Console
    from rich.table import Table

    first = found[0]
    where = f"CPU, threads: {first.threads}" if first.device == "cpu" else first.device
    table = Table(
        title="One shared pass against a detector and a segmenter in turn",
        caption=f"batch 1, float32, {where}, median of {first.repeats} runs",
    )
    for heading in ("backbone", "decoder"):
        table.add_column(heading)
    table.add_column("px", justify="right")
    for heading in ("ms in turn", "shared", "ratio", "network", "MiB in turn", "shared", "ratio", "weights"):
        table.add_column(heading, justify="right")
    for number, (case, costs) in enumerate(zip(cases, found, strict=True), start=1):
        both, one = costs.in_turn, costs.shared
        table.add_row(
            case.backbone,
            case.decoder,
            str(costs.image_size),
            f"{both.predict_ms:.1f}",
            f"{one.predict_ms:.1f}",
            f"{costs.ratio('predict_ms'):.2f}",
            f"{costs.ratio('network_ms'):.2f}",
            f"{both.peak_bytes / 2**20:.1f}",
            f"{one.peak_bytes / 2**20:.1f}",
            f"{costs.ratio('peak_bytes'):.2f}",
            f"{costs.ratio('weight_bytes'):.2f}",
            end_section=case.backbone != next((one.backbone for one in cases[number:]), None),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no edge to wrap at
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
