"""The doctor: each fault is found, named, and put right or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effdense.datasets import doctor, doctor_files
from effdense.datasets.coco import open_coco
from effdense.datasets.doctor import COLUMNS, Report, examine
from effdense.datasets.voc import open_voc
from effdense.errors import UserError


def _cell(report: Report, column: str, row: int = 0) -> int:
    return int(report.rows[row][COLUMNS.index(column)])


def _annotations(*boxes: list[Any], **changes: Any) -> list[dict[str, Any]]:
    return [{"id": i, "image_id": 7, "category_id": 3, "bbox": box} | changes for i, box in enumerate(boxes, start=1)]


def _examine(root: Path, **options: Any) -> Report:
    return examine({"train": open_coco(root, "train")}, **options)


def test_sound_data_gives_a_table_and_no_error(coco_root) -> None:
    report = _examine(coco_root())
    report.raise_errors()
    assert report.rows == [("train", "2", "2", "1", "0", "1", "0", "0", "0")]
    assert report.errors == []
    assert report.lines()[0].split() == list(COLUMNS)
    assert report.lines()[1].split() == list(report.rows[0])


@pytest.mark.parametrize(
    ("bbox", "expected", "clipped"),
    [
        pytest.param([0, 0, 60, 40], [0, 0, 60, 40], 0, id="whole-image"),
        pytest.param([50, 30, 20, 20], [50, 30, 60, 40], 1, id="right-and-bottom"),
        pytest.param([-5, -0.5, 20, 20], [0, 0, 15, 19.5], 1, id="left-and-top"),
        pytest.param([1, 1, 59.005, 39], [1, 1, 60, 40], 0, id="rounding"),
        pytest.param([60, 0, 5, 5], None, 0, id="wholly-outside"),
        pytest.param([5, 5, 0, 5], None, 0, id="no-width"),
        pytest.param([5, 5, 5, 0.001], None, 0, id="hardly-any-height"),
        pytest.param([5, 5, -3, 5], None, 0, id="negative-width"),
        pytest.param([5, 5, 0.5, 0.5], [5, 5, 5.5, 5.5], 0, id="half-a-pixel"),
    ],
)
def test_boxes_are_clipped_or_dropped_and_counted(bbox, expected, clipped: int, coco_root) -> None:
    report = _examine(coco_root(annotations=_annotations([1, 1, 9, 9], bbox)))
    report.raise_errors()
    cleaned = report.cleaned["train"]
    assert cleaned.boxes_xyxy[1:].tolist() == ([] if expected is None else [expected])
    assert (_cell(report, "clipped"), _cell(report, "dropped")) == (clipped, int(expected is None))
    assert cleaned.boxes_written_xywh[1:].tolist() == ([] if expected is None else [bbox])


@pytest.mark.parametrize("bbox", [[5, 5, 0, 5], [60, 0, 5, 5], [50, 30, 20, 20], [5, 5, -3, 5]], ids=str)
def test_for_evaluation_every_box_stays_as_the_file_has_it(bbox, coco_root) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "gone.jpg"}]
    report = _examine(coco_root(images=images, annotations=_annotations([1, 1, 9, 9], bbox)), skip_broken=True)
    report.raise_errors()
    sound = report.sound["train"]
    x, y, width, height = bbox
    assert sound.boxes_xyxy.tolist() == [[1, 1, 10, 10], [x, y, x + width, y + height]]
    assert sound.boxes_written_xywh.tolist() == [[1, 1, 9, 9], bbox]
    assert sound.image_ids.tolist() == [7]
    assert sound.sizes_hw.tolist() == [[40, 60]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_is_an_error_with_its_id(value: float, coco_root) -> None:
    report = _examine(coco_root(annotations=_annotations([1, 1, 9, 9], [value, 1, 5, 5])))
    assert len(report.errors) == 1
    assert "annotation id 2: the box is not finite" in report.errors[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"categories": [{"id": 90, "name": "cat"}]}, r"annotation id 2: 'category id 3' is not among", id="category"
        ),
        pytest.param(
            {"annotations": _annotations([1, 1, 5, 5], [2, 2, 5, 5], id=4)}, r"annotation ids .*but 4 come", id="twice"
        ),
        pytest.param({"annotations": []}, r"train .* has no example of any class: 2 images", id="no-positive"),
        pytest.param(
            {"annotations": _annotations([1, 1, 5, 5], iscrowd=1)}, r"no example of any class", id="crowd-only"
        ),
        pytest.param({"annotations": _annotations([1, 1, 0, 5])}, r"no example of any class", id="nothing-with-area"),
        pytest.param({"annotations": [], "images": []}, r"no example of any class: 0 images", id="no-images"),
    ],
)
def test_what_would_spoil_a_run_is_an_error(changes, message: str, coco_root) -> None:
    report = _examine(coco_root(**changes))
    with pytest.raises(UserError, match=message) as caught:
        report.raise_errors()
    assert "instances_train.json" in str(caught.value)


def test_duplicate_image_ids_are_an_error_and_duplicate_files_a_warning(coco_root) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "a.jpg"}]
    report = _examine(coco_root(images=images))
    assert any("image ids must be unique, but 7" in error for error in report.errors)
    assert any("1 files more than once: a.jpg" in warning for warning in report.warnings)


def test_a_name_that_is_no_class_is_an_error_with_file_and_line(tmp_path: Path, write_voc) -> None:
    write_voc({"x": [("cat", (1, 1, 9, 9)), ("cta", (1, 1, 9, 9))]}, {"train": ["x"]})
    (tmp_path / "classes.txt").write_text("cat\n")
    report = examine({"train": open_voc(tmp_path, "train")})
    assert report.errors == [f"{tmp_path}/Annotations/x.xml:5: 'cta' is not among the classes (cat)"]


@pytest.mark.parametrize("how", ["missing", "cut", "text"])
def test_broken_files_are_errors_or_left_out_and_counted(how: str, coco_root) -> None:
    root = coco_root()
    path = root / "images/b.jpg"
    data = path.read_bytes()
    path.unlink() if how == "missing" else path.write_bytes(b"no" if how == "text" else data[:500])
    report = _examine(root)
    assert len(report.errors) == 1
    assert "b.jpg" in report.errors[0]
    assert _cell(report, "broken") == 1
    skipping = _examine(root, skip_broken=True)
    skipping.raise_errors()
    assert (_cell(skipping, "broken"), _cell(skipping, "images")) == (1, 1)
    assert skipping.cleaned["train"].image_ids.tolist() == [7]
    assert any("1 broken images are left out" in warning and "b.jpg" in warning for warning in skipping.warnings)


def _corrupt_in_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)


def test_an_image_corrupt_in_the_middle_is_left_out_before_training_meets_it(coco_root, write_image) -> None:
    images = [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in ((7, "a.jpg"), (9, "c.png"))]
    root = coco_root(images=images)
    _corrupt_in_the_middle(write_image(root / "images/c.png"))
    with pytest.raises(UserError, match=r"c\.png cannot be read"):
        open_coco(root, "train").sample(1)
    report = _examine(root, skip_broken=True)
    report.raise_errors()
    assert (_cell(report, "broken"), _cell(report, "images")) == (1, 1)
    assert any("1 broken images are left out" in warning and "c.png" in warning for warning in report.warnings)


def test_without_skip_broken_no_pixel_is_read(coco_root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_rgb", lambda *_: pytest.fail("decoded"))
    _examine(coco_root()).raise_errors()


@pytest.mark.parametrize("stated", [{"width": 41, "height": 60}, {"width": 40, "height": 60}, {}])
def test_skip_broken_leaves_out_no_image_for_its_size_or_orientation(stated: dict[str, int], coco_root) -> None:
    root = coco_root(images=[{"id": 7, "file_name": "a.jpg"} | stated, {"id": 9, "file_name": "b.jpg"}])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(root / "images/a.jpg", exif=exif)
    report = _examine(root, skip_broken=True)
    assert _cell(report, "broken") == 0
    assert len(report.errors) == (stated.get("width") == 41)


def test_no_example_after_leaving_out_broken_images_is_an_error(coco_root) -> None:
    root = coco_root()
    (root / "images/a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no example"):
        _examine(root, skip_broken=True).raise_errors()


@pytest.mark.parametrize(("orientation", "errors"), [(1, 1), (6, 0)])
def test_a_size_mismatch_is_an_error_unless_exif_explains_it(orientation: int, errors: int, coco_root) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 60}, {"id": 9, "file_name": "b.jpg"}]
    root = coco_root(images=images)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(root / "images/a.jpg", exif=exif)
    report = _examine(root)
    assert len(report.errors) == errors
    assert all("a.jpg is 60x40 pixels, but its annotation states 40x60" in error for error in report.errors)
    assert report.cleaned["train"].sizes_hw.tolist() == [[60, 40], [40, 60]]
    if not errors:
        assert report.cleaned["train"].sample(0).original_size_hw == (60, 40)


def test_sizes_that_are_not_stated_are_filled_in_before_clipping(coco_root) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg", "width": 0, "height": 40}]
    report = _examine(coco_root(images=images, annotations=_annotations([50, 30, 50, 50])))
    assert report.cleaned["train"].sizes_hw.tolist() == [[40, 60], [40, 60]]
    assert report.cleaned["train"].boxes_xyxy.tolist() == [[50, 30, 60, 40]]


def test_classes_without_examples_are_a_warning(coco_root) -> None:
    report = _examine(coco_root())
    assert report.warnings == ["train has no example of 2 classes: ant, bee"]  # the one ant is a crowd


def test_without_examples_in_another_split_it_is_a_warning(coco_root) -> None:
    report = examine({"val": open_coco(coco_root(annotations=[]), "train")})
    report.raise_errors()
    assert any("val" in warning and "no example of any class" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("names", "shared"), [(("c.jpg", "d.jpg"), 1), (("a.jpg", "d.jpg"), 0)], ids=["renamed", "same-name"]
)
def test_images_shared_between_splits_are_told_by_content(
    names, shared: int, coco_root, coco_content, write_image
) -> None:
    root = coco_root()
    for seed, name in enumerate(names, start=10):
        write_image(root / "val" / name, seed=seed)
    if shared:
        shutil.copy(root / "images/a.jpg", root / "val" / names[0])
    images = [{"id": i, "file_name": name} for i, name in zip((7, 9), names, strict=True)]
    (root / "annotations/instances_val.json").write_text(json.dumps(coco_content(images=images)))
    report = examine({"train": open_coco(root, "train"), "val": open_coco(root, "val")})
    warnings = [warning for warning in report.warnings if "flatter" in warning]
    assert len(warnings) == shared
    assert all(warning.startswith("1 images of val are in train too") and "c.jpg" in warning for warning in warnings)


def _two_splits(root: Path, content: dict[str, Any], first: bytes, second: bytes) -> dict[str, Any]:
    for split, data in (("train", first), ("val", second)):
        (root / split).mkdir()
        (root / split / "a.bmp").write_bytes(data)
        content["images"] = [{"id": 7, "file_name": "a.bmp"}]
        (root / f"{split}.json").write_text(json.dumps(content))
    return {split: open_coco(root, split) for split in ("train", "val")}


def _bitmap(path: Path) -> bytes:
    """A picture of 240 kB, more than is looked at first."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 400, 3), np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(("changed", "shared"), [(200_000, 0), (None, 1)], ids=["differ-late", "same"])
def test_images_that_only_begin_alike_are_not_called_shared(
    changed: int | None, shared: int, tmp_path: Path, coco_content
) -> None:
    first = _bitmap(tmp_path / "x.bmp")
    second = bytearray(first)
    if changed:
        second[changed] ^= 1
    report = examine(_two_splits(tmp_path, coco_content(annotations=_annotations([1, 1, 9, 9])), first, bytes(second)))
    assert sum("flatter" in warning for warning in report.warnings) == shared


def test_images_of_one_length_that_begin_differently_are_not_read_in_full(
    tmp_path: Path, coco_content, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _bitmap(tmp_path / "x.bmp")
    second = bytearray(first)
    second[1000] ^= 1
    splits = _two_splits(tmp_path, coco_content(annotations=_annotations([1, 1, 9, 9])), first, bytes(second))
    read: list[int] = []
    digest = doctor_files._digest

    def watched(path: Path, num_bytes: int) -> bytes:
        read.append(num_bytes)
        return digest(path, num_bytes)

    monkeypatch.setattr(doctor_files, "_digest", watched)
    report = examine(splits)
    assert not any("flatter" in warning for warning in report.warnings)
    assert read == [65_536, 65_536]


def test_notes_of_reading_are_passed_on_once(write_voc) -> None:
    root = write_voc({f"{i:02d}": [("cat", (2, 2, 9, 9))] for i in range(20)})
    report = examine({split: open_voc(root, split) for split in ("train", "val")})
    assert len(report.notes) == 1
    assert f"note: {report.notes[0]}" in report.lines()


def test_ten_errors_are_shown_and_the_rest_counted(coco_root) -> None:
    boxes = [[float("nan"), 1, 2, 3]] * 13
    with pytest.raises(UserError, match=r"annotation id 10: .*\nand 4 more errors") as caught:
        _examine(coco_root(annotations=_annotations(*boxes))).raise_errors()
    assert len(str(caught.value).splitlines()) == 11


def test_what_was_handed_in_stays_as_it_was(coco_root) -> None:
    index = open_coco(coco_root(annotations=_annotations([-5, 1, 9, 9], [1, 1, 0, 0])), "train")
    before = index.boxes_xyxy.copy()
    examine({"train": index})
    assert np.array_equal(index.boxes_xyxy, before)
    assert index.num_boxes == 2


def test_a_fault_that_two_splits_share_is_said_once() -> None:
    with pytest.raises(UserError) as error:
        Report(errors=["a.jpg is broken", "a.jpg is broken", "b.jpg is broken"]).raise_errors()
    assert str(error.value) == "a.jpg is broken\nb.jpg is broken"
