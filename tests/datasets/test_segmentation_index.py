"""The index of images with masks: samples, sizes and EXIF, selection."""

from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effdense.datasets.loading import eval_loader
from effdense.datasets.segmentation_index import LabelError, RelabelledMasks, SegmentationIndex
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.transforms import eval_transform


@pytest.fixture
def index(tmp_path: Path, write_image, write_mask) -> SegmentationIndex:
    for number, name in enumerate("abc"):
        write_image(tmp_path / "images" / f"{name}.jpg", seed=number)
        write_mask(tmp_path / "masks" / f"{name}.png", number)
    (tmp_path / "train.txt").write_text("c\na\nb\n")
    return open_segmentation("folder", tmp_path, "train", classes=("x", "y", "z"))


def test_a_sample_is_the_image_with_its_mask(index: SegmentationIndex) -> None:
    sample = index.sample(0)
    assert sample.image.shape == (40, 60, 3)
    assert sample.mask is not None
    assert sample.mask.shape == (40, 60)
    assert sample.mask.dtype == np.uint8
    assert np.unique(sample.mask).tolist() == [2]
    assert sample.boxes_xyxy.shape == (0, 4)
    assert (sample.image_id, sample.original_size_hw, sample.resized_size_hw) == (1, (40, 60), (40, 60))


def test_mask_and_size_can_be_asked_for_alone(index: SegmentationIndex) -> None:
    assert index.size_hw(1) == (40, 60)
    assert np.array_equal(index.mask(1), np.zeros((40, 60)))
    assert index.image_names == ["c", "a", "b"]
    assert index.path(1) == index.images_dir / "a.jpg"


@pytest.mark.parametrize("position", [3, -4])
def test_a_position_outside_is_an_index_error(index: SegmentationIndex, position: int) -> None:
    with pytest.raises(IndexError):
        index.sample(position)


@pytest.mark.parametrize(
    ("positions", "names"),
    [
        pytest.param([2, 0], ["b", "c"], id="reordered"),
        pytest.param([1], ["a"], id="single"),
        pytest.param([], [], id="none"),
        pytest.param([1, 1], ["a", "a"], id="repeated"),
        pytest.param(np.array([-1]), ["b"], id="from-the-end"),
    ],
)
def test_select_takes_each_image_with_its_own_mask(index: SegmentationIndex, positions, names: list[str]) -> None:
    chosen = index.select(positions)
    assert chosen.image_names == names
    assert [int(chosen.mask(i)[0, 0]) for i in range(len(chosen))] == ["abc".index(name) for name in names]


@pytest.mark.parametrize(
    ("orientation", "mask_size_hw", "error"),
    [
        pytest.param(1, (40, 60), None, id="upright"),
        pytest.param(6, (60, 40), None, id="annotated-as-seen"),
        pytest.param(6, (40, 60), None, id="annotated-as-stored"),
        pytest.param(3, (40, 60), None, id="upside-down"),
        pytest.param(1, (60, 40), r"a\.png is 40x60 pixels, but its image .*a\.jpg is 60x40", id="no-exif"),
        pytest.param(6, (40, 61), r"a\.png is 61x40 pixels, but its image .*a\.jpg is 60x40", id="other"),
    ],
)
@pytest.mark.parametrize("stated", [False, True], ids=["unknown", "filled-in"])
def test_the_size_of_the_mask_decides_on_exif(
    stated: bool, orientation: int, mask_size_hw: tuple[int, int], error: str | None, index, write_mask, tmp_path: Path
) -> None:
    left_red = np.zeros((40, 60, 3), np.uint8)
    left_red[:, :30, 0] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(left_red).save(tmp_path / "images/a.jpg", exif=exif, quality=95)
    write_mask(tmp_path / "masks/a.png", np.zeros(mask_size_hw))
    if stated:
        index.sizes_hw[1] = (40, 60) if error else mask_size_hw
    if error:
        with pytest.raises(LabelError, match=error):
            index.sample(1)
        return
    sample = index.sample(1)
    assert sample.image.shape[:2] == sample.mask.shape == sample.original_size_hw == mask_size_hw
    turned = mask_size_hw == (60, 40)
    assert sample.image[1, 38 if turned else 1, 0] > 200
    assert sample.image[1, 1, 0] > 200
    assert sample.image[58 if turned else 1, 1 if turned else 58, 0] < 50


@pytest.mark.parametrize("what", ["images/a.jpg", "masks/a.png"])
def test_a_missing_file_is_named(what: str, index: SegmentationIndex, tmp_path: Path) -> None:
    (tmp_path / what).unlink()
    with pytest.raises(UserError, match=rf"{what} does not exist"):
        index.sample(1)


def test_a_value_that_is_no_class_is_named_on_reading(index: SegmentationIndex, write_mask, tmp_path: Path) -> None:
    write_mask(tmp_path / "masks/a.png", 7)
    with pytest.raises(LabelError, match=r"a\.png: value 7 at x 0, y 0 is no class; the classes are 0 x, 1 y, 2 z"):
        index.sample(1)


def test_the_index_survives_the_way_to_a_worker_and_holds_no_python_objects(index: SegmentationIndex) -> None:
    again = pickle.loads(pickle.dumps(index))
    assert np.array_equal(again.sample(0).mask, index.sample(0).mask)
    arrays = [value for field in fields(index) if isinstance(value := getattr(index, field.name), np.ndarray)]
    assert len(arrays) == 3
    assert all(array.dtype != object for array in arrays)
    big = index.select(np.zeros(10_000, np.int64))
    assert len(pickle.dumps(big)) / len(big) < 60  # bytes per image


def test_other_labels_are_given_by_a_table(index: SegmentationIndex) -> None:
    table = np.full(256, 255, np.uint8)
    table[:3] = (5, 255, 0)
    masks = RelabelledMasks(index.masks, table).select(np.array([0, 2]))
    assert [int(masks.read(i, (40, 60))[0, 0]) for i in range(2)] == [0, 255]
    assert masks.where(0) == index.masks.where(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_masks_are_loaded_beside_their_images(workers: int, index: SegmentationIndex) -> None:
    transform = eval_transform((64, 64), (0, 0, 0))
    (batch,) = eval_loader(index, transform, batch_size=3, workers=workers)
    assert batch.masks is not None
    assert batch.masks.shape == (3, 64, 64)
    assert batch.masks[:, 0, 0].tolist() == [2, 0, 1]
    assert batch.masks[0].unique().tolist() == [2, 255]  # the padding is void
