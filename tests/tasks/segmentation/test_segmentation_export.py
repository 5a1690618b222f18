"""A segmenter as an ONNX file, run by ONNX Runtime and by OpenVINO, against the segmenter itself."""

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

from effdense.errors import UserError
from effdense.runtime.openvino_session import OpenVino
from effdense.runtime.session import Runtime, open_session
from effdense.runtime.stages import cut
from effdense.tasks.segmentation.export import OUTPUTS, export_segmenter
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter

SIDE = 96
CLASSES = ("sky", "wall", "door", "tree")


def make_segmenter(inference: Inference | None = None) -> Segmenter:
    torch.manual_seed(0)
    model = create_segmentation_model("unet", len(CLASSES), backbone="lite0")
    return Segmenter(model, CLASSES, image_size=SIDE, inference=inference)


def photo(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), np.uint8).reshape(*size_hw, 3)


def opened(content: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Path]:
    segmenter = make_segmenter()
    path = tmp_path_factory.mktemp("export") / "segmenter.onnx"
    export_segmenter(segmenter, path)
    return segmenter, path


SIZES = {"the square itself": (96, 96), "narrower": (96, 64), "half": (192, 150), "smaller": (24, 48), "a dot": (1, 1)}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size_hw", SIZES.values(), ids=SIZES.keys())
def test_the_file_labels_the_pixels_of_the_image_as_the_segmenter_does(
    exported: tuple[Segmenter, Path], size_hw: tuple[int, int], runtime: Runtime
) -> None:
    segmenter, path = exported
    image = photo(size_hw)
    wanted = segmenter.predict(image).mask
    found = open_session(path, runtime=runtime, threads=1).run(image[None])["label_map"]
    assert found.dtype == np.uint8
    assert found.shape == (1, *size_hw)
    # Enlarged images differ by a grey level here and there, and classes of random weights lie close together.
    assert (found[0] != wanted).mean() <= (0.05 if max(size_hw) < SIDE else 1e-3)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_open_and_each_image_as_alone(
    exported: tuple[Segmenter, Path], batch: int, runtime: Runtime
) -> None:
    segmenter, path = exported
    images = [photo((96, 80), seed) for seed in range(batch)]
    found = open_session(path, runtime=runtime, threads=1).run(np.stack(images))["label_map"]
    for row, image in enumerate(images):
        assert (found[row] != segmenter.predict(image).mask).mean() <= 1e-3


def test_openvino_knows_how_the_file_pads_and_labels(exported: tuple[Segmenter, Path]) -> None:
    session = open_session(exported[1], runtime="openvino", threads=1)
    assert isinstance(session, OpenVino)
    assert len(session._stages) == 2
    assert session._padding is not None
    assert session._labelling is not None


def test_the_file_says_what_it_is_and_can_be_read_by_anyone(exported: tuple[Segmenter, Path]) -> None:
    _, path = exported
    session = opened(path)
    said = session.get_modelmeta().custom_metadata_map
    assert said["task"] == "segmentation"
    assert json.loads(said["class_names"]) == list(CLASSES)
    assert json.loads(said["effdense"])["export"]["image_size"] == SIDE
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert tuple(one.name for one in session.get_outputs()) == OUTPUTS


@pytest.mark.parametrize("size_hw", [(96, 96), (60, 100)])
def test_the_three_stages_in_turn_give_what_the_file_gives(
    exported: tuple[Segmenter, Path], size_hw: tuple[int, int]
) -> None:
    _, path = exported
    images = np.stack([photo(size_hw), photo(size_hw, 1)])
    known: dict[str, Any] = {"images": images}
    for stage in cut(onnx.load(path)):
        session = opened(stage.SerializeToString())
        names = [one.name for one in session.get_outputs()]
        given = {one.name: known[one.name] for one in session.get_inputs()}
        known |= dict(zip(names, session.run(names, given), strict=True))
    np.testing.assert_array_equal(known["label_map"], opened(path).run(None, {"images": images})[0])


def test_a_model_without_a_network_of_ours_is_not_cut() -> None:
    foreign = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> other (float[n] x) => (float[n] y) { y = Neg (x) }'
    )
    with pytest.raises(ValueError, match="no network stands out"):
        cut(foreign)


REFUSED = {
    "a window": (Inference(window=64), "float32", "through a window of 64 pixels"),
    "several views": (Inference(tta=("hflip",)), "float32", "averages 2 views"),
    "an unknown precision": (Inference(), "int8", "precision is 'int8', expected float32 or bfloat16"),
}


@pytest.mark.parametrize(("inference", "precision", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    inference: Inference, precision: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        export_segmenter(make_segmenter(inference), tmp_path / "x.onnx", precision=precision)
    assert not list(tmp_path.iterdir())
