"""What every model promises of its ONNX file: the numbers of its network, on an image that nothing has to resize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from effdense.runtime.stages import cut
from effdense.tasks.detection.export import export_detector
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.segmentation.export import export_segmenter
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.specs import ARCHITECTURES

SIDE = 256
DETECTORS = {"d0": {}, "lite0": {}, "lite0 with plain sums": {"fusion": "sum"}, "v2_s": {}, "edge_s": {}}
SEGMENTERS = [(arch, "b0") for arch in ARCHITECTURES] + [("unet", "lite0"), ("fpn", "v2_s")]


def photo(side: int) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), np.uint8)


def opened(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def settle_norms(model: nn.Module) -> None:
    """Give every BatchNorm the statistics of images, else a fold that is wrong would not show.

    Statistics out of the air let the maps of a deep network grow, and rounding with them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
    with torch.no_grad():
        model.train()(torch.from_numpy(np.stack([photo(SIDE), photo(SIDE)[::-1].copy()])).permute(0, 3, 1, 2))
    for norm in norms:
        norm.running_var.clamp_(min=0.1)  # type: ignore[union-attr]  # of few values it may be next to nothing
    model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_the_network_in_every_detectors_file_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = name.split()[0]
    backbone = {"v2_s": "v2_s", "edge_s": "edge_s"}.get(arch)
    model = create_efficientdet("auto" if backbone else arch, 5, backbone=backbone, **DETECTORS[name]).eval()
    settle_norms(model)
    export_detector(Detector(model, tuple("abcde"), image_size=SIDE), tmp_path / "x.onnx")
    pixels = photo(SIDE).transpose(2, 0, 1)[None].astype(np.float32)
    _, network, _ = cut(onnx.load(tmp_path / "x.onnx"))
    found = opened(network.SerializeToString()).run(["class_logits", "box_codes"], {"pixels": pixels})
    with torch.no_grad():
        wanted = model(torch.from_numpy(pixels))
    for mine, theirs in zip(found, wanted, strict=True):
        assert np.abs(mine - theirs.numpy()).max() < 1e-4 * np.abs(mine).max()


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "backbone"), SEGMENTERS)
def test_every_segmenter_gives_the_same_label_map_from_its_file(arch: str, backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_segmentation_model(arch, 5, backbone=backbone)
    settle_norms(model)
    segmenter = Segmenter(model, tuple("abcde"), image_size=SIDE)
    export_segmenter(segmenter, tmp_path / "x.onnx")
    image = photo(SIDE)
    (found,) = opened((tmp_path / "x.onnx").read_bytes()).run(None, {"images": image[None]})
    assert (found[0] != segmenter.predict(image).mask).mean() < 2e-3
