"""RandAugment: each operation does what its name says, as strongly as its magnitude says, and takes the boxes along."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance, ImageOps

from effdense.errors import UserError
from effdense.transforms import RANDAUGMENT_OPERATIONS, RandAugment

FILL = (124, 116, 104)
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
ALWAYS = ("autocontrast", "equalize")


def one(name: str, magnitude: float = 5.0) -> RandAugment:
    return RandAugment(1, magnitude, FILL, operations=[name])


def smooth_image() -> npt.NDArray[np.uint8]:
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack([rows * 3 + 40, columns * 2 + 60, rows + columns + 20], axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", [name for name in RANDAUGMENT_OPERATIONS if name not in ALWAYS])
def test_magnitude_zero_changes_nothing(sample_of: Any, name: str) -> None:
    sample = sample_of((60, 80), [[3, 4, 20, 30]], drawn=True)
    assert one(name, 0.0)(sample, np.random.default_rng(0)) is sample


@pytest.mark.parametrize("name", RANDAUGMENT_OPERATIONS)
@pytest.mark.parametrize("magnitude", [2.0, 5.0, 10.0])
def test_every_operation_changes_a_picture_and_keeps_the_sample_sound(
    sample_of: Any, name: str, magnitude: float
) -> None:
    sample = sample_of((48, 64), [[20, 15, 40, 30], [-0.5, 0, 9, 9], [5, 5, 5, 9]])
    sample = sample.replace(image=sample.image // 8 * 7 + 20, mask=np.zeros((48, 64), np.uint8))
    before = sample.image.copy()
    for seed in range(4):
        result = one(name, magnitude)(sample, np.random.default_rng(seed))
        np.testing.assert_array_equal(sample.image, before)
        assert result.image.dtype == np.uint8
        assert result.image.shape == before.shape
        assert result.image.flags.c_contiguous
        assert not (result.image == before).all()
        assert result.labels.dtype == np.int64
        assert 0 in result.labels
        if name not in GEOMETRIC:
            np.testing.assert_array_equal(result.boxes_xyxy, sample.boxes_xyxy)
            assert result.mask is sample.mask


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_the_bounds_of_what_they_enclosed(sample_of: Any, name: str, seed: int) -> None:
    sample = sample_of((120, 160), [[60, 40, 100, 80]], drawn=True)
    result = one(name, 4.0)(sample, np.random.default_rng(seed))
    assert result.mask is not None
    rows, columns = np.nonzero(result.mask == 1)
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(result.boxes_xyxy[0], extent, atol=1.5)
    assert not np.allclose(result.boxes_xyxy[0], sample.boxes_xyxy[0], atol=2)
    brought_in = (result.image == FILL).all(axis=2)
    assert brought_in.any()
    assert (result.mask[brought_in] == 255).all()


@pytest.mark.parametrize("name", [*GEOMETRIC, "brightness", "contrast", "color", "sharpness"])
def test_both_signs_occur(sample_of: Any, name: str) -> None:
    sample = sample_of((48, 64)).replace(image=smooth_image())
    results = {one(name)(sample, np.random.default_rng(seed)).image.tobytes() for seed in range(12)}
    assert len(results) == 2


PILLOW = [
    pytest.param("posterize", 5.0, lambda image: ImageOps.posterize(image, 6), id="posterize"),
    pytest.param("solarize", 4.0, lambda image: ImageOps.solarize(image, 153), id="solarize"),
    pytest.param("autocontrast", 5.0, ImageOps.autocontrast, id="autocontrast"),
    pytest.param("color", 10.0, lambda image: ImageEnhance.Color(image).enhance(1.9), id="more colour"),
    pytest.param("color", 10.0, lambda image: ImageEnhance.Color(image).enhance(0.1), id="less colour"),
    pytest.param("contrast", 10.0, lambda image: ImageEnhance.Contrast(image).enhance(1.9), id="more contrast"),
    pytest.param("brightness", 10.0, lambda image: ImageEnhance.Brightness(image).enhance(0.1), id="darker"),
    pytest.param("sharpness", 10.0, lambda image: ImageEnhance.Sharpness(image).enhance(1.9), id="sharper"),
    pytest.param("sharpness", 10.0, lambda image: ImageEnhance.Sharpness(image).enhance(0.1), id="softer"),
]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "magnitude", "pillow"), PILLOW)
def test_operations_are_those_of_the_paper_as_pillow_has_them(
    sample_of: Any, name: str, magnitude: float, pillow: Any
) -> None:
    sample = sample_of((40, 50))
    operation = one(name, magnitude)
    wanted = np.array(pillow(Image.fromarray(sample.image)), np.int64)[1:-1, 1:-1]
    results = [operation(sample, np.random.default_rng(seed)).image[1:-1, 1:-1] for seed in range(8)]
    assert min(int(np.abs(result - wanted).max()) for result in results) <= 2


def test_autocontrast_leaves_an_image_that_spans_everything(sample_of: Any) -> None:
    image = np.array([[[0, 0, 7], [100, 30, 7], [255, 255, 7]]], np.uint8)
    result = one("autocontrast")(sample_of().replace(image=image), np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, image)


def test_equalize_spreads_a_dull_image(sample_of: Any) -> None:
    dull = (sample_of((60, 80)).image // 8 + 100).astype(np.uint8)
    result = one("equalize")(sample_of().replace(image=dull), np.random.default_rng(0))
    assert result.image.min() == 0
    assert result.image.max() == 255


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 30), (30, 1)], ids=str)
@pytest.mark.parametrize("name", RANDAUGMENT_OPERATIONS)
def test_tiny_images_pass(sample_of: Any, name: str, size_hw: tuple[int, int]) -> None:
    for magnitude in (3.0, 10.0):
        result = one(name, magnitude)(sample_of(size_hw, [[0, 0, 1, 1]], drawn=True), np.random.default_rng(0))
        assert result.image.shape == (*size_hw, 3)


def test_all_operations_are_drawn_and_the_generator_alone_decides(sample_of: Any) -> None:
    sample = sample_of((40, 50), [[5, 5, 30, 30]])
    augment = RandAugment(1, 6.0, FILL)
    first = [augment(sample, np.random.default_rng(seed)).image.tobytes() for seed in range(300)]
    assert len(set(first)) == 2 * 9 + 4
    again = [pickle.loads(pickle.dumps(augment))(sample, np.random.default_rng(9)).image.tobytes() for _ in range(2)]
    assert again == [first[9]] * 2


def test_the_number_of_operations_is_kept(sample_of: Any) -> None:
    sample = sample_of((40, 50))
    assert RandAugment(0, 5.0, FILL)(sample, np.random.default_rng(0)) is sample
    twice = RandAugment(2, 10.0, FILL, operations=["solarize"])(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(twice.image, sample.image)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: RandAugment(-1, 5, FILL), "whole number", id="count below zero"),
        pytest.param(lambda: RandAugment(1, 10.5, FILL), "between 0 and 10", id="magnitude too large"),
        pytest.param(lambda: RandAugment(1, float("nan"), FILL), "between 0 and 10", id="magnitude not a number"),
        pytest.param(lambda: RandAugment(1, 5, (1, 2)), "fill", id="fill of two"),  # type: ignore[arg-type]
        pytest.param(lambda: RandAugment(1, 5, FILL, operations=[]), "at least one", id="nothing to draw from"),
        pytest.param(
            lambda: RandAugment(1, 5, FILL, operations=["shear"]), "no operation 'shear'; did you mean", id="unknown"
        ),
    ],
)
def test_senseless_parameters_of_randaugment_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
