"""Data with boxes and masks: one data set for both or one for each, what is missing, contradicting class names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effdense.datasets.class_names import BACKGROUND
from effdense.datasets.coco import open_coco
from effdense.datasets.data_sources import DataSource
from effdense.datasets.demo import DEMO_CLASSES
from effdense.datasets.multitask_index import LabelCounts, MultitaskIndex
from effdense.datasets.multitask_opening import check_class_names, open_multitask
from effdense.datasets.voc import VOC_CLASSES
from effdense.errors import UserError

SQUARE = {"segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]], "bbox": [0, 0, 60, 40]}


@pytest.fixture
def voc(tmp_path: Path, write_voc, write_image, write_mask) -> Any:
    """Write a VOC folder with boxes of some names and masks of some."""

    def write(boxes: str, masks: str, root: Path = tmp_path) -> Path:
        write_voc({name: [("cat", (1, 1, 9, 9))] for name in boxes}, {"train": [*boxes]} if boxes else {}, root)
        for name in masks:
            write_image(root / f"JPEGImages/{name}.jpg")
            write_mask(root / f"SegmentationClass/{name}.png", 1)
        if masks:
            (root / "ImageSets/Segmentation").mkdir(parents=True)
            (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in masks))
        return root

    return write


@pytest.fixture
def mask_folder(tmp_path: Path, write_image, write_mask) -> Path:
    """Write images/ and masks/ of two classes."""
    root = tmp_path / "folder"
    for name in "xy":
        write_image(root / f"images/{name}.jpg")
        write_mask(root / f"masks/{name}.png", 1)
    (root / "train.txt").write_text("x\ny\n")
    (root / "classes.txt").write_text("background\ncat\n")
    return root


def counts(*indices: Any) -> LabelCounts:
    return MultitaskIndex.of(*indices).counts


# one data set for both


def test_the_demo_set_has_boxes_and_masks_of_every_scene(tmp_path: Path) -> None:
    detection, segmentation = open_multitask("demo", tmp_path, "val")
    assert counts(detection, segmentation) == LabelCounts(80, 0, 0)
    assert detection is not None
    assert segmentation is not None
    assert segmentation.class_names == (BACKGROUND, *DEMO_CLASSES)
    check_class_names(detection.class_names, segmentation.class_names)


def test_voc_has_boxes_of_many_images_and_masks_of_a_few(voc) -> None:
    detection, segmentation = open_multitask("voc", voc("abcd", "de"), "train")
    assert counts(detection, segmentation) == LabelCounts(1, 3, 1)
    assert detection is not None
    assert detection.class_names == VOC_CLASSES


def test_coco_instances_give_boxes_and_masks_of_the_same_images(coco_root) -> None:
    root = coco_root(annotations=[{"id": 1, "image_id": 7, "category_id": 90, **SQUARE}])
    detection, segmentation = open_multitask("coco", root, "train")
    assert counts(detection, segmentation) == LabelCounts(2, 0, 0)
    path = root / "annotations/instances_train.json"
    named = open_multitask("coco", None, "train", annotations=path, images=root / "images")
    assert counts(*named) == LabelCounts(2, 0, 0)


def test_coco_panoptic_labels_may_be_of_fewer_images(coco_root, tmp_path: Path) -> None:
    root = coco_root(annotations=[{"id": 1, "image_id": 7, "category_id": 90, **SQUARE}])
    _panoptic(root)
    detection, segmentation = open_multitask("coco", root, "train", labels="panoptic")
    assert counts(detection, segmentation) == LabelCounts(1, 1, 0)
    assert segmentation is not None
    assert "sky" in segmentation.class_names


def _panoptic(root: Path) -> None:
    from PIL import Image

    (root / "annotations/panoptic_train").mkdir(parents=True)
    segment = {"id": 5, "category_id": 3, "area": 2400, "bbox": [0, 0, 60, 40], "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": [segment]}],
        "categories": [{"id": 3, "name": "sky", "isthing": 0}],
    }
    (root / "annotations/panoptic_train.json").write_text(json.dumps(content))
    Image.new("RGB", (60, 40), (5, 0, 0)).save(root / "annotations/panoptic_train/a.png")


# one for each


def test_boxes_and_masks_may_come_from_two_data_sets(voc, tmp_path: Path, mask_folder: Path) -> None:
    boxes = DataSource("voc", voc("ab", "", tmp_path / "boxes"))
    masks = DataSource("folder", mask_folder)
    detection, segmentation = open_multitask("demo", None, "train", det_data=boxes, seg_data=masks)
    assert counts(detection, segmentation) == LabelCounts(0, 2, 2)
    assert detection is not None
    assert segmentation is not None
    assert (detection.source.parent, segmentation.source.parent) == (boxes.root, masks.root)
    assert segmentation.class_names == (BACKGROUND, "cat")


def test_one_folder_may_be_named_twice(voc) -> None:
    both = DataSource("voc", voc("abc", "bcd"))
    assert counts(*open_multitask("demo", None, "train", det_data=both, seg_data=both)) == LabelCounts(2, 1, 1)


def test_of_one_that_is_named_alone_the_other_label_is_not_looked_for(voc) -> None:
    both = DataSource("voc", voc("abc", "bcd"))
    detection, nothing = open_multitask("demo", None, "train", det_data=both)
    assert detection is not None
    assert nothing is None
    nothing, segmentation = open_multitask("demo", None, "train", seg_data=both)
    assert nothing is None
    assert segmentation is not None
    assert segmentation.masks.where(0).endswith("b.png")


def test_settings_of_the_masks_reach_the_data_set_of_the_masks(voc, mask_folder: Path) -> None:
    boxes, masks = DataSource("voc", voc("ab", "")), DataSource("folder", mask_folder)
    _, segmentation = open_multitask("demo", None, "train", det_data=boxes, seg_data=masks, classes=("x", "y", "z"))
    assert segmentation is not None
    assert segmentation.class_names == ("x", "y", "z")
    with pytest.raises(UserError, match="'panoptic' are of dataset 'coco' alone"):
        open_multitask("demo", None, "train", det_data=boxes, seg_data=masks, labels="panoptic")


@pytest.mark.parametrize("name", ["annotations", "images"])
def test_a_file_that_is_named_goes_with_one_data_set_alone(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {name: tmp_path / "some"}
    with pytest.raises(UserError, match=r"some is named beside --det-data or --seg-data"):
        open_multitask("coco", None, "train", det_data=DataSource("coco", tmp_path), **given)


# what is missing


def test_boxes_without_masks_are_told_where_masks_may_come_from(voc) -> None:
    root = voc("ab", "")
    with pytest.raises(UserError) as raised:
        open_multitask("voc", root, "train")
    text = str(raised.value)
    assert text.startswith(f"{root} has boxes, but no masks that can be used: ")
    for part in ("SegmentationClass/*.png", "--seg-data KIND:FOLDER", "train_det", "eval_det"):
        assert part in text


def test_masks_without_boxes_are_told_where_boxes_may_come_from(voc) -> None:
    root = voc("", "ab")
    with pytest.raises(UserError) as raised:
        open_multitask("voc", root, "train")
    text = str(raised.value)
    assert text.startswith(f"{root} has masks, but no boxes that can be used: ")
    for part in ("Annotations/*.xml", "--det-data KIND:FOLDER", "train_seg", "eval_seg"):
        assert part in text


def test_boxes_of_coco_without_outlines_have_no_masks(coco_root) -> None:
    root = coco_root(annotations=[{"id": 1, "image_id": 7, "category_id": 90, "bbox": [0, 0, 60, 40]}])
    assert open_coco(root, "train").num_boxes == 1
    with pytest.raises(UserError, match=r"(?s)has boxes, but no masks.*annotation id 1.*--seg-data.*train_det"):
        open_multitask("coco", root, "train")


def test_panoptic_labels_alone_have_no_boxes(coco_root) -> None:
    root = coco_root()
    _panoptic(root)
    (root / "annotations/instances_train.json").unlink()
    with pytest.raises(UserError, match=r"(?s)has masks, but no boxes.*instances_train\*\.json.*--det-data.*train_seg"):
        open_multitask("coco", root, "train")


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        pytest.param("voc", ("Annotations/*.xml", "SegmentationClass/*.png"), id="voc"),
        pytest.param("coco", ("annotations/instances_train*.json",), id="coco"),
    ],
)
def test_a_folder_with_neither_is_told_what_was_looked_for_for_each(
    name: str, looked_for: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError) as raised:
        open_multitask(name, tmp_path, "train")
    for part in (str(tmp_path), "notes.txt", *looked_for):
        assert part in str(raised.value)


def test_a_split_that_one_label_lacks_is_said_of_that_label(voc) -> None:
    root = voc("ab", "b")
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"has boxes, but no masks that can be used: .*'val'"):
        open_multitask("voc", root, "val")
    with pytest.raises(UserError, match=r"(?s)neither boxes nor masks.*Of boxes: .*'tset'.*Of masks: .*'tset'"):
        open_multitask("voc", root, "tset")


@pytest.mark.parametrize(
    ("name", "root", "given", "message"),
    [
        pytest.param("vco", "x", {}, "unknown dataset 'vco', .*did you mean 'voc'", id="unknown"),
        pytest.param("folder", "x", {}, "has masks and no boxes: .*--det-data", id="masks alone"),
        pytest.param("voc", None, {}, "needs the folder that it lies in", id="no folder"),
        pytest.param("coco", None, {}, "needs the folder that it lies in", id="no folder of coco"),
        pytest.param("voc", "gone", {}, "^data root .*gone does not exist", id="folder missing"),
        pytest.param("coco", "gone", {}, "^data root .*gone does not exist", id="folder of coco missing"),
        pytest.param("coco", "x", {"classes": ("a",)}, "^dataset 'coco' has .*leave out --classes", id="classes"),
        pytest.param("demo", None, {"binary": True}, "^dataset 'demo' has no binary masks", id="binary"),
        pytest.param("voc", "x", {"labels": "instances"}, "^labels 'instances' are of", id="labels"),
        pytest.param("voc", "x", {"annotations": Path("a")}, "^an annotation file and", id="annotations"),
        pytest.param("coco", None, {"images": Path("a")}, "^image folder a is named without", id="images"),
        pytest.param("coco", None, {"annotations": Path("gone.json")}, "^annotation file gone", id="file missing"),
    ],
)
def test_arguments_that_do_not_go_together_are_said_once(
    name: str, root: str | None, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        open_multitask(name, tmp_path / root if root else None, "train", **given)
    assert "neither" not in str(raised.value)


def test_a_broken_file_of_both_is_said_once(coco_root) -> None:
    root = coco_root()
    (root / "annotations/instances_train.json").write_text("{")
    with pytest.raises(UserError) as raised:
        open_multitask("coco", root, "train")
    assert str(raised.value).count("instances_train.json") == 1


# class names


@pytest.mark.parametrize(
    ("boxes", "masks"),
    [
        pytest.param("cat dog", "cat dog", id="the same"),
        pytest.param("cat dog", "background cat dog", id="background of masks"),
        pytest.param("cat", "background sky cat grass", id="stuff"),
        pytest.param("cat dog", "background", id="nothing shared"),
        pytest.param("dog cat", "cat dog", id="another order"),
        pytest.param("Cat cat", "cat", id="two spellings in one list, one of them shared"),
        pytest.param("cat", "Cat cat", id="two spellings in the other"),
        pytest.param("", "", id="none"),
        pytest.param("cat1", "cat 2", id="numbers tell them apart"),
    ],
)
def test_class_lists_may_differ(boxes: str, masks: str) -> None:
    check_class_names(boxes.split(), masks.split())


@pytest.mark.parametrize(
    ("boxes", "masks"),
    [("Cat", "cat"), ("traffic light", "traffic_light"), ("t-v", "TV"), (" cat", "cat"), ("Straße", "STRASSE")],
)
def test_one_class_in_two_spellings_is_a_contradiction(boxes: str, masks: str) -> None:
    with pytest.raises(UserError, match=f"contradict.*{boxes!r} of the boxes and {masks!r} of the masks"):
        check_class_names(["same", boxes], ["background", masks, "same"])


def test_many_contradictions_are_counted() -> None:
    names = [f"class {number}" for number in range(13)]
    with pytest.raises(UserError, match=r"'class 9' of the boxes and 'Class 9' of the masks and 3 more would"):
        check_class_names(names, [name.capitalize() for name in names])
