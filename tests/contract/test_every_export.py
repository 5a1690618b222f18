"""What every model promises of its ONNX file: the numbers of its network, on an image that nothing has to resize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from effdense.tasks.detection.export import export_detector
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.segmentation.export import export_segmenter
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.specs import ARCHITECTURES

DETECTORS = {"d0": {}, "lite0": {}, "lite0 with plain sums": {"fusion": "sum"}, "v2_s": {}, "edge_s": {}}
SEGMENTERS = [(arch, "b0") for arch in ARCHITECTURES] + [("unet", "lite0"), ("fpn", "v2_s")]


def photo(side: int) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), np.uint8)


def run(path: Path, image: np.ndarray[Any, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": image[None]}))


def shake_norms(model: nn.Module) -> None:
    """Give every BatchNorm statistics of its own, or a fold that is wrong would not show."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_finds_the_same_boxes_from_its_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = name.split()[0]
    backbone = {"v2_s": "v2_s", "edge_s": "edge_s"}.get(arch)
    model = create_efficientdet("auto" if backbone else arch, 5, backbone=backbone, **DETECTORS[name])
    shake_norms(model)
    side = 128
    image = photo(side)
    with torch.no_grad():
        spread = model.eval()(torch.from_numpy(image).permute(2, 0, 1)[None])[0].std()
        model.head.classes.predict.pointwise.weight.mul_(2 / spread)  # type: ignore[union-attr, operator]
    detector = Detector(model, tuple("abcde"), image_size=side)
    export_detector(detector, tmp_path / "x.onnx")
    wanted = detector.predict(image)
    _, scores, labels, counts = run(tmp_path / "x.onnx", image)
    assert counts[0] == len(wanted.scores) > 50
    np.testing.assert_allclose(scores[0, : counts[0]], wanted.scores, atol=2e-4)
    assert (labels[0, : counts[0]] == wanted.labels).mean() > 0.97  # neighbours in rank may change places


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "backbone"), SEGMENTERS)
def test_every_segmenter_gives_the_same_label_map_from_its_file(arch: str, backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_segmentation_model(arch, 5, backbone=backbone)
    shake_norms(model)
    side = 256
    segmenter = Segmenter(model, tuple("abcde"), image_size=side)
    export_segmenter(segmenter, tmp_path / "x.onnx")
    image = photo(side)
    (found,) = run(tmp_path / "x.onnx", image)
    assert (found[0] != segmenter.predict(image).mask).mean() < 2e-3
