"""The columnar index."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import pytest

from effdense.datasets.coco import open_coco
from effdense.datasets.index import DetectionIndex
from effdense.errors import UserError


@pytest.fixture
def index(coco_root) -> DetectionIndex:
    return open_coco(coco_root(), "train")


def _boxes_of(index: DetectionIndex) -> dict[int, list[int]]:
    return {
        int(image_id): index.annotation_ids[a:b].tolist()
        for image_id, a, b in zip(index.image_ids, index.offsets, index.offsets[1:], strict=False)
    }


def test_a_sample_is_the_image_with_its_boxes(index: DetectionIndex) -> None:
    sample = index.sample(0)
    assert sample.image.shape == (40, 60, 3)
    assert sample.boxes_xyxy.dtype == np.float32
    assert sample.boxes_xyxy.tolist() == [[1, 2, 11, 22], [5.5, 2, 15.5, 22.25]]
    assert sample.labels.dtype == np.int64
    assert sample.labels.tolist() == [2, 0]
    assert sample.crowd.tolist() == [False, True]
    assert sample.difficult.tolist() == [False, False]
    assert (sample.image_id, sample.original_size_hw, sample.resized_size_hw) == (7, (40, 60), (40, 60))


def test_an_image_without_boxes_gives_empty_columns_of_the_right_shape(index: DetectionIndex) -> None:
    sample = index.sample(-1)
    assert sample.image_id == 9
    assert sample.boxes_xyxy.shape == (0, 4)
    assert sample.labels.shape == (0,)


def test_changing_a_sample_leaves_the_index_as_it_was(index: DetectionIndex) -> None:
    index.sample(0).boxes_xyxy[:] = -5
    assert index.boxes_xyxy.min() == 1


@pytest.mark.parametrize("position", [2, -3])
def test_a_position_outside_is_an_index_error(index: DetectionIndex, position: int) -> None:
    with pytest.raises(IndexError):
        index.sample(position)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        pytest.param([1, 0], {9: [], 7: [1, 2]}, id="reordered"),
        pytest.param([0], {7: [1, 2]}, id="single"),
        pytest.param([1], {9: []}, id="without-boxes"),
        pytest.param([], {}, id="none"),
        pytest.param(np.array([-1]), {9: []}, id="from-the-end"),
    ],
)
def test_select_takes_each_image_with_its_own_boxes(index: DetectionIndex, positions, expected) -> None:
    chosen = index.select(positions)
    assert _boxes_of(chosen) == expected
    assert [chosen.path(i).name for i in range(len(chosen))] == [{7: "a.jpg", 9: "b.jpg"}[i] for i in expected]


def test_select_may_repeat_an_image(index: DetectionIndex) -> None:
    assert index.select([0, 1, 0]).annotation_ids.tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("keep", [[True, True], [False, True], [False, False]])
def test_keep_boxes_keeps_all_images(index: DetectionIndex, keep: list[bool]) -> None:
    kept = index.keep_boxes(np.array(keep))
    assert _boxes_of(kept) == {7: [i for i, k in zip((1, 2), keep, strict=True) if k], 9: []}


def test_columns_are_arrays_and_hold_no_python_objects(index: DetectionIndex) -> None:
    arrays = [value for field in fields(index) if isinstance(value := getattr(index, field.name), np.ndarray)]
    assert len(arrays) == 13
    assert all(array.dtype != object for array in arrays)


def test_the_index_survives_the_way_to_a_spawned_worker(index: DetectionIndex) -> None:
    again = pickle.loads(pickle.dumps(index))
    assert np.array_equal(again.sample(0).image, index.sample(0).image)
    assert again.to_coco() == index.to_coco()


def test_the_index_of_a_large_set_is_small_when_pickled(index: DetectionIndex) -> None:
    big = index.select(np.zeros(10_000, np.int64))
    assert len(pickle.dumps(big)) / len(big) < 300  # bytes per image of two boxes


def test_to_coco_gives_back_what_was_read(index: DetectionIndex, coco_content) -> None:
    written = coco_content()
    again = index.to_coco()
    assert again["images"] == written["images"]
    assert again["annotations"] == written["annotations"]
    assert again["categories"] == sorted(written["categories"], key=lambda category: category["id"])


def test_a_size_that_is_not_stated_comes_from_the_file(coco_root) -> None:
    index = open_coco(coco_root(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}]), "train")
    assert index.size_hw(0) == (40, 60)
    assert index.to_coco()["images"][0] == {"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}
    assert index.sample(0).original_size_hw == (40, 60)


def test_a_wrong_size_is_an_error_on_reading(coco_root) -> None:
    images = [{"id": i, "file_name": name, "width": 40, "height": 60} for i, name in ((7, "a.jpg"), (9, "b.jpg"))]
    index = open_coco(coco_root(images=images), "train")
    with pytest.raises(UserError, match=r"a\.jpg is 60x40 pixels, but its annotation states 40x60"):
        index.sample(0)


def test_where_names_file_and_annotation_id(index: DetectionIndex) -> None:
    assert index.where(1).endswith("instances_train.json, annotation id 2")
