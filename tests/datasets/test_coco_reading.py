"""COCO JSON: layouts, ids, and what is wrong with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effdense.datasets.coco import coco_splits, open_coco
from effdense.errors import UserError

LAYOUTS = {
    "official-2017": ("annotations/instances_train2017.json", "train2017", "train"),
    "official-2014": ("annotations/instances_val2014.json", "val2014", "val"),
    "official-by-its-own-name": ("annotations/instances_train2014.json", "train2014", "train2014"),
    "official-images-folder": ("annotations/instances_train2017.json", "images/train2017", "train"),
    "exported-train": ("train/_annotations.coco.json", "train", "train"),
    "exported-valid": ("valid/_annotations.coco.json", "valid", "val"),
    "exported-val": ("val/_annotations.coco.json", "val", "val"),
    "one-images-folder": ("annotations/instances_train.json", "images", "train"),
    "images-by-split": ("annotations/instances_train.json", "images/train", "train"),
    "images-by-split-valid": ("annotations/instances_val.json", "images/valid", "val"),
    "images-by-split-validation": ("annotations/instances_valid.json", "images/validation", "val"),
    "plain-name": ("annotations/train.json", "train", "train"),
    "all-in-the-root": ("train.json", ".", "train"),
}


def _write(root: Path, annotations: str, images: str, content: dict[str, Any], write_image) -> None:
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(content))
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        write_image(root / images / name, seed=seed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_found(layout: str, tmp_path: Path, coco_content, write_image) -> None:
    annotations, images, split = LAYOUTS[layout]
    _write(tmp_path, annotations, images, coco_content(), write_image)
    index = open_coco(tmp_path, split)
    assert (len(index), index.num_boxes, index.split) == (2, 2, split)
    assert index.sample(1).image.shape == (40, 60, 3)
    assert split in coco_splits(tmp_path) or split == "train2014"


def test_the_newest_year_is_taken(tmp_path: Path, coco_content, write_image) -> None:
    for year in (2014, 2017):
        _write(tmp_path, f"annotations/instances_train{year}.json", f"train{year}", coco_content(), write_image)
    assert open_coco(tmp_path, "train").source.name == "instances_train2017.json"
    assert open_coco(tmp_path, "train").images_dir.name == "train2017"


def test_named_files_need_no_layout(tmp_path: Path, coco_content, write_image) -> None:
    _write(tmp_path, "here/x.json", "there/pictures", coco_content(), write_image)
    index = open_coco(None, "train", annotations=tmp_path / "here/x.json", images=tmp_path / "there/pictures")
    assert index.sample(0).image_id == 7


def test_file_names_may_hold_folders(tmp_path: Path, coco_content, write_image) -> None:
    images = [{"id": 7, "file_name": "deep/er/a.jpg", "width": 60, "height": 40}]
    write_image(tmp_path / "images/deep/er/a.jpg")
    (tmp_path / "train.json").write_text(json.dumps(coco_content(images=images)))
    index = open_coco(tmp_path, "train")
    assert index.sample(0).image_id == 7
    assert index.image_names == ["deep/er/a"]


def test_sparse_ids_become_labels_in_order_of_the_ids(coco_root) -> None:
    index = open_coco(coco_root(), "train")
    assert index.class_names == ("ant", "bee", "cat")
    assert index.category_ids == (3, 12, 90)
    assert index.labels.tolist() == [2, 0]


def test_annotations_in_any_order_find_their_images(coco_root) -> None:
    rows = [(1, 9), (2, 7), (3, 9), (4, 7)]
    annotations = [{"id": a, "image_id": i, "category_id": 3, "bbox": [a, a, 5, 5]} for a, i in rows]
    index = open_coco(coco_root(annotations=annotations), "train")
    assert index.annotation_ids.tolist() == [2, 4, 1, 3]
    assert index.offsets.tolist() == [0, 2, 4]
    assert index.boxes_xyxy[:, 0].tolist() == [2, 4, 1, 3]


@pytest.mark.parametrize(
    ("annotation", "bbox", "area"),
    [
        pytest.param(
            {"segmentation": [[1, 2, 11, 2, 5, 9.5], [0, 4, 3, 4, 3, 5]]}, [0, 2, 11, 7.5], 82.5, id="polygons"
        ),
        pytest.param({"segmentation": {"size": [40, 60], "counts": [85, 3, 37, 3, 2272]}}, [2, 5, 2, 3], 6, id="runs"),
        pytest.param({"bbox": [1, 2, 3, 4], "segmentation": []}, [1, 2, 3, 4], 12, id="bbox-without-area"),
        pytest.param({"bbox": [], "segmentation": [[1, 1, 2, 1, 2, 3]]}, [1, 1, 1, 2], 2, id="empty-bbox"),
        pytest.param({"bbox": [1, 2, 3, 4], "area": 5, "ignore": 1}, [1, 2, 3, 4], 5, id="ignore"),
        pytest.param({"bbox": [1, 2, 0, 4], "area": 0}, [1, 2, 0, 4], 0, id="without-extent"),
    ],
)
def test_boxes_come_from_bbox_or_else_from_the_shape(annotation, bbox, area, coco_root) -> None:
    annotation = {"id": 5, "image_id": 7, "category_id": 3} | annotation
    index = open_coco(coco_root(annotations=[annotation]), "train")
    assert index.boxes_written_xywh.tolist() == [bbox]
    assert index.areas.tolist() == [area]
    assert index.difficult.tolist() == [bool(annotation.get("ignore"))]


def test_a_plain_exception_of_pycocotools_is_an_error_that_names_the_annotation(
    coco_root, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycocotools import mask

    def refuse(*_: Any) -> None:
        raise Exception("input type is not supported.")

    monkeypatch.setattr(mask, "frPyObjects", refuse)
    shape = {"size": [40, 60], "counts": [1, 2]}
    with pytest.raises(UserError, match=r"annotation id 5: no bbox, and its .*input type is not supported"):
        open_coco(coco_root(annotations=[{"id": 5, "image_id": 7, "category_id": 3, "segmentation": shape}]), "train")


@pytest.mark.parametrize("part", ["annotations", "images"])
def test_empty_lists_open_as_nothing(part: str, coco_root) -> None:
    index = open_coco(coco_root(**({"annotations": []} | {part: []})), "train")
    assert len(index) == (0 if part == "images" else 2)
    assert index.num_boxes == 0
    assert index.to_coco()["annotations"] == []


def test_an_unused_parent_category_is_left_out_and_said(coco_root) -> None:
    parent = {"id": 0, "name": "cells", "supercategory": "none"}
    children = [{"id": i, "name": name, "supercategory": "cells"} for i, name in ((3, "rbc"), (90, "wbc"))]
    index = open_coco(coco_root(categories=[parent, *children]), "train")
    assert index.class_names == ("rbc", "wbc")
    assert "cells" in index.notes[0]
    used = [{"id": 1, "image_id": 7, "category_id": 0, "bbox": [1, 1, 5, 5]}]
    assert open_coco(coco_root(categories=[parent, *children], annotations=used), "train").class_names[0] == "cells"


def test_a_category_that_is_not_listed_is_kept_for_the_doctor(coco_root) -> None:
    index = open_coco(coco_root(categories=[{"id": 3, "name": "ant"}]), "train")
    assert index.labels.tolist() == [-1, 0]
    assert index.unknown_names == ("category id 90",)


def _annotation(**changes: Any) -> dict[str, Any]:
    row = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2]} | changes
    return {"annotations": [{key: value for key, value in row.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            _annotation(bbox=[1, 2, 3]), r"annotation id 5: bbox must be four numbers.*\[1, 2, 3\]", id="three"
        ),
        pytest.param(_annotation(bbox="1 2 3 4"), r"annotation id 5: bbox must be four numbers", id="text"),
        pytest.param(_annotation(bbox=[1, 2, None, 4]), r"annotation id 5: bbox must be four numbers", id="null"),
        pytest.param(_annotation(bbox=...), r"annotation id 5: neither bbox nor segmentation", id="no-box"),
        pytest.param(_annotation(bbox=..., segmentation=[[1, 2, 3]]), r"annotation id 5: no bbox, and its", id="odd"),
        pytest.param(
            _annotation(bbox=..., segmentation={"size": [40, 60], "counts": 3}),
            r"annotation id 5: no bbox, and its",
            id="runs-are-a-number",
        ),
        pytest.param(
            _annotation(bbox=..., segmentation={"size": [40, 60], "counts": ["x"]}),
            r"annotation id 5: no bbox, and its",
            id="runs-are-text",
        ),
        pytest.param(_annotation(image_id=8), r"annotation id 5 \(image id 8\)", id="stray"),
        pytest.param(_annotation(image_id=...), r"annotation id 5 .*at fault: 'image_id'", id="no-image"),
        pytest.param(_annotation(category_id="ant"), r"annotation id 5 .*ant", id="category-name"),
        pytest.param(_annotation(image_id=7.5), r"annotation id 5 .*7\.5", id="fraction"),
        pytest.param({"annotations": ["x"]}, r"annotation id missing \(number 0", id="no-dict"),
        pytest.param({"images": [{"id": 7}], "annotations": []}, r"image id 7: .*file_name", id="no-file-name"),
        pytest.param({"images": [3], "annotations": []}, r"image id number 0", id="image-no-dict"),
        pytest.param({"images": []}, r"2 annotations belong to no listed image", id="no-images"),
        pytest.param({"categories": [{"id": 3}]}, r"category needs .* 'name'", id="category-without-name"),
        pytest.param(
            {"categories": [{"id": i, "name": "x"} for i in (3, 90)]}, r"must be unique: 3 x, 90 x", id="twice"
        ),
        pytest.param({"categories": None}, r"expected lists images, annotations, categories", id="no-categories"),
    ],
)
def test_a_broken_structure_is_an_error_with_file_and_id(changes, message: str, coco_root) -> None:
    root = coco_root(**changes)
    with pytest.raises(UserError, match=message) as caught:
        open_coco(root, "train")
    assert "instances_train.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('{\n"images": [],\n"annotations": [}\n', r"instances_train\.json:3: not valid JSON", id="syntax"),
        pytest.param("", r"instances_train\.json:1: not valid JSON", id="empty"),
        pytest.param("[]", r"expected lists .*, got list; this may be a results file", id="results"),
        pytest.param('{"a": 1}', r"got keys a", id="other"),
        pytest.param("3", r"got int", id="number"),
    ],
)
def test_a_file_that_is_no_coco_json_is_an_error_with_its_line(text: str, message: str, coco_root) -> None:
    root = coco_root()
    (root / "annotations/instances_train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_coco(root, "train")


def test_a_file_that_is_no_text_is_an_error(coco_root) -> None:
    root = coco_root()
    (root / "annotations/instances_train.json").write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(UserError, match=r"instances_train\.json:1: not valid JSON: the text is not UTF-8"):
        open_coco(root, "train")


def test_a_folder_without_annotations_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match=r"annotations/instances_val\*\.json.*Found there: pictures/\."):
        open_coco(tmp_path, "val")


def test_a_split_that_is_missing_is_an_error_that_names_those_there(coco_root) -> None:
    with pytest.raises(UserError, match=r"no COCO annotations for split 'val'.*It has annotations for train\."):
        open_coco(coco_root(), "val")


def test_a_named_image_folder_that_is_missing_is_an_error(coco_root) -> None:
    root = coco_root()
    with pytest.raises(UserError, match=r"image folder .*/nowhere does not exist; .*images/"):
        open_coco(None, "train", annotations=root / "annotations/instances_train.json", images=root / "nowhere")


def test_images_that_are_nowhere_are_an_error_that_names_the_folders(tmp_path: Path, coco_content) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(coco_content()))
    with pytest.raises(UserError, match=r"looked for a\.jpg in .*images"):
        open_coco(tmp_path, "train")


def test_full_precision_boxes_are_kept_for_evaluation(coco_root) -> None:
    bbox = [0.1, 33.333333, 1 / 3, 5.07]
    index = open_coco(coco_root(annotations=[{"id": 1, "image_id": 7, "category_id": 3, "bbox": bbox}]), "train")
    assert index.to_coco()["annotations"][0]["bbox"] == bbox
    assert index.boxes_xyxy.dtype == np.float32


def test_flags_written_as_text_are_understood(coco_root) -> None:
    box = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}
    annotations = [
        box | {"id": 1, "iscrowd": "0", "ignore": "1"}, box | {"id": 2, "iscrowd": "1", "ignore": "false"},
    ]  # fmt: skip
    index = open_coco(coco_root(annotations=annotations), "train")
    assert index.crowd.tolist() == [False, True]
    assert index.difficult.tolist() == [True, False]


HUGE = {
    "image": ({"images": [{"id": 2**70, "file_name": "a.jpg", "width": 6, "height": 4}]}, r"image id 1180.*64 bits"),
    "width": ({"images": [{"id": 1, "file_name": "a.jpg", "width": 2**70, "height": 4}]}, r"image id 1.*64 bits"),
    "category": ({"categories": [{"id": 2**70, "name": "cat"}]}, r"each category needs an integer id .*64 bits"),
    "infinite": ({"categories": [{"id": float("inf"), "name": "cat"}]}, r"each category needs an integer id"),
    "name": ({"images": [{"id": 1, "file_name": "\ud800.jpg"}], "annotations": []}, r"'\\ud800\.jpg' is not UTF-8"),
}


@pytest.mark.parametrize("case", HUGE)
def test_numbers_and_names_that_no_column_holds_are_refused(case: str, coco_root) -> None:
    changes, message = HUGE[case]
    with pytest.raises(UserError, match=message):
        open_coco(coco_root(**changes), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[" * 200_000, "nested too deeply", id="nested"),
        pytest.param("1" * 10_000, "cannot be read", id="digits"),
        pytest.param("", r"train\.json:1: not valid JSON", id="empty"),
    ],
)
def test_json_that_cannot_be_parsed_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_coco(tmp_path, "train")
