"""Opening by name, and classes of two splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effdense.datasets.coco import open_coco
from effdense.datasets.opening import available_splits, match_classes, open_dataset
from effdense.errors import UserError


def test_each_name_opens_its_kind(coco_root, write_voc) -> None:
    root = coco_root()
    assert open_dataset("coco", root, "train").name == "coco"
    assert available_splits("coco", root) == ["train"]
    write_voc({"x": []}, {"train": ["x"], "val": ["x"]})
    assert open_dataset("voc", root, "val").name == "voc"
    assert available_splits("voc", root) == ["train", "val"]
    assert available_splits("demo", None) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"name": "cocoo"}, r"unknown dataset 'cocoo', known are demo, coco, voc; did you mean 'coco'", id="name"
        ),
        pytest.param({"name": "voc", "root": None}, "needs the folder", id="voc-without-root"),
        pytest.param({"name": "coco", "root": None}, "needs the folder", id="coco-without-root"),
        pytest.param({"name": "voc", "annotations": Path("x")}, "for dataset 'coco' only", id="voc-with-file"),
        pytest.param({"name": "demo", "images": Path("x")}, "for dataset 'coco' only", id="demo-with-images"),
        pytest.param({"name": "coco", "images": Path("x")}, "without its annotation file", id="images-alone"),
        pytest.param(
            {"name": "coco", "root": Path("/nowhere/at/all")}, r"does not exist; / does. Found there", id="coco-root"
        ),
        pytest.param(
            {"name": "voc", "root": Path("/nowhere/at/all")}, r"does not exist; / does. Found there", id="voc-root"
        ),
        pytest.param({"name": "voc", "root": Path(__file__)}, r"is a file", id="root-is-file"),
        pytest.param({"name": "coco", "annotations": Path("/no.json")}, r"/no\.json does not exist", id="no-file"),
    ],
)
def test_arguments_that_do_not_go_together_are_errors(arguments, message: str, tmp_path: Path) -> None:
    arguments = {"name": "coco", "root": tmp_path, "split": "train"} | arguments
    with pytest.raises(UserError, match=message):
        open_dataset(**arguments)


def _with_classes(path: Path, content: dict, names: dict[int, str], used: list[int]) -> Path:
    content["categories"] = [{"id": i, "name": name} for i, name in names.items()]
    content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": used[i], "bbox": [1, 1, 5, 5]} for i in range(len(used))
    ]
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("names", "used", "labels", "category_ids"),
    [
        pytest.param({1: "a", 2: "b", 3: "c"}, [3, 1], [2, 0], (1, 2, 3), id="the-same"),
        pytest.param({1: "c", 2: "b", 3: "a"}, [3, 1], [0, 2], (3, 2, 1), id="other-order"),
        pytest.param({5: "a", 6: "b", 9: "c"}, [9, 6], [2, 1], (5, 6, 9), id="other-ids"),
        pytest.param({7: "c"}, [7, 7], [2, 2], (8, 9, 7), id="fewer"),
        pytest.param({3: "a", 2: "c", 1: "b"}, [4, 1], [-1, 1], (3, 1, 2), id="unknown-stays-unknown"),
    ],
)
def test_classes_are_matched_by_name(
    names, used, labels, category_ids, tmp_path: Path, coco_root, coco_content
) -> None:
    coco_root()
    ours = {1: "a", 2: "b", 3: "c"}
    train = open_coco(None, "train", annotations=_with_classes(tmp_path / "t.json", coco_content(), ours, [1]))
    val = open_coco(None, "val", annotations=_with_classes(tmp_path / "v.json", coco_content(), names, used))
    matched = match_classes(val, train.class_names, train.source)
    assert matched.class_names == ("a", "b", "c")
    assert matched.labels.tolist() == labels
    assert matched.category_ids == category_ids
    assert bool(matched.notes) == (names != ours and (tuple(names.values()) != ("a", "b", "c")))
    known = [annotation["category_id"] for annotation in matched.to_coco()["annotations"]]
    assert known == [i for i in used if i in names]


def test_other_classes_are_an_error_that_shows_both_sides(tmp_path: Path, coco_root, coco_content) -> None:
    coco_root()
    train = open_coco(
        None, "train", annotations=_with_classes(tmp_path / "t.json", coco_content(), {1: "a", 2: "b"}, [1])
    )
    val = open_coco(None, "val", annotations=_with_classes(tmp_path / "v.json", coco_content(), {1: "a", 2: "B"}, [1]))
    with pytest.raises(UserError, match=r"only .*v\.json has 'B'; only .*t\.json has 'b'"):
        match_classes(val, train.class_names, train.source)
