"""What OpenVINO computes at the borders alone is what enlarging every class's logits gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from small_export import Exported, photo

from effdense.runtime import openvino_labels
from effdense.runtime.openvino_labels import Labelling
from effdense.runtime.openvino_session import OpenVino, openvino_core
from effdense.runtime.session import open_session

SIDE = 32
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}

FITTINGS = [((48, 64), (24, 32)), ((61, 47), (32, 25)), ((32, 32), (32, 32)), ((20, 16), (32, 26)), ((300, 7), (32, 1))]


def logits_of(classes: int, coarse: int) -> torch.Tensor:
    """Random logits (1, K, S, S), in patches the larger the coarser."""
    values = torch.randn(1, classes, SIDE // coarse, SIDE // coarse, generator=torch.Generator().manual_seed(classes))
    return F.interpolate(values, size=(SIDE, SIDE), mode="bilinear")


@pytest.mark.parametrize("coarse", [1, 8], ids=["borders everywhere", "few borders"])
@pytest.mark.parametrize("classes", [1, 2, 21, 150])
@pytest.mark.parametrize(("size_hw", "fitted_hw"), FITTINGS)
def test_labels_are_those_of_the_enlarged_logits(
    size_hw: tuple[int, int], fitted_hw: tuple[int, int], classes: int, coarse: int
) -> None:
    logits = logits_of(classes, coarse)
    labelling = Labelling(openvino_core(), SETTINGS, classes, SIDE)
    found = labelling.label_map(logits.numpy(), np.array(size_hw), np.array(fitted_hw))
    content = logits[..., : fitted_hw[0], : fitted_hw[1]]
    enlarged = F.interpolate(content, size=size_hw, mode="bilinear")
    greatest = enlarged.amax(1)
    chosen = enlarged.gather(1, torch.from_numpy(found).long()[None])[0]
    assert found.shape == (1, *size_hw)
    torch.testing.assert_close(chosen, greatest, rtol=0, atol=1e-5)
    assert (found == enlarged.argmax(1).numpy()).mean() > 0.999


@pytest.mark.parametrize("size_hw", [(32, 32), (32, 20), (9, 32), (1, 1)])
def test_without_enlarging_labels_are_those_of_the_logits_and_the_callers_own(size_hw: tuple[int, int]) -> None:
    labelling = Labelling(openvino_core(), SETTINGS, 21, SIDE)
    logits = logits_of(21, 1)
    labelling._enlarging = None
    found = labelling.label_map(logits.numpy(), np.array(size_hw), np.array(size_hw))
    expected = logits.argmax(1)[:, : size_hw[0], : size_hw[1]].numpy()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    labelling.label_map(-logits.numpy(), np.array(size_hw), np.array(size_hw))
    np.testing.assert_array_equal(found, expected)


def test_labels_are_the_same_whatever_the_number_of_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(5, 4).numpy()
    labelling = Labelling(openvino_core(), SETTINGS, 5, SIDE)
    sizes = np.array([61, 47]), np.array([32, 25])
    whole = labelling.label_map(logits, *sizes)
    for band in (1, 5 * 47 * 10, 5 * 47 * 60):
        monkeypatch.setattr(openvino_labels, "_BAND", band)
        np.testing.assert_array_equal(labelling.label_map(logits, *sizes), whole)


def test_a_band_is_the_lower_the_more_classes_there_are() -> None:
    classes, size_hw = 150, (300, 400)
    labelling = Labelling(openvino_core(), SETTINGS, classes, SIDE)
    enlarging, rows_seen = labelling._enlarging, []

    class Watched:
        def infer(self, given: Any, **how: Any) -> Any:
            rows_seen.append(given[-1].tolist())
            return enlarging.infer(given, **how)

    labelling._enlarging = Watched()
    labelling.label_map(logits_of(classes, 8).numpy(), np.array(size_hw), np.array([24, 32]))
    assert rows_seen[0][0] == 0
    assert rows_seen[-1][1] == size_hw[0]
    assert all((stop - first) * size_hw[1] * classes <= openvino_labels._BAND for first, stop in rows_seen)


def label_map_of(
    path: Path, runtime: Any, size_hw: tuple[int, int] = (50, 70), original_hw: Any = None
) -> tuple[np.ndarray, bool]:
    """Return the label map of a photo, and whether it is made at the borders alone."""
    session = open_session(path, runtime=runtime, threads=1)
    found = session.run(photo(0, size_hw)[None], original_hw=original_hw)["label_map"]
    return found, isinstance(session, OpenVino) and session._labelling is not None


def other_classes(model: onnx.ModelProto) -> None:
    (cast,) = [node for node in model.graph.node if node.output[0] == "label_map"]
    cast.output[0] = "before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(7), "shift"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "shift"], ["label_map"]))


def other_attribute(name: str, value: bytes) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (resize,) = [
            node for node in model.graph.node if node.op_type == "Resize" and node.output[0].endswith("/enlarged")
        ]
        (attribute,) = [one for one in resize.attribute if one.name == name]
        attribute.s = value

    return change


def other_constant(model: onnx.ModelProto) -> None:
    (corner,) = [one for one in model.graph.initializer if one.name.endswith("corner")]
    corner.CopyFrom(onnx.numpy_helper.from_array(np.array([8, 8]), corner.name))


def other_wiring(model: onnx.ModelProto) -> None:
    (both,) = [node for node in model.graph.node if node.op_type == "Concat" and node.output[0].endswith("/best")]
    both.input[:] = both.input[::-1]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(other_classes, id="operation"),
        pytest.param(other_attribute("coordinate_transformation_mode", b"align_corners"), id="align-corners"),
        pytest.param(other_attribute("mode", b"nearest"), id="nearest"),
        pytest.param(other_constant, id="constant"),
        pytest.param(other_wiring, id="wiring"),
    ],
)
@pytest.mark.parametrize("task", ["segmentation", "multitask"])
def test_a_file_that_labels_by_another_rule_keeps_it(
    task: str, change: Callable[[onnx.ModelProto], None], exported: Exported, tmp_path: Path
) -> None:
    _, is_fast = label_map_of(exported.files[task], "openvino")
    model = onnx.load(exported.files[task])
    change(model)
    onnx.save(model, tmp_path / "other.onnx")
    found, is_fast_too = label_map_of(tmp_path / "other.onnx", "openvino")
    assert (is_fast, is_fast_too) == (True, False)
    by_the_file, _ = label_map_of(tmp_path / "other.onnx", "onnxruntime")
    assert found.shape == by_the_file.shape
    assert np.mean(found == by_the_file) > 0.999


@pytest.mark.parametrize("original_hw", [(0, 0), (0, 90), (80, 0), (80, 90)])
def test_a_size_of_nought_is_that_of_the_image_as_in_the_file(original_hw: tuple[int, int], exported: Exported) -> None:
    # An image that fits the square already, as the two runtimes resize to within a grey level of each other.
    path, given = exported.files["segmentation"], ((64, 60), np.array(original_hw))
    found, is_fast = label_map_of(path, "openvino", *given)
    by_the_file, _ = label_map_of(path, "onnxruntime", *given)
    assert is_fast
    assert found.shape == by_the_file.shape == (1, original_hw[0] or 64, original_hw[1] or 60)
    assert np.mean(found == by_the_file) > 0.999
