"""Measure every segmentation architecture on several backbones, and check image sizes and export.

    python tools/bench_decoders.py                                    # 12 architectures on 3 backbones; takes minutes
    python tools/bench_decoders.py --arch unet fpn --backbone lite0 --size 512 --no-export

Weights are random. Images/s: evaluation mode, batch 1, float32, the median of several runs. Any size: logits have the
size of the image and are finite at odd sizes down to one pixel, and a size in whole cells gives what decoder and head
give without padding. Export: one program of torch.export serves other heights, widths and batches, and its logits are
within 1e-4 of the model's, relative to the largest.
"""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effdense.backbones.registry import resolve_backbone
from effdense.command_line import run_tool
from effdense.config import parse
from effdense.errors import UserError
from effdense.tasks.segmentation.specs import ARCHITECTURES, get_architecture

if TYPE_CHECKING:
    from torch import Tensor

    from effdense.tasks.segmentation.model import SegmentationModel

ODD_SIZES = ((97, 131), (33, 17), (1, 1))
EXPORT_FROM = (2, 264, 300)
"""Batch, height and width of the images that a program is made with; those that follow are what it then serves."""
EXPORT_TO = ((2, 264, 300), (1, 256, 288), (3, 251, 333))
TOLERANCE = 1e-4


@dataclass(frozen=True)
class DecodersConfig:
    """What to measure."""

    arch: tuple[str, ...] = ()
    """Architectures, as unet or fpn; by default all twelve."""
    backbone: tuple[str, ...] = ("lite0", "b0", "v2_s")
    """Backbones, by short name or timm's."""
    size: int = 256
    """Side of the square image that is timed, in pixels."""
    classes: int = 21
    """Number of classes."""
    repeats: int = 5
    """Timed runs, of which the median counts; one more goes before."""
    export: bool = True
    """Check torch.export too, the slowest part; --no-export leaves it out."""

    def __post_init__(self) -> None:
        for name in ("size", "classes", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if not self.backbone:
            raise UserError("no backbone is given; expected one or more, as --backbone lite0 b0")
        for name in self.arch:
            get_architecture(name)


@dataclass(frozen=True)
class Row:
    """What is known of one model; a check that failed says where."""

    arch: str
    backbone: str
    parameters: int
    images_per_second: float
    any_size: str
    export: str

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return {self.any_size, self.export} <= {"yes", "-"}


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the table; 1 where a check failed."""
    arguments = sys.argv[1:] if argv is None else argv
    description = (__doc__ or "").splitlines()[0]
    config = parse(DecodersConfig, arguments, prog="bench_decoders", description=description).config
    for backbone in config.backbone:
        resolve_backbone(backbone)
    archs = [get_architecture(name).name for name in config.arch] or list(ARCHITECTURES)
    rows = []
    for arch in archs:
        for backbone in config.backbone:
            rows.append(measure(arch, backbone, config))
            if sys.stderr.isatty():
                print(f"{len(rows)} of {len(archs) * len(config.backbone)}", end="\r", file=sys.stderr, flush=True)
    print_table(rows, config)
    return 0 if all(row.passed for row in rows) else 1


def print_table(rows: list[Row], config: DecodersConfig) -> None:
    """Print a row a model."""
    import torch
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Segmentation models, {config.classes} classes",
        caption=f"images/s: {config.size} px, batch 1, float32, CPU, threads: {torch.get_num_threads()}, median of "
        f"{config.repeats} runs",
    )
    for heading in ("arch", "backbone", "parameters", "images/s", "any size", "export"):
        table.add_column(heading, justify="right" if heading in ("parameters", "images/s") else "left")
    for number, row in enumerate(rows, start=1):
        table.add_row(
            row.arch,
            row.backbone,
            f"{row.parameters / 1e6:.2f} M",
            f"{row.images_per_second:.1f}",
            row.any_size,
            row.export,
            end_section=number % len(config.backbone) == 0,
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no edge to wrap at
    console.print(table)


def measure(arch: str, backbone: str, config: DecodersConfig) -> Row:
    """Build one model, time it, and check it."""
    import torch

    from effdense.backbones.measure import count_parameters
    from effdense.tasks.segmentation.model import create_segmentation_model

    torch.manual_seed(0)
    model = create_segmentation_model(arch, config.classes, backbone=backbone).eval()
    with torch.inference_mode():
        images = random_images(1, config.size, config.size)
        speed = 1 / seconds_for(model, images, config.repeats)
    with torch.no_grad():
        return Row(
            arch,
            backbone,
            count_parameters(model),
            speed,
            any_size_fault(model) or "yes",
            (export_fault(model) or "yes") if config.export else "-",
        )


def seconds_for(model: SegmentationModel, images: Tensor, repeats: int) -> float:
    """Return the median time of a forward pass, in seconds."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def any_size_fault(model: SegmentationModel) -> str:
    """Return what is wrong with the logits at some size, or an empty text."""
    import torch

    assert model.spec is not None
    arch = ARCHITECTURES[model.spec.arch]
    side = max(arch.least_cells, 4) * model.backbone.strides[-1]
    for height, width in (*ODD_SIZES, (side, side)):
        logits = model(random_images(1, height, width))
        if logits.shape[-2:] != (height, width) or not logits.isfinite().all():
            return f"no, at {width} x {height}"
    images = random_images(1, side, side)
    x = model.backbone.normalise(images)
    features = model.backbone.features(x)
    unpadded = model.head(model.decoder([x, *[None] * (arch.depth - len(features)), *features]))
    return "" if torch.equal(model(images), unpadded) else f"no, at {side} x {side}"


def export_fault(model: SegmentationModel) -> str:
    """Return what is wrong with the exported program, or an empty text."""
    import torch

    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, (random_images(*EXPORT_FROM),), dynamic_shapes={"images": dynamic})
        program = exported.module()
        for batch, height, width in EXPORT_TO:
            images = random_images(batch, height, width)
            expected = model(images)
            if float((program(images) - expected).abs().max()) > TOLERANCE * float(expected.abs().max()):
                return f"no, differs at {batch} x {width} x {height}"
    except Exception as error:  # whatever an exporter raises, the table says that this model has no program
        return f"no, {type(error).__name__}: {str(error).partition(chr(10))[0][:60]}"
    return ""


def random_images(batch: int, height: int, width: int) -> Tensor:
    """Return the same noise for the same size, uint8 (B, 3, H, W)."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


if __name__ == "__main__":
    raise SystemExit(main())
