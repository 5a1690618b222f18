"""The images of a split by themselves: no mask is needed, none is read, and it is the split that evaluation has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from effdense.datasets.image_lists import open_image_list
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError

EXIF_ORIENTATION = 0x0112


def _save(path: Path, height: int = 20, width: int = 30, *, sideways: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    exif = image.getexif()
    if sideways:
        exif[EXIF_ORIENTATION] = 6
    image.save(path, exif=exif)


def _mask(path: Path, height: int = 20, width: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width), 255, np.uint8))


def _names(name: str, root: Path | None, split: str = "val") -> list[str]:
    found = open_image_list(name, root, split)
    return [found.path(position).stem for position in range(len(found))]


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no-masks"])
@pytest.mark.parametrize(
    ("name", "images", "labels"),
    [
        pytest.param("folder", "images/val", "masks/val", id="folder"),
        pytest.param("folder", "val/images", "val/masks", id="split-folders"),
        pytest.param("voc", "JPEGImages", "SegmentationClass", id="voc"),
        pytest.param("voc", "VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationClass", id="voc-devkit"),
    ],
)
def test_images_are_found_with_and_without_masks(
    name: str, images: str, labels: str, masks: bool, tmp_path: Path
) -> None:
    for stem in ("b", "a", "c"):
        _save(tmp_path / images / f"{stem}.jpg")
        if masks:
            _mask(tmp_path / labels / f"{stem}.png")
    if name == "voc":
        lists = (tmp_path / images).parent / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text("c\na\n")
    assert _names(name, tmp_path) == (["c", "a"] if name == "voc" else ["a", "b", "c"])
    found = open_image_list(name, tmp_path, "val")
    assert found.sample(0).image.shape == (20, 30, 3)
    assert found.sample(0).mask is None
    assert [found.sample(position).image_id for position in range(len(found))] == list(range(1, len(found) + 1))
    with pytest.raises(IndexError):
        found.sample(len(found))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_is_the_one_of_evaluation(split: str, tmp_path: Path) -> None:
    index = open_segmentation("demo", tmp_path, split)
    found = open_image_list("demo", tmp_path, split)
    assert [found.path(i) for i in range(len(found))] == [index.path(i) for i in range(len(index))]
    np.testing.assert_array_equal(found.sample(3).image, index.sample(3).image)


@pytest.mark.parametrize(
    ("mask_hw", "image_hw"),
    [
        pytest.param((20, 30), (20, 30), id="as-stored"),
        pytest.param((30, 20), (30, 20), id="turned"),
        pytest.param((7, 9), (30, 20), id="of-something-else"),
        pytest.param(None, (30, 20), id="none"),
    ],
)
def test_a_mask_says_by_its_size_alone_whether_its_image_is_turned(
    mask_hw: tuple[int, int] | None, image_hw: tuple[int, int], tmp_path: Path
) -> None:
    _save(tmp_path / "images/val/a.jpg", 20, 30, sideways=True)
    _save(tmp_path / "images/val/b.jpg")
    _mask(tmp_path / "masks/val/b.png")
    if mask_hw:
        _mask(tmp_path / "masks/val/a.png", *mask_hw)
    sample = open_image_list("folder", tmp_path, "val").sample(0)
    assert sample.image.shape[:2] == sample.original_size_hw == image_hw


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_coco_needs_the_list_of_images_alone(kind: str, tmp_path: Path) -> None:
    for number in (3, 4):
        _save(tmp_path / f"val2017/{number}.jpg")
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 20, "width": 30} for number in (4, 3)]
    strange = [{"id": 1, "image_id": 4, "category_id": 77, "segmentation": "nonsense"}]
    (tmp_path / "annotations").mkdir()
    content = {"images": images, "annotations": strange, "categories": []}
    (tmp_path / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(content))
    found = open_image_list("coco", tmp_path, "val")
    assert [found.path(i).name for i in range(2)] == ["4.jpg", "3.jpg"]
    assert [found.sample(i).image_id for i in range(2)] == [4, 3]
    with pytest.raises(UserError, match="holds no COCO annotations for split 'train'"):
        open_image_list("coco", tmp_path, "train")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for name, root, split, says in (
        ("vocc", tmp_path, "val", "did you mean 'voc'"),
        ("folder", None, "val", "--data-root"),
        ("folder", tmp_path, "val", "holds no images with masks"),
        ("voc", tmp_path, "val", "does not look like Pascal VOC"),
        ("folder", tmp_path / "nowhere", "val", "does not exist"),
    ):
        with pytest.raises(UserError, match=says):
            open_image_list(name, root, split)
    _save(tmp_path / "images/val/a.jpg")
    with pytest.raises(UserError, match="has no split 'test'"):
        open_image_list("folder", tmp_path, "test")
    shutil.rmtree(tmp_path / "images")
