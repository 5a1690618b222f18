"""The parts of an exported file that are written in ONNX's own operations, against the code that they stand for."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from effdense.runtime.export import joined
from effdense.runtime.onnx_boxes import contents
from effdense.runtime.onnx_pieces import fitting, labelling
from effdense.tasks.detection.export import detecting
from effdense.tasks.detection.postprocess import postprocess
from effdense.tasks.detection.predict import Selection
from effdense.tasks.segmentation.label_maps import WholeRows, segmentation_of
from effdense.transforms import eval_transform
from effdense.types import Sample

SIDE = 64
FILL = (124, 116, 104)

SIZES = {
    "the square itself": (64, 64),
    "as high, narrower": (64, 40),
    "as wide, lower": (1, 64),
    "half": (128, 128),
    "half, and odd": (128, 101),
    "a quarter": (256, 200),
    "an eighth of a wide one": (100, 512),
    "a little smaller": (70, 60),
    "just above the limit of area averaging": (91, 50),
    "just below it": (92, 50),
    "larger": (31, 20),
    "one pixel": (1, 1),
    "a line": (1, 300),
    "a column": (300, 1),
    "a ratio whose product is cut below the side": (49, 49),
}


def photo(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (3, 3), 0), np.uint8).reshape(*size_hw, 3)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def fit() -> onnxruntime.InferenceSession:
    return session(fitting(SIDE, FILL))


@pytest.mark.parametrize("size_hw", SIZES.values(), ids=SIZES.keys())
def test_images_are_fitted_as_evaluation_does_to_one_grey_level(
    fit: onnxruntime.InferenceSession, size_hw: tuple[int, int]
) -> None:
    image = photo(size_hw)
    sample = Sample(image=image, original_size_hw=size_hw, resized_size_hw=size_hw)
    wanted = eval_transform((SIDE, SIDE), FILL)(sample, np.random.default_rng(0))
    pixels, given_hw, fitted_hw = fit.run(None, {"images": image[None]})
    difference = np.abs(pixels[0] - wanted.image.transpose(2, 0, 1).astype(np.float32))
    assert tuple(given_hw) == size_hw
    assert tuple(fitted_hw) == wanted.resized_size_hw
    assert difference.max() <= 1
    # OpenCV mixes four pixels with weights of eleven bits, which rounds otherwise here and there.
    shrinks = min(new / old for new, old in zip(wanted.resized_size_hw, size_hw, strict=True)) < 0.7
    assert (difference > 0).mean() < (1e-3 if shrinks else 0.2)


def test_an_image_that_fits_already_is_left_as_it_is(fit: onnxruntime.InferenceSession) -> None:
    image = photo((SIDE, SIDE))
    pixels, _, _ = fit.run(None, {"images": image[None]})
    np.testing.assert_array_equal(pixels[0], image.transpose(2, 0, 1))


@pytest.mark.parametrize("size_hw", [(64, 64), (100, 80), (20, 30)])
def test_a_batch_is_fitted_as_its_images_alone(fit: onnxruntime.InferenceSession, size_hw: tuple[int, int]) -> None:
    images = np.stack([photo(size_hw, seed) for seed in range(3)])
    together = fit.run(None, {"images": images})[0]
    for row, image in enumerate(images):
        np.testing.assert_array_equal(together[row], fit.run(None, {"images": image[None]})[0][0])


CONTENTS: dict[str, tuple[Any, Any, Any]] = {
    "not said: the whole image": (None, [[32, 64]] * 2, [[50, 100]] * 2),
    "0, 0: the whole image": ([[0, 0], [0, 0]], [[32, 64]] * 2, [[50, 100]] * 2),
    "said of each": ([[50, 100], [20, 10]], [[32, 64], [12, 6]], [[50, 100], [20, 10]]),
    "said of all at once": ([[20, 10]], [[12, 6]] * 2, [[20, 10]] * 2),
    "one pixel is one pixel still": ([[1, 1]], [[1, 1]] * 2, [[1, 1]] * 2),
}


@pytest.mark.parametrize(("given", "limits", "originals"), CONTENTS.values(), ids=CONTENTS.keys())
def test_the_contents_of_padded_images_are_scaled_with_them(given: Any, limits: Any, originals: Any) -> None:
    feeds = {"images": np.zeros((2, 50, 100, 3), np.uint8)}
    feeds |= {"size_hw": np.array([50, 100]), "fitted_hw": np.array([32, 64])}
    found = session(contents()).run(None, feeds if given is None else feeds | {"contents_hw": np.array(given)})
    np.testing.assert_array_equal(found[0], limits)
    np.testing.assert_array_equal(found[1], originals)


def raw_outputs(classes: int, anchors: int, spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class logits and box codes of two images, and anchors that overlap."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, anchors, classes, generator=generator) * spread - 4
    codes = torch.randn(2, anchors, 4, generator=generator) * 0.2
    centres = torch.rand(anchors, 2, generator=generator) * 80 - 8
    sides = 6 + 30 * torch.rand(anchors, 2, generator=generator)
    return logits, codes, torch.cat((centres - sides / 2, centres + sides / 2), 1)


SUPPRESSIONS = {
    "many classes": {"classes": 20, "anchors": 300, "most": 100, "threshold": 0.01},
    "one class": {"classes": 1, "anchors": 300, "most": 100, "threshold": 0.01},
    "fewer wanted than found": {"classes": 5, "anchors": 300, "most": 7, "threshold": 0.01},
    "more wanted than there are pairs": {"classes": 2, "anchors": 9, "most": 50, "threshold": 0.001},
    "nothing scores enough": {"classes": 3, "anchors": 50, "most": 10, "threshold": 0.999},
}


@pytest.mark.parametrize("case", SUPPRESSIONS.values(), ids=SUPPRESSIONS.keys())
def test_suppression_keeps_what_postprocess_keeps(case: dict[str, Any]) -> None:
    logits, codes, anchors = raw_outputs(case["classes"], case["anchors"], 2.0)
    limits = torch.tensor([[64.0, 64.0], [40.0, 64.0]])
    originals = torch.tensor([[128.0, 128.0], [100.0, 160.0]])
    wanted = postprocess(
        logits,
        codes,
        anchors,
        image_size_hw=(64, 64),
        original_sizes_hw=originals.long(),
        resized_sizes_hw=limits.long(),
        score_threshold=case["threshold"],
        max_detections=case["most"],
    )
    selection = Selection(score_threshold=case["threshold"], nms_iou=0.5, max_detections=case["most"])
    piece = joined(detecting(anchors, case["classes"], selection))
    feeds = {"class_logits": logits, "box_codes": codes, "limits": limits, "originals": originals}
    names = ["boxes", "scores", "labels", "counts"]
    found = session(piece).run(names, {name: value.numpy() for name, value in feeds.items()})
    np.testing.assert_array_equal(found[3], wanted.counts)
    np.testing.assert_allclose(found[1], wanted.scores, atol=1e-6)
    np.testing.assert_array_equal(found[2], wanted.labels)
    np.testing.assert_allclose(found[0], wanted.boxes_xyxy, atol=1e-3)


LABELLED = {
    "the square itself": ((64, 64), (64, 64)),
    "a fitted image": ((64, 40), (64, 40)),
    "a larger one": ((64, 40), (160, 100)),
    "a smaller one": ((64, 40), (32, 20)),
    "one pixel": ((64, 64), (1, 1)),
}


def test_images_that_are_said_to_be_fitted_are_padded_alone() -> None:
    image, small = photo((40, 30)), session(fitting(SIDE, FILL, may_be_done=True))
    pixels, size_hw, fitted_hw = small.run(None, {"images": image[None], "original_hw": np.array([400, 300])})
    assert size_hw.tolist() == fitted_hw.tolist() == [40, 30]
    wanted = np.broadcast_to(np.array(FILL), (SIDE, SIDE, 3)).copy()
    wanted[:40, :30] = image
    np.testing.assert_array_equal(pixels[0], wanted.transpose(2, 0, 1))
    for given in ({}, {"original_hw": np.zeros(2, np.int64)}):
        assert small.run(None, {"images": image[None], **given})[2].tolist() == [64, 48]


@pytest.mark.parametrize(("fitted_hw", "size_hw"), LABELLED.values(), ids=LABELLED.keys())
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("said", [False, True], ids=["of its image's size", "of the size that is said"])
def test_label_maps_are_those_of_the_segmenter(
    fitted_hw: tuple[int, int], size_hw: tuple[int, int], batch: int, said: bool
) -> None:
    logits = torch.randn(batch, 5, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    sizes = {"size_hw": fitted_hw, "original_hw": size_hw} if said else {"size_hw": size_hw}
    feeds = {"mask_logits": logits.numpy(), "fitted_hw": np.array(fitted_hw)}
    feeds |= {name: np.array(size) for name, size in sizes.items()}
    (found,) = session(labelling(5, SIDE)).run(None, feeds)
    assert found.shape == (batch, *size_hw)
    for row in range(batch):
        rows = WholeRows(logits[row, :, : fitted_hw[0], : fitted_hw[1]])
        wanted = segmentation_of([rows], size_hw, tuple("abcde")).mask
        assert (found[row] != wanted).mean() < 1e-3  # where two classes are equal to rounding


def test_pieces_are_joined_by_the_names_of_their_ends_alone() -> None:
    """Two pieces whose inner values have the same names do not disturb each other."""
    first = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> one (float[n] x) => (float[n] y) { t = Neg (x) y = Exp (t) }'
    )
    second = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> two (float[n] y, float[n] x, float[n] w) => (float[n] z) '
        "{ t = Add (y, x) u = Add (t, w) z = Abs (u) }"
    )
    run = session(joined((first, second)))
    x, w = np.array([1.0, -2.0], np.float32), np.array([0.5, -20.0], np.float32)
    found = dict(zip([one.name for one in run.get_outputs()], run.run(None, {"x": x, "w": w}), strict=True))
    np.testing.assert_allclose(found["y"], np.exp(-x))
    np.testing.assert_allclose(found["z"], np.abs(np.exp(-x) + x + w), rtol=1e-6)
