"""The training loop with its data beside a plain loop around effdet, an epoch of one and an epoch of the other."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effdense.tools.benchmarks.checks import check_close
from effdense.tools.benchmarks.effdet_parts import VERSION
from effdense.tools.benchmarks.rows import BenchSettings, Part, Row, row
from effdense.tools.benchmarks.scenes import scene, write_jpeg
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser

if TYPE_CHECKING:
    from torch import nn

    from effdense.tasks.detection.config import DetectionConfig
    from effdense.tasks.detection.train import Run
    from effdense.tools.benchmarks.training_peer import Peer

NAMES = ("blob", "disc", "leaf", "ring", "seed")
OBJECTS = 8
SAME_LAYERS, TWO_FROZEN, ON_A_GPU = 1.5, 2.5, 2.0
FROZEN = 2


@dataclass(frozen=True)
class Case:
    """A network and its batches."""

    arch: str
    size: int
    batch_size: int
    batches: int

    def __str__(self) -> str:
        return f"{self.arch}, {self.size} px, batch {self.batch_size}"


CASES = (Case("lite0", 320, 8, 3), Case("d0", 512, 4, 2))
QUICK = (Case("lite0", 128, 2, 1),)
BATCHES_ON_A_GPU = 24
"""An epoch of a few batches would be the start of the workers' queue."""


@dataclass(frozen=True)
class Way:
    """How ours is run, and how the peer.

    Attributes:
        says: in the table.
        settings: ours.
        peer_amp: whether the peer runs under autocast.
        target: least ratio.
    """

    says: str
    settings: dict[str, Any]
    peer_amp: bool = False
    target: float | None = None


def ways(device: str) -> tuple[Way, ...]:
    """Return what is measured on a device."""
    if device == "cuda":
        return (
            Way("bf16", {"amp": "bf16"}, target=ON_A_GPU),
            Way("bf16, compiled", {"amp": "bf16", "compile": True}, target=ON_A_GPU),
            Way("both bf16", {"amp": "bf16"}, peer_amp=True),
            Way("both bf16, ours compiled", {"amp": "bf16", "compile": True}, peer_amp=True),
        )
    return (
        Way("same layers, both float32", {"amp": "off"}, target=SAME_LAYERS),
        Way("same layers, default precision", {"amp": "auto"}, target=SAME_LAYERS),
        Way("same layers, both bfloat16", {"amp": "bf16"}, peer_amp=True),
        Way("--freeze-stages 2, float32", {"amp": "off", "freeze_stages": FROZEN}, target=TWO_FROZEN),
        Way("--freeze-stages 2, default precision", {"amp": "auto", "freeze_stages": FROZEN}, target=TWO_FROZEN),
    )


def run(settings: BenchSettings) -> list[Row]:
    """Measure every case in every way."""
    rows = []
    for usual in QUICK if settings.quick else CASES:
        case = replace(usual, batches=BATCHES_ON_A_GPU) if settings.device == "cuda" else usual
        with tempfile.TemporaryDirectory() as folder:
            root = write_photos(Path(folder) / "voc", case.batch_size * case.batches)
            for way in ways(settings.device):
                rows.append(measure(settings, case, way, root, Path(folder)))
    return rows


def measure(settings: BenchSettings, case: Case, way: Way, root: Path, folder: Path) -> Row:
    """Return the row of a case run one way; first both train on one batch's outputs with the same weights."""
    from effdense.tools.benchmarks.training_peer import build_peer

    workers = min(8, os.cpu_count() or 1) if settings.device == "cuda" else 0
    peer = build_peer(
        root, NAMES, case.arch, case.size, case.batch_size, device=settings.device, amp=way.peer_amp, workers=workers
    )
    changes = {"workers": workers, **way.settings}
    config = our_config(case, root, settings.device, same_weights(case, peer, folder), changes)
    with our_run(config, Path(tempfile.mkdtemp(dir=folder)) / "run") as started:
        check_same_step(started, peer)
        samples = alternate(
            {"ours": our_epoch(started), "peer": peer.epoch},
            repeats=settings.rounds(7),
            warmup=1,
            synchronise=synchroniser(settings.device),
            keeping=["ours", "peer"] if settings.device == "cpu" else (),
        )
    images = case.batch_size * case.batches
    precision = started.learner.precision.name
    note = f"ours {precision}, the peer {'bf16' if way.peer_amp else 'fp32'}"
    if config.freeze_stages:
        note += ", which trains all layers"
    if workers:
        note += f"; {workers} workers and page-locked memory each"
    ratio = Ratio.of(samples["ours"], samples["peer"])
    return row(f"{case}: {way.says}", ratio, target=way.target, unit="images/s", units_per_sample=images, note=note)


def our_config(case: Case, root: Path, device: str, weights: Path, changes: dict[str, Any]) -> DetectionConfig:
    """Return the settings of a run as a user would give them."""
    from effdense.tasks.detection.config import DetectionConfig
    from effdense.tasks.detection.run import resolve

    config = DetectionConfig(
        dataset="voc",
        data_root=root,
        train_split="trainval",
        val_split="trainval",
        arch=case.arch,
        weights=str(weights),
        image_size=case.size,
        batch_size=case.batch_size,
        device=device,
        out=weights.parent / "out",
    )
    return resolve(replace(config, **changes))


def same_weights(case: Case, peer: Peer, folder: Path) -> Path:
    """Write the peer's weights as a detector's file and return its path."""
    from effdense.backbones.weights import load_complete
    from effdense.tasks.detection.model import create_efficientdet
    from effdense.tasks.detection.predict import Detector
    from effdense.tasks.detection.weights import from_effdet

    model = create_efficientdet(case.arch, len(NAMES), image_size=case.size)
    load_complete(model, from_effdet(peer.network.state_dict()), source="effdet")
    Detector(model, NAMES, image_size=case.size).save(folder / "start.safetensors")
    return folder / "start.safetensors"


@contextmanager
def our_run(config: DetectionConfig, folder: Path) -> Iterator[Run]:
    """Start a run, quietly."""
    from effdense.tasks.detection.train import start

    level = logging.getLogger("effdense").level
    logging.getLogger("effdense").setLevel(logging.ERROR)
    try:
        yield start(config, folder, resume=False)
    finally:
        logging.getLogger("effdense").setLevel(level)


def our_epoch(run: Run) -> Callable[[], object]:
    """Return what trains on every image once, as `train_one_epoch` does."""
    from effdense.tasks.detection.train import train_one_epoch
    from effdense.training.interrupt import InterruptWatch

    watch = InterruptWatch()
    return lambda: train_one_epoch(run, watch)


def check_same_step(run: Run, peer: Peer) -> None:
    """See that both networks give one batch the same loss and, where nothing is frozen, train the same layers alike.

    In evaluation mode and float32, as the batch's own statistics would carry rounding from layer to layer.

    Raises:
        Unequal: they do not.
    """
    import torch

    from effdense.tasks.detection.assign import assign
    from effdense.tasks.detection.loss import BOX_WEIGHT
    from effdense.tools.benchmarks.effdet_parts import effdet_boxes

    model, device = run.detector.model, run.detector.device
    batch = next(iter(run.loader)).to(device)
    run.learner.model.eval()
    class_logits, box_codes = model(batch.images)
    # Moved by hundredths of a pixel: effdet leaves out the coordinates whose target happens to be exactly 0.
    moved = batch.boxes_xyxy + batch.boxes_xyxy.new_tensor([0.013, 0.017, 0.029, 0.031])
    targets = assign(model.anchors((run.detector.image_size,) * 2), moved, batch.labels, batch.ignore)
    losses = run.loss(class_logits, box_codes, targets)
    boxes, classes = effdet_boxes(moved, batch.labels)
    with torch.no_grad():
        pixels = model.backbone.normalise(batch.images)
    peer.bench.train()
    peer.network.eval()
    theirs = peer.bench(pixels, {"bbox": boxes, "cls": classes})
    check_close("class loss", losses["class"], theirs["class_loss"], 1e-3)
    check_close("box loss", losses["box"], theirs["box_loss"], 1e-3)
    if run.config.freeze_stages == 0:
        (losses["class"] + BOX_WEIGHT * losses["box"]).backward()  # type: ignore[no-untyped-call]
        theirs["loss"].backward()
        mine, others = (trained(network) for network in (model, peer.network))
        # effdet's separable convolutions keep biases before a BatchNorm, which takes them away again
        check_close("number of trained parameters", mine[0], others[0], 1e-3)
        check_close("norm of the gradients", mine[1], others[1], 1e-2)
    run.learner.model.zero_grad(set_to_none=True)
    peer.network.zero_grad(set_to_none=True)


def trained(network: nn.Module) -> tuple[int, float]:
    """Return how many parameters of a network are trained, and the norm of the kernels' gradients."""
    import torch

    parameters = [one for one in network.parameters() if one.requires_grad]
    gradients = [one.grad for one in parameters if one.grad is not None and one.ndim == 4]
    return sum(one.numel() for one in parameters), float(torch.nn.utils.get_total_norm(gradients))


def write_photos(root: Path, images: int, boxes: int = OBJECTS) -> Path:
    """Write drawn scenes of 640 x 480 pixels with so many boxes each in Pascal VOC's layout; return the folder."""
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    stems = [f"{number:06d}" for number in range(images)]
    for number, stem in enumerate(stems):
        write_jpeg(root / "JPEGImages" / f"{stem}.jpg", scene(480, 640, number))
        sizes = np.exp(rng.uniform(np.log(16), np.log(300), (boxes, 2)))
        corners = 1 + rng.random((boxes, 2)) * (np.array([639, 479]) - sizes)
        edges = np.concatenate([corners, corners + sizes], 1).round().astype(int)
        rows = enumerate(edges.tolist(), start=number * boxes)
        objects = "".join(_xml(NAMES[place % len(NAMES)], row) for place, row in rows)  # every class is there
        size = "<size><width>640</width><height>480</height><depth>3</depth></size>"
        text = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(stems) + "\n")
    return root


def _xml(name: str, edges: list[int]) -> str:
    fields = zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
    box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in fields)
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"


PART = Part("training", "training loop with its data", f"{VERSION} in a plain loop", run, ("cpu", "cuda"))
