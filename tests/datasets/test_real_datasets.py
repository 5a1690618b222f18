"""The readers and the doctor on real data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from effdense.datasets.doctor import COLUMNS, Report, examine
from effdense.datasets.opening import open_dataset


def _cells(report: Report, column: str) -> list[int]:
    return [int(row[COLUMNS.index(column)]) for row in report.rows]


def test_blood_cells_have_the_counted_boxes_and_two_without_extent(real_data: Path) -> None:
    splits = {
        split: open_dataset("voc", real_data / "bccd_voc", split) for split in ("train", "val", "test", "trainval")
    }
    assert [len(index) for index in splits.values()] == [205, 87, 72, 292]
    assert splits["train"].class_names == ("Platelets", "RBC", "WBC")
    together = np.concatenate([splits["trainval"].labels, splits["test"].labels])
    assert np.bincount(together).tolist() == [361, 4155, 372]
    report = examine({"train": splits["trainval"], "test": splits["test"]})
    report.raise_errors()
    assert report.warnings == []
    assert _cells(report, "dropped") == [2, 0]
    assert _cells(report, "clipped") == [0, 0]
    assert sum(_cells(report, "boxes")) == 4888 - 2
    sample = splits["train"].sample(0)
    assert sample.image.shape == (480, 640, 3)


def test_trainval_and_val_share_images_and_that_is_told(real_data: Path) -> None:
    root = real_data / "bccd_voc"
    report = examine({"train": open_dataset("voc", root, "trainval"), "val": open_dataset("voc", root, "val")})
    assert any(warning.startswith("87 images of val are in train too") for warning in report.warnings)


def test_facades_are_the_same_as_coco_and_as_voc(real_data: Path) -> None:
    for split, images in (("train", 424), ("val", 80), ("test", 94)):
        coco = open_dataset("coco", real_data / "facade512", split)
        voc = open_dataset("voc", real_data / "facade_voc", split)
        assert len(coco) == len(voc) == images
        assert coco.class_names == voc.class_names
        order = [coco.image_names.index(name) for name in voc.image_names]
        same = coco.select(order)
        assert np.array_equal(same.offsets, voc.offsets)
        assert np.array_equal(same.labels, voc.labels)
        assert np.abs(same.boxes_xyxy - voc.boxes_xyxy).max() <= 0.0101  # the XML is rounded to hundredths


def test_facades_pass_the_doctor(real_data: Path) -> None:
    splits = {split: open_dataset("coco", real_data / "facade512", split) for split in ("train", "val", "test")}
    report = examine(splits)
    report.raise_errors()
    assert sum(_cells(report, "boxes")) == 19_316
    assert report.warnings == []


def test_a_piece_of_coco_keeps_its_crowds_its_ids_and_its_empty_image(real_data: Path) -> None:
    index = open_dataset("coco", real_data / "coco_mini", "train")
    assert (len(index), len(index.class_names)) == (33, 80)
    assert (index.category_ids[0], index.category_ids[-1]) == (1, 90)
    assert index.crowd.sum() == 3
    assert (np.diff(index.offsets) == 0).sum() == 1
    report = examine({"train": index})
    report.raise_errors()
    written = json.loads(index.source.read_text())
    ours = {annotation["id"]: annotation for annotation in index.to_coco()["annotations"]}
    for annotation in written["annotations"]:
        assert ours[annotation["id"]] == {key: annotation[key] for key in ours[annotation["id"]]}


@pytest.mark.parametrize("name", ["coco_mini", "facade512", "bccd_voc"])
def test_real_images_can_be_read(name: str, real_data: Path) -> None:
    index = open_dataset("voc" if name.endswith("voc") else "coco", real_data / name, "train")
    for position in range(0, len(index), max(1, len(index) // 10)):
        sample = index.sample(position)
        assert sample.image.shape[:2] == tuple(index.sizes_hw[position])
