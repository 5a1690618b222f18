"""From an image to its label map: our Unet and FPN exported, beside segmentation_models_pytorch with the same weights.

The weights are those of a short training on drawn scenes: with random ones every pixel is a border between classes,
which a label map of a network that is used is not, and what labelling one costs depends on it. Images are square, so
that neither side pads; both end with a label for every pixel of the original image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from effdense.tools.benchmarks.batchnorm import settle_batchnorm
from effdense.tools.benchmarks.checks import check_same_labels
from effdense.tools.benchmarks.exports import KEEPING, PYTORCH, REST, every_digit, forms_of
from effdense.tools.benchmarks.rows import BenchSettings, Part, Row, row
from effdense.tools.benchmarks.scenes import labelled_scene
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser
from effdense.types import UInt8

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from effdense.tasks.segmentation.predict import Segmenter

CLASSES = 21
SIDE = 640
"""Width and height of the original image, in pixels."""

STEPS = 40
"""Of training, of four scenes each, at half the size of the input."""


class Case(NamedTuple):
    """A model: its decoder, its backbone by our name and by smp's, and the side of its input in pixels."""

    arch: str
    backbone: str
    encoder: str
    size: int


CASES = tuple(
    Case(arch, backbone, encoder, size)
    for arch in ("unet", "fpn")
    for backbone, encoder, size in (("lite0", "tu-tf_efficientnet_lite0", 320), ("b0", "tu-tf_efficientnet_b0", 512))
)


@dataclass(frozen=True)
class SmpPeer:
    """A model of smp in evaluation mode, under `inference_mode`, and what its users write around it.

    Attributes:
        model: maps normalised images to logits of their size.
        size: side of its input, in pixels.
        mean: (1, 3, 1, 1), 0..255.
        std: (1, 3, 1, 1), 0..255.
        memory_format: of the network and its input, the faster of the two.
    """

    model: nn.Module
    size: int
    mean: Tensor
    std: Tensor
    memory_format: torch.memory_format

    def label_map(self, image: UInt8) -> UInt8:
        """Return the class of every pixel of a square image (H, W, 3)."""
        import cv2
        import numpy as np
        import torch

        height, width = image.shape[:2]
        small = image
        if height != self.size:  # resized as ours is: what is compared are the models
            how = cv2.INTER_AREA if self.size / height < 0.7 else cv2.INTER_LINEAR
            small = np.asarray(cv2.resize(image, (self.size, self.size), interpolation=how), np.uint8)
        with torch.inference_mode():
            x = torch.from_numpy(small).permute(2, 0, 1)[None].to(self.mean.device)
            x = x.to(torch.float32, memory_format=self.memory_format).sub_(self.mean).div_(self.std)
            logits = torch.nn.functional.interpolate(self.model(x), (height, width), mode="bilinear")
            labels = logits.max(1).indices[0]  # the same as argmax, and faster
            return np.asarray(labels.to(torch.uint8).cpu().numpy())


def run(settings: BenchSettings) -> list[Row]:
    """Measure every case in PyTorch and exported."""
    rows = []
    for case in CASES[:1] if settings.quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows += case_rows(case, settings, Path(folder))
    return rows


def case_rows(case: Case, settings: BenchSettings, folder: Path) -> list[Row]:
    """Check that the label maps are the same, and time the ways to them in turn."""
    from effdense.tasks.segmentation.export import export_segmenter

    size = 64 if settings.quick else case.size
    side = 128 if settings.quick else SIDE
    image, truth = labelled_scene(side, side, CLASSES)
    ours, peer = segmenter_pair(case, size, image, settings.device, steps=settings.rounds(STEPS))
    title = f"{case.arch}, {case.backbone}, {size} px"
    forms = forms_of(ours, export_segmenter, folder, device=settings.device, threads=settings.threads)
    calls: dict[str, Callable[[], object]] = {"peer": lambda: peer.label_map(image)}
    notes = {}
    with every_digit():
        expected = peer.label_map(image)
        right = float((expected == truth).mean())
        for label, form in forms.items():
            share = check_same_labels(f"{title}, {label}", form.checked.predict(image).mask, expected, 0.99)
            notes[label] = "; ".join(
                filter(None, (f"{share:.2%} of the labels the same, {right:.0%} right", form.note))
            )
            calls[label] = partial(form.timed.predict, image)
    samples = alternate(
        calls,
        repeats=settings.rounds(20),
        warmup=1 if settings.quick else 2,
        synchronise=synchroniser(settings.device),
        rest=REST,
        keeping=[KEEPING],
    )
    return [
        row(
            f"{title}, {label}",
            Ratio.of(samples[label], samples["peer"]),
            target=None if label in (PYTORCH, KEEPING) else 4.0,
            note=notes[label],
        )
        for label in forms
    ]


def segmenter_pair(case: Case, size: int, image: UInt8, device: str, steps: int) -> tuple[Segmenter, SmpPeer]:
    """Return our segmenter and smp's with the same weights, BatchNorm's statistics being those of the image.

    Args:
        case: the model.
        size: side of its input, in pixels.
        image: square, of any size.
        device: that is measured.
        steps: of training.
    """
    import copy

    import cv2
    import segmentation_models_pytorch as smp
    import torch

    from effdense.backbones.weights import load_complete
    from effdense.tasks.segmentation.model import create_segmentation_model
    from effdense.tasks.segmentation.predict import Segmenter
    from effdense.tasks.segmentation.weights import from_smp

    torch.manual_seed(0)
    theirs = smp.create_model(case.arch, case.encoder, encoder_weights=None, classes=CLASSES)
    ours = create_segmentation_model(case.arch, CLASSES, backbone=case.backbone).eval()
    statistics = (ours.backbone.mean, ours.backbone.std)
    mean, std = (torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in statistics)
    _train(theirs, size // 2, mean, std, steps)
    pixels = torch.from_numpy(cv2.resize(image, (size, size))).permute(2, 0, 1)[None]
    settle_batchnorm(theirs, theirs, (pixels - mean) / std)
    load_complete(ours, from_smp(theirs.state_dict(), ours.state_dict()), source="smp")
    mean, std = mean.to(device), std.to(device)
    theirs.to(device)
    plain = SmpPeer(copy.deepcopy(theirs), size, mean, std, torch.contiguous_format)
    last = SmpPeer(theirs.to(memory_format=torch.channels_last), size, mean, std, torch.channels_last)
    calls = {"plain": lambda: plain.label_map(image), "last": lambda: last.label_map(image)}
    samples = alternate(calls, repeats=3, synchronise=synchroniser(device))
    peer = last if Ratio.of(samples["last"], samples["plain"]).median > 1 else plain
    ours.to(memory_format=torch.channels_last)
    return Segmenter(ours, [f"class {n}" for n in range(CLASSES)], image_size=size).to(device), peer


def _train(model: nn.Module, size: int, mean: Tensor, std: Tensor, steps: int) -> None:
    """Teach a network the classes of scenes, and leave it in evaluation mode.

    Args:
        model: maps normalised images to logits of their size.
        size: side of the scenes, in pixels.
        mean: (1, 3, 1, 1), 0..255.
        std: (1, 3, 1, 1), 0..255.
        steps: as many.
    """
    import numpy as np
    import torch

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for step in range(steps):
        scenes = [labelled_scene(size, size, CLASSES, seed=1 + 4 * step + i) for i in range(4)]
        images, labels = (torch.from_numpy(np.stack(each)) for each in zip(*scenes, strict=True))
        logits = model((images.permute(0, 3, 1, 2) - mean) / std)
        loss = torch.nn.functional.cross_entropy(logits, labels.long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


PART = Part("segmentation", "image to label map, batch 1", "smp 0.6 in PyTorch", run, ("cpu", "cuda"))
