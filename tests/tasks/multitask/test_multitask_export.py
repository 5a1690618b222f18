"""A model of both tasks as an ONNX file, run by ONNX Runtime alone, against the model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from effdense.errors import UserError
from effdense.runtime.openvino_session import OpenVino
from effdense.runtime.session import open_session
from effdense.tasks.multitask.export import OUTPUTS, export_multitask
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask

SIDE = 96
CLASSES, PIXEL_CLASSES = ("disc", "square"), ("sky", "wall", "door")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Multitask, Path]:
    torch.manual_seed(0)
    model = create_multitask(
        "lite0",
        len(CLASSES),
        len(PIXEL_CLASSES),
        arch="bifpn",
        class_names=CLASSES,
        seg_class_names=PIXEL_CLASSES,
        image_size=SIDE,
    ).eval()
    with torch.no_grad():
        spread = model(torch.from_numpy(photo((SIDE, SIDE))).permute(2, 0, 1)[None])[0].std()
        model.detection["head"].classes.predict.pointwise.weight.mul_(2 / spread)  # type: ignore[union-attr, operator]
    multitask = Multitask(model)
    path = tmp_path_factory.mktemp("export") / "multitask.onnx"
    export_multitask(multitask, path)
    return multitask, path


def photo(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), np.uint8).reshape(*size_hw, 3)


def opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


SIZES = {"the square itself": (96, 96), "narrower": (96, 64), "half": (192, 150)}


def test_openvino_knows_how_the_file_pads_and_labels(exported: tuple[Multitask, Path]) -> None:
    session = open_session(exported[1], runtime="openvino", threads=1)
    assert isinstance(session, OpenVino)
    assert session._padding is not None
    assert session._labelling is not None


@pytest.mark.parametrize("size_hw", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("batch", [1, 3])
def test_the_file_gives_boxes_and_label_maps_of_the_model(
    exported: tuple[Multitask, Path], size_hw: tuple[int, int], batch: int
) -> None:
    multitask, path = exported
    images = [photo(size_hw, seed) for seed in range(batch)]
    session = opened(path)
    assert tuple(one.name for one in session.get_outputs()) == OUTPUTS
    boxes, scores, labels, counts, label_map = session.run(None, {"images": np.stack(images)})
    for row, image in enumerate(images):
        wanted = multitask.predict(image)
        count = int(counts[row])
        assert count == len(wanted.detections.scores) > 10
        np.testing.assert_allclose(scores[row, :count], wanted.detections.scores, atol=1e-4)
        np.testing.assert_array_equal(labels[row, :count], wanted.detections.labels)
        np.testing.assert_allclose(boxes[row, :count], wanted.detections.boxes_xyxy, atol=0.02)
        assert (label_map[row] != wanted.segmentation.mask).mean() <= 1e-3


def test_the_header_holds_both_parts(exported: tuple[Multitask, Path]) -> None:
    said = opened(exported[1]).get_modelmeta().custom_metadata_map
    assert said["task"] == "multitask"
    assert json.loads(said["class_names"]) == list(CLASSES)
    assert json.loads(said["seg_class_names"]) == list(PIXEL_CLASSES)
    assert json.loads(said["effdense"])["export"]["image_size"] == SIDE


def test_soft_nms_is_refused(exported: tuple[Multitask, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="export it with --nms hard"):
        export_multitask(exported[0].with_selection(nms="soft"), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
