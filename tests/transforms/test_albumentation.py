"""Albumentations behind our interface: its known faults cannot happen."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from effdense.errors import UserError
from effdense.transforms import Albumentation, BoxRule, Photometric

ROTATE = {"rotate": (20.0, 20.0), "p": 1.0}

NO_NETWORK = """
import os, socket, sys
def refuse(*args, **kwargs):
    os.write(2, b"something asked for the network")
    os._exit(9)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import numpy as np
import effdense.transforms as transforms
from effdense.types import Sample
assert "albumentations" not in sys.modules, "imported before it is needed"
sample = Sample(np.zeros((20, 30, 3), np.uint8))
augment = [transforms.Photometric(p=1.0), transforms.RandAugment(20, 5, (1, 2, 3))]
for transform in augment:
    for seed in range(5):
        transform(sample, np.random.default_rng(seed))
assert "albumentations" in sys.modules
"""


@pytest.mark.parametrize("setting", [None, "0"], ids=["unset", "asked for"])
def test_importing_and_augmenting_asks_no_network_and_says_nothing(setting: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    if setting is not None:
        environment["NO_ALBUMENTATIONS_UPDATE"] = setting
    command = [sys.executable, "-W", "error", "-c", NO_NETWORK]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        pytest.param("Affine", {"rotates": 5}, "no argument 'rotates'; did you mean 'rotate'", id="misspelt"),
        pytest.param("Affine", {"cval": 0}, "no argument 'cval'", id="renamed between versions"),
        pytest.param("GaussNoise", {"var_limit": (5, 9)}, "no argument 'var_limit'", id="dropped between versions"),
        pytest.param("Posterize", {"num_bits": 9}, "does not accept.*num_bits", id="value out of range"),
        pytest.param("ColorJitter", {"hue": (-2.0, 2.0)}, "does not accept.*hue", id="range out of range"),
        pytest.param("RandomCrop", {}, "does not accept.*height: Field required", id="argument missing"),
        pytest.param("Colorjitter", {}, "no operation 'Colorjitter'; did you mean 'ColorJitter'", id="unknown"),
        pytest.param("Compose", {"transforms": []}, "no operation 'Compose'", id="not an operation"),
        pytest.param("FDA", {}, "needs fda_metadata", id="needs more than a sample"),
        pytest.param("ToTensorV2", {}, "does not turn an image into an image", id="makes a tensor"),
        pytest.param("CubicSymmetry", {}, "moves pixels but not boxes", id="would leave boxes behind"),
    ],
)
def test_what_albumentations_would_only_warn_of_is_an_error(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Albumentation(name, arguments)
    assert "\n" not in str(caught.value)


def test_an_operation_that_leaves_uint8_is_refused(sample_of: Any) -> None:
    with pytest.raises(UserError, match="images stay uint8"):
        Albumentation("ToFloat", {"p": 1.0})(sample_of(), np.random.default_rng(0))


AWKWARD = [[-0.5, -0.5, 20, 20], [10, 10, 10, 30], [30, 30, 50, 30], [60, 40, 80.5, 60.5], [20, 15, 45, 40]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("Affine", ROTATE, id="Affine"),
        pytest.param("HorizontalFlip", {"p": 1.0}, id="HorizontalFlip"),
        pytest.param("Perspective", {"p": 1.0}, id="Perspective"),
        pytest.param("CropAndPad", {"px": -5, "p": 1.0}, id="CropAndPad"),
        pytest.param("CoarseDropout", {"p": 1.0}, id="CoarseDropout"),
    ],
)
def test_awkward_boxes_do_not_raise_and_labels_stay_integers(
    sample_of: Any, name: str, arguments: dict[str, Any]
) -> None:
    sample = sample_of((60, 80), AWKWARD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = Albumentation(name, arguments)(sample, np.random.default_rng(0))
    assert result.labels.dtype == np.int64
    assert result.boxes_xyxy.dtype == np.float32
    assert 1 not in result.labels
    assert 2 not in result.labels
    assert 4 in result.labels
    height, width = result.image.shape[:2]
    assert (result.boxes_xyxy >= 0).all()
    assert (result.boxes_xyxy <= [width, height, width, height]).all()
    np.testing.assert_array_equal(result.crowd, result.labels % 2 == 1)
    np.testing.assert_array_equal(result.difficult, result.labels % 3 == 2)


def test_a_sample_without_boxes_passes(sample_of: Any) -> None:
    result = Albumentation("Affine", ROTATE)(sample_of(), np.random.default_rng(0))
    assert result.boxes_xyxy.shape == (0, 4)
    assert result.labels.dtype == np.int64


def test_pixels_that_come_into_the_mask_are_ignored(sample_of: Any) -> None:
    sample = sample_of((60, 80), [[0, 0, 80, 60]], drawn=True)
    result = Albumentation("Affine", ROTATE)(sample, np.random.default_rng(0))
    assert set(np.unique(result.mask)) == {1, 255}
    assert result.mask is not None
    assert result.mask[0, 0] == 255


def test_the_rule_for_boxes_is_the_one_given(sample_of: Any) -> None:
    sample = sample_of((60, 80), [[10, 0, 20, 60]])
    arguments = {"translate_percent": {"x": (0.0, 0.0), "y": (0.5, 0.5)}, "p": 1.0}
    strict = Albumentation("Affine", arguments, boxes=BoxRule(min_visible=0.6))(sample, np.random.default_rng(0))
    lenient = Albumentation("Affine", arguments, boxes=BoxRule(min_visible=0.4))(sample, np.random.default_rng(0))
    assert (len(strict.labels), len(lenient.labels)) == (0, 1)


def test_the_generator_alone_decides_what_is_drawn(sample_of: Any) -> None:
    sample = sample_of()
    first, second = Photometric(p=1.0), Photometric(p=1.0)
    wanted = first(sample, np.random.default_rng(3)).image
    np.random.seed(1)  # noqa: NPY002 - to show that the global state does not matter
    second(sample, np.random.default_rng(8))
    np.testing.assert_array_equal(second(sample, np.random.default_rng(3)).image, wanted)
    assert not (first(sample, np.random.default_rng(4)).image == wanted).all()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first))(sample, np.random.default_rng(3)).image, wanted)


def test_the_probability_holds(sample_of: Any) -> None:
    sample = sample_of((4, 4))
    half = Photometric(p=0.5)
    changed = [half(sample, np.random.default_rng(seed)).image is not sample.image for seed in range(200)]
    assert 70 < sum(changed) < 130
    assert Photometric(p=0.0)(sample, np.random.default_rng(0)).image is sample.image


def test_photometric_changes_each_quantity_within_its_strength(sample_of: Any) -> None:
    grey = sample_of((8, 8)).replace(image=np.full((8, 8, 3), 100, np.uint8))
    brighten = Photometric(brightness=0.3, contrast=0, saturation=0, hue=0, p=1.0)
    values = [int(brighten(grey, np.random.default_rng(seed)).image[0, 0, 0]) for seed in range(100)]
    assert 69 <= min(values) < 75
    assert 125 < max(values) <= 131
    recolour = Photometric(brightness=0, contrast=0.5, saturation=0.5, hue=0.2, p=1.0)
    np.testing.assert_allclose(recolour(grey, np.random.default_rng(0)).image, 100, atol=1)
    noise = sample_of((8, 8))
    assert not (recolour(noise, np.random.default_rng(0)).image == noise.image).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "p"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_strengths_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        Photometric(**{name: value})
