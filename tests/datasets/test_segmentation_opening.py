"""Opening images with masks: layouts, splits, classes, binary masks, arguments, classes of two splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effdense.datasets import mask_classes
from effdense.datasets.class_names import is_background
from effdense.datasets.demo import DEMO_CLASSES
from effdense.datasets.mask_files import MaskFiles, read_values
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.datasets.segmentation_opening import (
    VOC_MASK_CLASSES,
    available_segmentation_splits,
    match_segmentation_classes,
    open_segmentation,
)
from effdense.datasets.voc import open_voc
from effdense.errors import UserError
from effdense.types import UInt8

Write = Callable[..., Path]
CLASSES = ("background", "cat", "dog")


@pytest.fixture
def write_pair(write_image, write_mask) -> Write:
    """Write an image and a mask of one class per name, into two folders."""

    def write(images: Path, masks: Path, *names: str, value: int = 1) -> Path:
        for name in names:
            write_image(images / f"{name}.jpg")
            write_mask(masks / f"{name}.png", value)
        return images.parent

    return write


@pytest.fixture
def voc_root(tmp_path: Path, write_pair: Write) -> Write:
    """Write a VOC data set of the given names, and its lists."""

    def write(*names: str, root: Path = tmp_path, lists: str = "ImageSets/Segmentation", **splits: str) -> Path:
        write_pair(root / "JPEGImages", root / "SegmentationClass", *names)
        for split, listed in splits.items():
            (root / lists).mkdir(parents=True, exist_ok=True)
            (root / lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed.split()))
        return root

    return write


def _first_labels(index: SegmentationIndex) -> list[int]:
    return [int(index.mask(position)[0, 0]) for position in range(len(index))]


# VOC


@pytest.mark.parametrize("where", ["", "VOC2007", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_voc_folder_itself_or_the_kit_around_it_will_do(where: str, tmp_path: Path, voc_root: Write) -> None:
    voc_root("a", "b", root=tmp_path / where, train="b a")
    index = open_segmentation("voc", tmp_path, "train")
    assert index.image_names == ["b", "a"]
    assert index.image_ids.tolist() == [1, 2]
    assert index.class_names == VOC_MASK_CLASSES
    assert any("no classes.txt" in note and "21" in note for note in index.notes)
    assert len(VOC_MASK_CLASSES) == 21
    assert VOC_MASK_CLASSES[15] == "person"
    assert index.source == tmp_path / where / "SegmentationClass"
    assert index.sample(0).image.shape == (40, 60, 3)


@pytest.mark.parametrize("lists", ["ImageSets/Segmentation", "ImageSets", "ImageSets/Main"])
def test_voc_lists_are_found_where_they_lie(lists: str, voc_root: Write) -> None:
    root = voc_root("a", "b", "c", lists=lists, train="a", val="b", test="c", cat_train="a")
    assert available_segmentation_splits("voc", root) == ["train", "val", "test"]
    assert open_segmentation("voc", root, "trainval").image_names == ["a", "b"]
    assert open_segmentation("voc", root, "test").image_names == ["c"]


def test_the_lists_of_segmentation_come_before_those_of_detection(voc_root: Write) -> None:
    root = voc_root("a", "b", lists="ImageSets/Main", train="a b", val="a")
    voc_root("a", "b", train="b")
    assert open_segmentation("voc", root, "train").image_names == ["b"]


@pytest.mark.parametrize("line", ["a", "  a\r", "a.jpg", "a 1", "JPEGImages/a.jpg SegmentationClass/a.png"])
def test_lines_of_a_list_may_carry_more_than_the_name(line: str, tmp_path: Path, voc_root: Write) -> None:
    root = voc_root("a", train="a")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(line + "\n\n")
    assert open_segmentation("voc", root, "train").image_names == ["a"]


def test_without_lists_only_images_with_a_mask_are_split_by_name(tmp_path: Path, voc_root: Write, write_image) -> None:
    root = voc_root(*(f"{number:02d}" for number in range(40)))
    write_image(tmp_path / "JPEGImages/photo.jpg")
    train, val = (open_segmentation("voc", root, split) for split in ("train", "val"))
    assert sorted(train.image_names + val.image_names) == [f"{number:02d}" for number in range(40)]
    assert f"no list of splits: {len(train)} images are train and {len(val)} val, by name" in train.notes[-1]
    assert available_segmentation_splits("voc", root) == ["train", "val", "trainval"]
    assert len(open_segmentation("voc", root, "trainval")) == 40


def test_boxes_and_masks_without_lists_are_split_alike(tmp_path: Path, voc_root: Write, write_voc) -> None:
    names = [f"{number:02d}" for number in range(30)]
    voc_root(*names)
    write_voc({name: [("cat", (1, 1, 9, 9))] for name in names})
    for split in ("train", "val"):
        assert open_segmentation("voc", tmp_path, split).image_names == open_voc(tmp_path, split).image_names


def test_a_listed_image_without_a_mask_is_an_error_that_names_the_file(tmp_path: Path, voc_root: Write) -> None:
    root = voc_root("a", "b", train="a b")
    (tmp_path / "SegmentationClass/b.png").unlink()
    index = open_segmentation("voc", root, "train")
    with pytest.raises(UserError, match=r"mask .*SegmentationClass/b\.png does not exist"):
        index.sample(1)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        pytest.param(
            [], r"does not look like Pascal VOC with masks: looked for SegmentationClass/\*\.png", id="nothing"
        ),
        pytest.param(["JPEGImages", "Annotations"], "Annotations holds boxes, which serve detection", id="boxes"),
        pytest.param(["images", "masks"], "give --dataset folder", id="folder"),
        pytest.param(["SegmentationClass"], "does not look like", id="empty"),
    ],
)
def test_what_is_no_voc_with_masks_is_told_what_was_looked_for(folders, message: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=message):
        open_segmentation("voc", tmp_path, "train")


def test_masks_without_images_beside_them_are_an_error(tmp_path: Path, write_mask) -> None:
    write_mask(tmp_path / "SegmentationClass/a.png")
    with pytest.raises(UserError, match=r"SegmentationClass, but no JPEGImages beside it\. Found there"):
        open_segmentation("voc", tmp_path, "train")


# folder


@pytest.mark.parametrize("layout", ["images/train", "train/images", "lists-in-imagesets", "lists-in-root"])
def test_a_folder_of_images_and_masks_may_be_split_in_four_ways(layout: str, tmp_path: Path, write_pair: Write) -> None:
    for split, names in (("train", ("a", "b.c")), ("valid", ("d",))):
        if layout == "images/train":
            write_pair(tmp_path / "images" / split, tmp_path / "masks" / split, *names)
        elif layout == "train/images":
            write_pair(tmp_path / split / "images", tmp_path / split / "masks", *names)
        else:
            write_pair(tmp_path / "images", tmp_path / "masks", *names)
            lists = tmp_path / ("ImageSets" if layout == "lists-in-imagesets" else "")
            lists.mkdir(exist_ok=True)
            (lists / f"{split}.txt").write_text("\n".join(names))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "README.txt").write_text("no list")
    train, val = (open_segmentation("folder", tmp_path, split) for split in ("train", "val"))
    assert [Path(name).name for name in train.image_names] == ["a", "b.c"]
    assert [Path(name).name for name in val.image_names] == ["d"]
    assert len(open_segmentation("folder", tmp_path, "trainval")) == 3
    assert train.class_names == CLASSES
    assert {index.sample(0).image.shape for index in (train, val)} == {(40, 60, 3)}
    assert _first_labels(train) == [1, 1]
    with pytest.raises(UserError, match="no split 'test', only "):
        open_segmentation("folder", tmp_path, "test")


def test_folders_of_splits_come_before_a_list_that_happens_to_lie_there(tmp_path: Path, write_pair: Write) -> None:
    write_pair(tmp_path / "images/train", tmp_path / "masks/train", "a")
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n")
    assert open_segmentation("folder", tmp_path, "train", classes=CLASSES).image_names == ["train/a"]


def test_a_flat_folder_is_split_by_name_and_an_image_without_mask_stays_in_to_be_told(
    tmp_path: Path, write_pair: Write
) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", *(f"{number:02d}" for number in range(30)))
    (tmp_path / "masks/05.png").unlink()
    (tmp_path / "images/07.jpg").unlink()
    index = open_segmentation("folder", tmp_path, "trainval", classes=CLASSES)
    assert len(index) == 30
    with pytest.raises(UserError, match=r"masks/05\.png does not exist"):
        index.sample(5)
    with pytest.raises(UserError, match=r"images/07\.jpg does not exist"):
        index.sample(7)


def test_what_tools_leave_behind_is_no_mask(tmp_path: Path, write_pair: Write) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    for litter in ("._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "Thumbs.db"):
        (tmp_path / "masks" / litter).parent.mkdir(exist_ok=True)
        (tmp_path / "masks" / litter).write_bytes(b"x")
    assert open_segmentation("folder", tmp_path, "trainval", classes=CLASSES).image_names == ["a"]


def test_a_mask_that_is_png_comes_before_one_that_is_not(tmp_path: Path, write_pair: Write, write_image) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    write_image(tmp_path / "masks/a.jpg")
    assert _first_labels(open_segmentation("folder", tmp_path, "trainval", classes=CLASSES)) == [1]


def test_masks_that_are_called_otherwise_than_images_are_an_error_that_shows_both(
    tmp_path: Path, write_image, write_mask
) -> None:
    write_image(tmp_path / "images/a.jpg")
    write_mask(tmp_path / "masks/a_mask.png")
    with pytest.raises(UserError, match=r"images are a\.jpg; masks are a_mask\.png\. A mask is called as its image"):
        open_segmentation("folder", tmp_path, "train", classes=CLASSES)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        pytest.param(
            [], r"holds no images with masks: looked for images/ and masks/ .*Found there: nothing", id="none"
        ),
        pytest.param(["images"], "looked for images/ and masks/", id="no-masks"),
        pytest.param(["images", "masks"], "images are none; masks are none", id="empty"),
        pytest.param(["JPEGImages", "SegmentationClass"], "give --dataset voc", id="voc"),
    ],
)
def test_what_is_no_folder_with_masks_is_told_what_was_looked_for(folders, message: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=message):
        open_segmentation("folder", tmp_path, "train")


def test_a_list_that_names_what_is_not_there_is_an_error_with_its_line(tmp_path: Path, voc_root: Write) -> None:
    root = voc_root("a", train="a nope")
    with pytest.raises(UserError, match=r"train\.txt:2: 'nope' has neither an image in .*JPEGImages nor a mask in"):
        open_segmentation("voc", root, "train")
    with pytest.raises(UserError, match=r"no split 'trian', only train; did you mean 'train'"):
        open_segmentation("voc", root, "trian")


def test_an_empty_list_opens_as_an_empty_index(voc_root: Write) -> None:
    assert len(open_segmentation("voc", voc_root("a", train="a", val=""), "val")) == 0


# classes


@pytest.mark.parametrize(
    ("text", "voc", "folder", "boxes"),
    [
        pytest.param("background\ncat\ndog\n", CLASSES, CLASSES, ("cat", "dog"), id="names"),
        pytest.param("0 background\n1 cat\n2 dog\n", CLASSES, CLASSES, ("cat", "dog"), id="numbered"),
        pytest.param("__background__\ncat\n", ("__background__", "cat"), ("__background__", "cat"), ("cat",), id="__"),
        pytest.param("cat\ndog\n", CLASSES, ("cat", "dog"), ("cat", "dog"), id="without-background"),
        pytest.param("0 cat\n1 dog\n", ("cat", "dog"), ("cat", "dog"), ("cat", "dog"), id="numbered-from-0"),
        pytest.param("1 cat\n2 dog\n", CLASSES, ("cat", "dog"), ("cat", "dog"), id="numbered-from-1"),
        pytest.param("0 background\n1 cat\n255 void\n", CLASSES[:2], CLASSES[:2], ("cat",), id="with-void"),
        pytest.param(
            "\ufeff0 background\n1 a cat", ("background", "a cat"), ("background", "a cat"), ("a cat",), id="bom"
        ),
    ],
)
def test_boxes_and_masks_read_classes_txt_alike(
    text, voc, folder, boxes, tmp_path: Path, write_pair, write_voc
) -> None:
    write_pair(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", "a")
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    write_voc({"a": []})
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    opened = open_segmentation("voc", tmp_path, "trainval")
    assert opened.class_names == voc
    assert any("lists no background" in note for note in opened.notes) == (len(voc) > len(folder))
    assert open_segmentation("folder", tmp_path, "trainval").class_names == folder
    assert open_voc(tmp_path, "trainval").class_names == boxes


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        pytest.param("0 background\n1 cat\n2 dog\n", [0, 1, 2, 255], [0, 1, 2, 255], id="plain"),
        pytest.param("0 background\n7 cat\n11 dog\n", [0, 7, 11, 255], [0, 1, 2, 255], id="gaps"),
        pytest.param("2 dog\n0 background\n1 cat\n", [0, 1, 2], [0, 1, 2], id="any-order"),
    ],
)
def test_numbers_in_classes_txt_are_the_values_in_the_files(text, values, labels, tmp_path: Path, write_pair) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    Image.fromarray(np.repeat(np.array([values], np.uint8), 40, axis=0)).save(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text(text)
    index = open_segmentation("folder", tmp_path, "trainval")
    assert index.class_names == CLASSES
    assert index.masks.read(0, (40, 60))[0].tolist() == labels


def test_classes_that_are_given_come_before_a_file(tmp_path: Path, write_pair: Write) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    (tmp_path / "classes.txt").write_text("0 x\n9 y\n")
    assert open_segmentation("folder", tmp_path, "trainval", classes=CLASSES).class_names == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a\nb\na\n", r"classes\.txt names a class twice: a", id="twice"),
        pytest.param("0 a\n0 b\n", r"classes\.txt gives a number twice: 0", id="number-twice"),
        pytest.param("0 a\n255 b\n", r"gives 'b' the number 255; classes are numbered from 0 to 254", id="255"),
        pytest.param("0 a\n1000 b\n", r"gives 'b' the number 1000", id="1000"),
        pytest.param("\n\n", r"classes\.txt names no class", id="empty"),
        pytest.param("\n".join(f"c{i}" for i in range(256)), r"names 256 classes; .* room for 255", id="too-many"),
    ],
)
def test_a_classes_txt_that_cannot_be_used_is_an_error(text: str, message: str, tmp_path: Path, write_pair) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_segmentation("folder", tmp_path, "trainval")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        pytest.param([], "--classes names no class", id="none"),
        pytest.param(["a", "a"], "--classes names a class twice: a", id="twice"),
        pytest.param(["a", " "], "--classes holds a class without a name", id="blank"),
        pytest.param([f"c{i}" for i in range(256)], "--classes names 256 classes", id="too-many"),
    ],
)
def test_classes_that_cannot_be_used_are_an_error(classes, message: str, tmp_path: Path, write_pair: Write) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    with pytest.raises(UserError, match=message):
        open_segmentation("folder", tmp_path, "trainval", classes=classes)


def test_without_any_names_the_values_are_shown_and_names_asked_for(tmp_path: Path, write_pair: Write) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a", value=3)
    write_pair(tmp_path / "images", tmp_path / "masks", "b", value=255)
    with pytest.raises(UserError, match=r"\(they hold 3, 255\): write .*classes\.txt .*or name .* with --classes"):
        open_segmentation("folder", tmp_path, "trainval")


# binary masks


def _binary(root: Path, write_image, values: tuple[int, ...] = (0, 255), count: int = 3) -> Path:
    for number in range(count):
        write_image(root / "images" / f"{number}.jpg", seed=number)
        (root / "masks").mkdir(exist_ok=True)
        stripes = np.resize(np.array(values, np.uint8), (40, 60))
        Image.fromarray(stripes).save(root / "masks" / f"{number}.png")
    return root


def test_masks_of_0_and_255_alone_are_recognised_and_asked_about(tmp_path: Path, write_image) -> None:
    _binary(tmp_path, write_image, count=25)
    with pytest.raises(UserError, match=r"look binary: they hold only 0 and 255.* Give --binary-masks"):
        open_segmentation("folder", tmp_path, "trainval", classes=CLASSES)
    with pytest.raises(
        UserError, match="look binary: they hold only 0 and 255"
    ):  # sooner than that nothing names the classes
        open_segmentation("folder", tmp_path, "trainval")


def test_one_mask_of_many_with_a_class_is_enough_not_to_be_binary(tmp_path: Path, write_image, write_mask) -> None:
    _binary(tmp_path, write_image, count=45)
    write_mask(tmp_path / "masks/22.png", 2)
    assert len(open_segmentation("folder", tmp_path, "trainval", classes=CLASSES)) == 45


def test_of_masks_with_classes_few_are_looked_at_on_opening(tmp_path: Path, write_pair, monkeypatch) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", *(f"{number:02d}" for number in range(45)))
    looked_at: list[Path] = []

    def watched(path: Path) -> UInt8:
        looked_at.append(path)
        return read_values(path)

    monkeypatch.setattr(mask_classes, "read_values", watched)
    open_segmentation("folder", tmp_path, "trainval", classes=CLASSES)
    assert 1 <= len(looked_at) <= 20


@pytest.mark.parametrize("values", [(0, 0), (255, 255), (0, 1), (0, 1, 255)], ids=str)
def test_other_values_than_0_and_255_together_do_not_look_binary(values, tmp_path: Path, write_image) -> None:
    root = _binary(tmp_path, write_image, values)
    assert len(open_segmentation("folder", root, "trainval", classes=CLASSES)) == 3


@pytest.mark.parametrize(
    ("classes", "text", "expected"),
    [
        pytest.param(None, None, ("background", "foreground"), id="named-by-us"),
        pytest.param(("road", "crack"), "a\nb\nc\n", ("road", "crack"), id="given"),
        pytest.param(None, "ground\nhouse\n", ("ground", "house"), id="file"),
    ],
)
def test_binary_masks_have_two_classes(classes, text, expected, tmp_path: Path, write_image) -> None:
    root = _binary(tmp_path, write_image)
    if text:
        (tmp_path / "classes.txt").write_text(text)
    index = open_segmentation("folder", root, "trainval", classes=classes, binary=True)
    assert index.class_names == expected
    assert index.mask(0)[0, :4].tolist() == [0, 1, 0, 1]


def test_binary_masks_in_the_folders_of_voc_are_not_voc_s_classes(tmp_path: Path, write_image) -> None:
    _binary(tmp_path, write_image)
    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    (tmp_path / "masks").rename(tmp_path / "SegmentationClass")
    with pytest.raises(UserError, match="look binary: they hold only 0 and 255"):
        open_segmentation("voc", tmp_path, "train")
    assert open_segmentation("voc", tmp_path, "train", binary=True).class_names == ("background", "foreground")


def test_more_than_two_classes_of_binary_masks_are_an_error(tmp_path: Path, write_image) -> None:
    root = _binary(tmp_path, write_image)
    with pytest.raises(UserError, match=r"two classes, --classes names 3: background, cat, dog"):
        open_segmentation("folder", root, "trainval", classes=CLASSES, binary=True)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    with pytest.raises(UserError, match=r"two classes, .*classes\.txt names 3: .*leave out --binary-masks"):
        open_segmentation("folder", root, "trainval", binary=True)


# demo and COCO


def test_the_demo_set_has_its_background_and_six_shapes(tmp_path: Path) -> None:
    index = open_segmentation("demo", None, "val")
    assert index.class_names == ("background", *DEMO_CLASSES)
    assert len(index) == 80
    assert index.image_ids[0] == 1
    sample = index.sample(0)
    assert sample.mask is not None
    assert sample.mask.max() <= 6
    with pytest.raises(UserError, match="no split 'vall', only train, val, test; did you mean 'val'"):
        open_segmentation("demo", tmp_path / "x", "vall")


def _panoptic(root: Path) -> Path:
    """One 60x40 image whose only segment is of category 3."""
    (root / "annotations/panoptic_train").mkdir(parents=True, exist_ok=True)
    segment = {"id": 5, "category_id": 3, "area": 2400, "bbox": [0, 0, 60, 40], "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": [segment]}],
        "categories": [{"id": 3, "name": "sky", "isthing": 0}, {"id": 4, "name": "cat", "isthing": 1}],
    }
    path = root / "annotations/panoptic_train.json"
    path.write_text(json.dumps(content))
    Image.new("RGB", (60, 40), (5, 0, 0)).save(root / "annotations/panoptic_train/a.png")
    return path


def _polygons() -> dict[str, object]:
    return {
        "annotations": [{"id": 1, "image_id": 7, "category_id": 90, "segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]]}]
    }


@pytest.mark.parametrize(
    ("labels", "has", "expected"),
    [
        pytest.param("auto", "instances", "background", id="auto-instances"),
        pytest.param("auto", "both", "background", id="auto-both"),
        pytest.param("auto", "panoptic", "sky", id="auto-panoptic"),
        pytest.param("instances", "both", "background", id="instances"),
        pytest.param("panoptic", "both", "sky", id="panoptic"),
    ],
)
def test_coco_gives_instances_or_panoptic_labels(labels, has: str, expected: str, tmp_path: Path, coco_root) -> None:
    coco_root(**_polygons())
    if has != "instances":
        _panoptic(tmp_path)
    if has == "panoptic":
        (tmp_path / "annotations/instances_train.json").unlink()
    index = open_segmentation("coco", tmp_path, "train", labels=labels)
    assert index.class_names[0] == expected
    assert index.mask(0).shape == (40, 60)
    assert available_segmentation_splits("coco", tmp_path, labels=labels) == ["train"]


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_an_annotation_file_that_is_named_tells_its_kind(kind: str, tmp_path: Path, coco_root) -> None:
    coco_root(**_polygons())
    _panoptic(tmp_path)
    path = tmp_path / f"annotations/{kind}_train.json"
    index = open_segmentation("coco", None, "train", annotations=path, images=tmp_path / "images")
    assert index.source == path


# arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"name": "vocc"}, r"unknown dataset 'vocc', known are demo, voc, coco, folder; did you", id="name"
        ),
        pytest.param({"name": "coco", "labels": "panotpic"}, r"unknown labels 'panotpic', .*'panoptic'", id="labels"),
        pytest.param(
            {"root": None}, r"dataset 'voc' needs the folder that it lies in: --data-root DIR$", id="voc-root"
        ),
        pytest.param({"name": "folder", "root": None}, r"'folder' needs the folder", id="folder-root"),
        pytest.param({"name": "coco", "root": None}, r"--data-root DIR, or --train-annotations FILE", id="coco-root"),
        pytest.param({"root": Path("/nowhere/at/all")}, r"does not exist; / does. Found there", id="nowhere"),
        pytest.param({"root": Path(__file__)}, r"is a file", id="file"),
        pytest.param({"annotations": Path("x")}, "for dataset 'coco' only", id="annotations"),
        pytest.param({"name": "folder", "images": Path("x")}, "for dataset 'coco' only", id="images"),
        pytest.param({"name": "coco", "images": Path("x")}, "without its annotation file", id="images-alone"),
        pytest.param({"name": "coco", "labels": "masks"}, "mask files beside images are 'folder'", id="coco-masks"),
        pytest.param({"labels": "instances"}, "'instances' are of dataset 'coco' alone", id="voc-instances"),
        pytest.param({"name": "coco", "classes": CLASSES}, "leave out --classes", id="coco-classes"),
        pytest.param({"name": "demo", "classes": CLASSES}, "leave out --classes", id="demo-classes"),
        pytest.param({"name": "coco", "binary": True}, "leave out --binary-masks", id="coco-binary"),
        pytest.param({"name": "demo", "binary": True}, "leave out --binary-masks", id="demo-binary"),
        pytest.param({"name": "coco", "annotations": Path("/no.json")}, r"/no\.json does not exist", id="no-file"),
    ],
)
def test_arguments_that_do_not_go_together_are_errors(arguments, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_segmentation(**{"name": "voc", "root": tmp_path, "split": "train"} | arguments)


# classes of two splits


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        pytest.param(CLASSES, [0, 1, 2, 255], id="the-same"),
        pytest.param(("dog", "background", "cat"), [2, 0, 1, 255], id="other-order"),
        pytest.param(("cat", "dog"), [1, 2, None, 255], id="fewer"),
    ],
)
def test_classes_are_matched_by_name(names, labels, tmp_path: Path, write_image) -> None:
    values = (*range(len(names)), 255)
    root = _binary(tmp_path, write_image, values, count=1)
    index = open_segmentation("folder", root, "trainval", classes=names)
    matched = match_segmentation_classes(index, CLASSES, "the model")
    assert matched.class_names == CLASSES
    assert matched.mask(0)[0, : len(values)].tolist() == [label for label in labels if label is not None]
    assert (matched is index) == (names == CLASSES)
    assert bool(matched.notes[len(index.notes) :]) == (names != CLASSES)
    if len(names) == 2:
        assert "renumbered by name to those of the model; it does not list 'background'" in matched.notes[-1]


def test_other_classes_are_an_error_that_shows_both_sides(tmp_path: Path, write_pair: Write) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    index = open_segmentation("folder", tmp_path, "trainval", classes=("background", "cow"))
    with pytest.raises(UserError, match=r"only .*masks has 'cow'; only the model has 'cat', 'dog'"):
        match_segmentation_classes(index, CLASSES, "the model")


def test_files_are_the_source_of_voc_folder_and_demo(voc_root: Write) -> None:
    assert isinstance(open_segmentation("voc", voc_root("a", train="a"), "train").masks, MaskFiles)
    assert isinstance(open_segmentation("demo", None, "test").masks, MaskFiles)


def test_void_of_any_number_is_255_and_a_note_says_so(tmp_path: Path, write_pair: Write) -> None:
    root = write_pair(tmp_path / "images", tmp_path / "masks", "a", value=0)
    write_pair(tmp_path / "images", tmp_path / "masks", "b", value=7)
    (root / "classes.txt").write_text("0 unlabeled\n7 road\n9 void\n")
    index = open_segmentation("folder", root, "trainval")
    assert index.class_names == ("road",)
    assert _first_labels(index) == [255, 0]
    assert "0 unlabeled, 9 void are no class by name: such pixels are void" in index.notes[0]


def test_void_at_0_of_voc_is_no_background(tmp_path: Path, voc_root: Write) -> None:
    root = voc_root("a", train="a")
    (tmp_path / "classes.txt").write_text("0 void\n1 cat\n")
    assert open_segmentation("voc", root, "train").class_names == ("cat",)


def test_binary_classes_of_a_list_get_the_hint(tmp_path: Path, write_pair: Write) -> None:
    root = write_pair(tmp_path / "images", tmp_path / "masks", "a", value=255)
    (root / "classes.txt").write_text("0 background\n255 crack\n")
    with pytest.raises(UserError, match=r"gives 'crack' the number 255; .* 0 and 255 alone, give --binary-masks"):
        open_segmentation("folder", root, "trainval")
    assert open_segmentation("folder", root, "trainval", binary=True).class_names == ("background", "crack")


@pytest.mark.parametrize("name", ["background", "_background_", "__Background__", "BG"])
def test_the_background_is_known_by_its_names(name: str) -> None:
    assert is_background(name)
    assert not is_background(f"{name} noise")
    assert not is_background("")
