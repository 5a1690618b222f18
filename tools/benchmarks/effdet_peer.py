"""effdet's detector and ours with the same weights, and effdet's own ways from an image to boxes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effdense.tools.benchmarks.batchnorm import settle_batchnorm
from effdense.tools.benchmarks.rows import Unequal
from effdense.tools.benchmarks.timing import Ratio, alternate, synchroniser
from effdense.tools.parity_det import random_effdet
from effdense.types import Float32, UInt8

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from effdense.tasks.detection.predict import Detector
    from effdense.types import Detections

THRESHOLD = 0.001
"""What scores no more than this is no detection; effdet hands it out, ours does not."""
SCRIPT_WARMUP = 3
"""Calls after which TorchScript has watched and rewritten what it runs."""
ACTIVE_CLASSES = 5
"""Of how many classes an image has candidates."""
INACTIVE = 20.0
"""By how much the logits of the others are lower."""


@dataclass(frozen=True)
class EffdetPeer:
    """effdet's `DetBenchPredict` as its documents run it, in evaluation and inference mode; uint8 until normalised.

    Attributes:
        bench: the network with effdet's post-processing.
        size: side of the square, in pixels.
        mean: (1, 3, 1, 1), 0..255.
        std: (1, 3, 1, 1), 0..255.
        memory_format: of the network and its input, the faster of the two.
        fitting: effdet's transform of evaluation, from a PIL image to (3, S, S) uint8.
    """

    bench: nn.Module
    size: int
    mean: Tensor
    std: Tensor
    memory_format: torch.memory_format
    fitting: Any

    def boxes_of_array(self, images: UInt8) -> Float32:
        """Return x0, y0, x1, y1, score, class from 1, (B, 100, 6), of images (B, S, S, 3)."""
        import torch

        full = [float(self.size)] * 2
        scale_and_size = torch.tensor([[1.0, *full]]).expand(len(images), -1)
        return self._boxes(torch.from_numpy(images).permute(0, 3, 1, 2), scale_and_size)

    def boxes_of_file(self, path: Path) -> Float32:
        """Return the same, (1, 100, 6), of an image file of any size, in its own pixels."""
        import torch
        from PIL import Image

        image = Image.open(path).convert("RGB")
        pixels, annotation = self.fitting(image, {})
        scale_and_size = torch.tensor([[annotation["img_scale"], *map(float, image.size)]])
        return self._boxes(torch.from_numpy(pixels)[None], scale_and_size)

    def _boxes(self, pixels: Tensor, scale_and_size: Tensor) -> Float32:
        import torch

        with torch.inference_mode():
            device = self.mean.device
            x = pixels.to(device).to(torch.float32, memory_format=self.memory_format).sub_(self.mean).div_(self.std)
            info = scale_and_size.to(device)
            found = self.bench(x, {"img_scale": info[:, 0], "img_size": info[:, 1:]})
            return np.asarray(found.cpu().numpy(), np.float32)


def detector_pair(
    arch: str, size: int, classes: int, images: UInt8, *, candidates: int | None, device: str = "cpu"
) -> tuple[Detector, EffdetPeer]:
    """Return our detector and effdet's with the same random weights.

    Args:
        arch: as ``d0``.
        size: side of the input, in pixels.
        classes: number of classes.
        images: what is measured on, (B, size, size, 3).
        candidates: how many pairs of anchor and class score above 0.001 in these images, on average, as after a
            training; None leaves all scores near 0.01, where an untrained head puts them.
        device: where both run.
    """
    import torch

    from effdense.backbones.weights import load_complete
    from effdense.tasks.detection.model import create_efficientdet
    from effdense.tasks.detection.predict import Detector
    from effdense.tasks.detection.weights import from_effdet

    theirs = random_effdet(arch, size, classes)
    ours = create_efficientdet(arch, classes).eval()
    mean, std = ours.backbone.mean, ours.backbone.std
    peer = _peer(theirs, size, mean, std)
    with torch.inference_mode():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().sub_(peer.mean).div_(peer.std)
        settle_batchnorm(theirs, theirs, x)
        logits, codes = theirs(x)
    _spread(theirs, logits, codes, None if candidates is None else candidates * len(images))
    load_complete(ours, from_effdet(theirs.state_dict()), source="effdet")
    theirs.to(device)
    peer = _faster(theirs, images[:1], size, mean, std, device)
    ours.to(memory_format=torch.channels_last)
    return Detector(ours, [f"class {n}" for n in range(classes)], image_size=size).to(device), peer


def scripted(peer: EffdetPeer, images: UInt8) -> EffdetPeer:
    """Return the peer through ``torch.jit.script``, run on images (B, S, S, 3) until TorchScript has optimised it.

    The BatchNorms of effdet's heads have to be laid out level by level for that; the results are the same. TorchScript
    refuses its lite networks, whose fusion has no weights.
    """
    import copy

    import torch

    bench: Any = copy.deepcopy(peer.bench)
    bench.model.toggle_head_bn_level_first()
    bench.to(memory_format=peer.memory_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated TorchScript
        found = replace(peer, bench=torch.jit.script(bench.eval()))
    for _ in range(SCRIPT_WARMUP):
        found.boxes_of_array(images)
    return found


def fitting(size: int, mean: tuple[float, ...]) -> Any:
    """Return effdet's transform of evaluation: a PIL image, resized and padded with the mean, as (3, S, S) uint8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from effdet.data.transforms import transforms_coco_eval
    return transforms_coco_eval(size, use_prefetcher=True, fill_color="mean", mean=mean)


def _peer(
    network: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...], channels_last: bool = False
) -> EffdetPeer:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from effdet import DetBenchPredict
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    device = next(network.parameters()).device
    centre, spread = (torch.tensor(values, device=device).mul(255).view(1, 3, 1, 1) for values in (mean, std))
    bench = DetBenchPredict(network).eval().to(device)
    return EffdetPeer(bench.to(memory_format=memory_format), size, centre, spread, memory_format, fitting(size, mean))


def _faster(
    network: nn.Module, images: UInt8, size: int, mean: tuple[float, ...], std: tuple[float, ...], device: str
) -> EffdetPeer:
    """Return the peer in the memory format in which it is faster here."""
    import copy

    plain = _peer(copy.deepcopy(network), size, mean, std)
    last = _peer(network, size, mean, std, channels_last=True)
    calls = {"plain": lambda: plain.boxes_of_array(images), "last": lambda: last.boxes_of_array(images)}
    samples = alternate(calls, repeats=3, synchronise=synchroniser(device))
    return last if Ratio.of(samples["last"], samples["plain"]).median > 1 else plain


def _spread(network: Any, logits: list[Tensor], codes: list[Tensor], candidates: int | None) -> None:
    """Change the last layers of effdet's heads so that scores and boxes spread as a trained network's do.

    Class logits are stretched and moved so that the best is at 0.9 and as many as asked for are above 0.001, all in a
    few classes: an image shows few. Of more classes the stretch would have to be larger, and with it the noise of
    bfloat16. Without a number, all are spread around 0.01 with a deviation of 0.3. Box codes get a deviation of 0.2.
    """
    import torch

    offsets = torch.cat([one.flatten() for one in codes])
    _rescale(network.box_net.predict.conv_pw, 0.2 / float(offsets.std()), 0.0)
    layer, classes = network.class_net.predict.conv_pw, network.config.num_classes
    active = torch.arange(classes) % max(1, classes // ACTIVE_CLASSES) == 0
    maps = [one.view(len(one), -1, classes, *one.shape[2:]) for one in logits]  # (B, anchors, K, h, w)
    by_class = torch.cat([one.movedim(2, 0).flatten(1) for one in maps], 1)  # (K, B * A)
    if candidates is None:
        factor = 0.3 / float(by_class.std())
        _rescale(layer, factor, _logit(0.01) - factor * float(by_class.mean()))
        return
    scores = by_class[active].flatten()
    best = scores.topk(min(candidates, len(scores))).values
    factor = (_logit(0.9) - _logit(THRESHOLD)) / max(float(best[0] - best[-1]), 1e-6)
    _rescale(layer, factor, _logit(THRESHOLD) - factor * float(best[-1]))
    with torch.no_grad():
        layer.bias.view(-1, classes)[:, ~active] -= INACTIVE


def _rescale(layer: nn.Conv2d, factor: float, offset: float) -> None:
    import torch

    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.mul_(factor)
        layer.bias.mul_(factor).add_(offset)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def check_detections(
    what: str,
    ours: Detections,
    peer: Float32,
    *,
    least: float = 1.0,
    pixels: float = 0.25,
    score: float = 5e-3,
    above: float = THRESHOLD,
) -> float:
    """Return the share of detections that both found.

    effdet's hundred may hold boxes in the padding, which have no area and which ours drops; ours then has worse ones at
    its end, and as many as the peer has are compared.

    Args:
        what: what was run, for the error.
        ours: of one image.
        peer: of the same image, (100, 6).
        least: smallest share that passes.
        pixels: how far the coordinates of the same box may be apart.
        score: how far its scores may be apart.
        above: detections that score no more are not looked at.

    Raises:
        Unequal: fewer are the same, or there is nothing to compare.
    """
    area = (peer[:, 2:4] > peer[:, :2]).all(1)
    theirs = peer[area & (peer[:, 4] > above)]
    mine = ours.scores > above
    if not area.all():
        mine &= np.arange(len(mine)) < len(theirs)
    boxes, scores, labels = ours.boxes_xyxy[mine], ours.scores[mine], ours.labels[mine]
    if not len(theirs):
        raise Unequal(f"{what}: the peer finds nothing, so that there is nothing to compare")
    same = (
        (np.abs(boxes[:, None] - theirs[None, :, :4]).max(2) <= pixels)
        & (np.abs(scores[:, None] - theirs[None, :, 4]) <= score)
        & (labels[:, None] == theirs[None, :, 5].astype(np.int64) - 1)
    )
    # what scores the threshold itself may be above it on one side alone, and cost nothing
    missing = int((~same.any(0) & (theirs[:, 4] > 1.01 * above)).sum())
    extra = int((~same.any(1) & (scores > 1.01 * above)).sum())
    share = 1 - max(missing, extra) / max(len(theirs), len(boxes))
    if share < least:
        raise Unequal(f"{what}: {share:.1%} of the detections are the peer's, expected {least:.1%} or more")
    return share
