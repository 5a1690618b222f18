"""Masks of real data: three ways to read one set of house fronts, and the demo set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effdense.datasets.segmentation_doctor import examine_masks
from effdense.datasets.segmentation_opening import available_segmentation_splits, open_segmentation
from effdense.datasets.voc import open_voc

SIZES = {"train": 424, "val": 80, "test": 94}


@pytest.mark.parametrize(("name", "folder"), [("voc", "facade_voc"), ("folder", "facade512")])
def test_facades_open_with_eleven_classes_and_pass_the_doctor(name: str, folder: str, real_data: Path) -> None:
    root = real_data / folder
    assert available_segmentation_splits(name, root) == list(SIZES)
    splits = {split: open_segmentation(name, root, split) for split in SIZES}
    assert {split: len(index) for split, index in splits.items()} == SIZES
    index = splits["train"]
    assert len(index.class_names) == 11
    assert (index.class_names[0], index.class_names[10]) == ("background", "window")
    report = examine_masks({"train": index, "val": splits["val"]})
    report.raise_errors()
    assert report.warnings == []
    assert (report.pixel_counts["train"] > 0).all()
    void = 424 * 512 * 512 - int(report.pixel_counts["train"].sum())
    assert (void > 0) == (name == "voc")


def test_voc_and_folder_differ_by_the_void_between_regions_alone(real_data: Path) -> None:
    voc = open_segmentation("voc", real_data / "facade_voc", "val")
    folder = open_segmentation("folder", real_data / "facade512", "val")
    assert voc.image_names == folder.image_names
    assert voc.class_names == folder.class_names
    for position in range(0, len(voc), 8):
        with_void, without = voc.mask(position), folder.mask(position)
        known = with_void != 255
        assert np.array_equal(with_void[known], without[known])


def test_masks_and_boxes_of_facades_agree_on_classes_and_images(real_data: Path) -> None:
    masks = open_segmentation("voc", real_data / "facade_voc", "test")
    boxes = open_voc(real_data / "facade_voc", "test")
    assert masks.class_names == ("background", *boxes.class_names)
    assert sorted(masks.image_names) == sorted(boxes.image_names)


def test_masks_are_the_bytes_of_the_files(real_data: Path) -> None:
    index = open_segmentation("voc", real_data / "facade_voc", "val")
    for position in range(0, len(index), 20):
        name = index.image_names[position]
        with Image.open(real_data / "facade_voc/SegmentationClass" / f"{name}.png") as image:
            assert image.mode == "P"
            assert np.array_equal(index.mask(position), np.asarray(image))


def test_the_demo_set_passes_the_doctor_with_every_class_in_every_split() -> None:
    splits = {split: open_segmentation("demo", None, split) for split in ("train", "val", "test")}
    report = examine_masks(splits)
    report.raise_errors()
    assert report.warnings == []
    assert [row[1] for row in report.rows] == ["320", "80", "80"]
    assert all((counts > 0).all() for counts in report.pixel_counts.values())
