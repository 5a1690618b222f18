"""A detector as an ONNX file, run by ONNX Runtime alone, against the detector itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from effdense.errors import UserError
from effdense.runtime.openvino_session import OpenVino
from effdense.runtime.session import open_session
from effdense.tasks.detection.export import OUTPUTS, export_detector
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector, Selection
from effdense.transforms import mean_fill
from effdense.types import Detections

SIDE = 96
CLASSES = ("disc", "square", "star")


def make_detector(selection: Selection | None = None) -> Detector:
    """A detector whose scores are spread as a trained one's, and whose BatchNorms do something."""
    torch.manual_seed(0)
    model = create_efficientdet("lite0", len(CLASSES))
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    last = model.head.classes.predict.pointwise
    with torch.no_grad():
        spread = model.eval()(torch.from_numpy(photo((SIDE, SIDE))).permute(2, 0, 1)[None])[0].std()
        last.weight.mul_(2 / spread)
    return Detector(model, CLASSES, image_size=SIDE, category_ids=(3, 5, 9), selection=selection)


def photo(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), np.uint8).reshape(*size_hw, 3)


def opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_same(found: list[Any], row: int, wanted: Detections) -> None:
    count = int(found[3][row])
    assert count == len(wanted.scores)
    np.testing.assert_allclose(found[1][row, :count], wanted.scores, atol=1e-4)
    # Scores that float32 cannot tell apart may change places: each such run is compared in the order of its labels.
    run = np.cumsum(np.diff(wanted.scores, prepend=wanted.scores[:1]) < -1e-5)
    mine, theirs = (np.lexsort((labels, run)) for labels in (found[2][row, :count], wanted.labels))
    np.testing.assert_array_equal(found[2][row, mine], wanted.labels[theirs])
    np.testing.assert_allclose(found[0][row, mine], wanted.boxes_xyxy[theirs], atol=0.02)
    assert (found[2][row, count:] == -1).all()
    assert (found[0][row, count:] == 0).all()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    detector = make_detector()
    path = tmp_path_factory.mktemp("export") / "detector.onnx"
    export_detector(detector, path)
    return detector, path


SIZES = {"the square itself": (96, 96), "narrower": (96, 64), "half": (192, 150), "a third, wide": (150, 288)}


@pytest.mark.parametrize("size_hw", SIZES.values(), ids=SIZES.keys())
def test_the_file_finds_what_the_detector_finds_in_pixels_of_the_image(
    exported: tuple[Detector, Path], size_hw: tuple[int, int]
) -> None:
    detector, path = exported
    image = photo(size_hw)
    wanted = detector.predict(image)
    assert len(wanted.scores) > 20
    assert_same(opened(path).run(None, {"images": image[None]}), 0, wanted)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_open_and_each_image_as_alone(exported: tuple[Detector, Path], batch: int) -> None:
    detector, path = exported
    images = [photo((96, 80), seed) for seed in range(batch)]
    found = opened(path).run(None, {"images": np.stack(images)})
    for row, image in enumerate(images):
        assert_same(found, row, detector.predict(image))


def test_openvino_finds_the_same_and_knows_how_the_file_pads(exported: tuple[Detector, Path]) -> None:
    detector, path = exported
    session = open_session(path, runtime="openvino", threads=1)
    assert isinstance(session, OpenVino)
    assert session._padding is not None
    for size_hw in SIZES.values():
        found = session.run(photo(size_hw)[None])
        assert_same([found[name] for name in OUTPUTS], 0, detector.predict(photo(size_hw)))


def test_padded_images_of_several_sizes_go_in_together_with_their_contents(exported: tuple[Detector, Path]) -> None:
    detector, path = exported
    images = [photo((96, 60)), photo((40, 96), 1)]
    contents = np.array([image.shape[:2] for image in images], np.int64)
    squares = np.full((2, SIDE, SIDE, 3), mean_fill(detector.model.backbone.mean), np.uint8)
    for square, image in zip(squares, images, strict=True):
        square[: image.shape[0], : image.shape[1]] = image
    found = opened(path).run(None, {"images": squares, "contents_hw": contents})
    for row, image in enumerate(images):
        assert_same(found, row, detector.predict(image))


def test_the_file_says_what_it_is_and_can_be_read_by_anyone(exported: tuple[Detector, Path]) -> None:
    _, path = exported
    session = opened(path)
    said = session.get_modelmeta().custom_metadata_map
    assert said["task"] == "detection"
    assert json.loads(said["class_names"]) == list(CLASSES)
    assert json.loads(said["preprocessing"])["image_size"] == SIDE
    header = json.loads(said["effdense"])
    assert header["category_ids"] == [3, 5, 9]
    assert header["export"]["precision"] == "float32"
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert tuple(one.name for one in session.get_outputs()) == OUTPUTS
    assert not any("/" in prop.value for node in onnx.load(path).graph.node for prop in node.metadata_props)


@pytest.mark.slow
def test_the_selection_of_the_detector_goes_into_the_file(tmp_path: Path) -> None:
    detector = make_detector(Selection(score_threshold=0.05, nms_iou=0.3, max_detections=7))
    path = tmp_path / "few.onnx"
    export_detector(detector, path, precision="bfloat16")
    image = photo((96, 96))
    wanted = detector.predict(image)
    assert len(wanted.scores) == 7
    session = opened(path)
    assert_same(session.run(None, {"images": image[None]}), 0, wanted)
    assert json.loads(session.get_modelmeta().custom_metadata_map["effdense"])["export"]["precision"] == "bfloat16"


REFUSED = {
    "soft NMS": (Selection(nms="soft"), "float32", "export it with --nms hard"),
    "an unknown precision": (Selection(), "bfloat", "precision is 'bfloat', expected float32 or bfloat16"),
}


@pytest.mark.parametrize(("selection", "precision", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    selection: Selection, precision: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        export_detector(make_detector(selection), tmp_path / "x.onnx", precision=precision)
    assert not list(tmp_path.iterdir())
