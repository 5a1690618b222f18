"""The doctor of masks: each fault is found, named, and put right or refused; pixels are counted exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effdense.datasets.index import pack_names
from effdense.datasets.mask_files import MaskFiles
from effdense.datasets.segmentation_doctor import CLASS_COLUMNS, COLUMNS, MaskReport, count_labels, examine_masks
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.datasets.segmentation_opening import match_segmentation_classes, open_segmentation
from effdense.errors import UserError

CLASSES = ("background", "cat", "dog")
HALF = np.repeat(np.array([[0], [1]], np.uint8), 60, axis=1).repeat(20, axis=0)  # (40, 60)
MIXED = np.concatenate([HALF[:, :30], np.full((40, 30), 2, np.uint8)], axis=1)
Write = Callable[..., Path]


@pytest.fixture
def write_set(tmp_path: Path, write_image, write_mask) -> Write:
    """Write a folder of images and masks, {split: {name: mask values}}."""

    def write(**splits: dict[str, Any]) -> Path:
        for number, (split, masks) in enumerate(splits.items()):
            (tmp_path / f"{split}.txt").write_text("".join(f"{name}\n" for name in masks))
            for seed, (name, values) in enumerate(masks.items()):
                write_image(tmp_path / "images" / f"{name}.jpg", seed=100 * number + seed)
                write_mask(tmp_path / "masks" / f"{name}.png", values)
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        return tmp_path

    return write


def _open(root: Path, split: str = "train", **options: Any) -> SegmentationIndex:
    return open_segmentation("folder", root, split, **{"classes": CLASSES} | options)


def _examine(root: Path, *splits: str, **options: Any) -> MaskReport:
    return examine_masks({split: _open(root, split) for split in splits or ("train",)}, **options)


def _cell(report: MaskReport, column: str, row: int = 0) -> str:
    return report.rows[row][COLUMNS.index(column)]


def test_sound_data_gives_tables_and_no_error(write_set: Write) -> None:
    report = _examine(write_set(train={"a": HALF, "b": MIXED}))
    report.raise_errors()
    assert report.warnings == []
    assert report.rows == [("train", "2", "100 %", "0 %", "0", "0")]
    assert report.class_rows == [
        ("background", "37.50 %", "2"), ("cat", "37.50 %", "2"), ("dog", "25.00 %", "1"),
    ]  # fmt: skip
    lines = report.lines()
    assert lines[0].split() == list(CLASS_COLUMNS)
    assert [line.split()[0] for line in lines[1:4]] == list(CLASSES)
    assert lines[4].split() == list(COLUMNS)
    assert len(lines) == 6
    assert report.pixel_counts["train"].tolist() == [1800, 1800, 1200]
    assert report.pixel_counts["train"].dtype == np.int64


def test_sizes_are_filled_in_from_the_masks_and_what_was_handed_in_stays(write_set: Write) -> None:
    index = _open(write_set(train={"a": HALF}))
    report = examine_masks({"train": index})
    assert report.sound["train"].sizes_hw.tolist() == [[40, 60]]
    assert index.sizes_hw.tolist() == [[0, 0]]


def test_void_is_counted_apart_and_images_without_a_label_are_blank(write_set: Write) -> None:
    half_void = np.where(HALF == 0, 255, HALF)
    report = _examine(write_set(train={"a": MIXED, "b": half_void, "c": 255}))
    report.raise_errors()
    assert report.rows == [("train", "3", "50.00 %", "50.00 %", "1", "0")]
    assert report.pixel_counts["train"].tolist() == [600, 600 + 1200, 1200]
    assert report.class_rows[0] == ("background", "16.67 %", "1")


def test_a_small_share_never_reads_as_none(tmp_path: Path, write_image, write_mask) -> None:
    write_image(tmp_path / "images/a.jpg", (400, 400))
    speck = np.zeros((400, 400))
    speck[3, 3] = 1
    write_mask(tmp_path / "masks/a.png", speck)
    report = examine_masks({"train": _open(tmp_path, "trainval")})
    assert [row[1] for row in report.class_rows] == ["99.99 %", "<0.01 %", "0 %"]


@pytest.mark.parametrize(
    ("splits", "names", "message"),
    [
        pytest.param({"train": {}}, ["train"], r"train \(.*masks\) has no image$", id="empty-train"),
        pytest.param({"train": {"a": MIXED}, "val": {}}, ["train", "val"], r"val .* has no image$", id="empty-val"),
        pytest.param({"train": {"a": 255}}, ["train"], r"train .*has no labelled pixel: its masks are 255", id="void"),
        pytest.param(
            {"train": {"a": MIXED, "b": 7}},
            ["train"],
            r"b\.png: value 7 at x 0, y 0 is no class; the classes are 0 background, 1 cat, 2 dog, and 255 is void",
            id="stray-value",
        ),
        pytest.param(
            {"train": {"a": MIXED, "b": MIXED[:20]}},
            ["train"],
            r"mask .*b\.png is 60x20 pixels, but its image .*b\.jpg is 60x40; a mask needs the size of its image",
            id="size",
        ),
        pytest.param(
            {"train": {"a": MIXED, "b": MIXED.T}}, ["train"], r"b\.png is 40x60 pixels, but its image", id="turned"
        ),
    ],
)
def test_what_would_spoil_a_run_is_an_error(splits, names, message: str, tmp_path: Path, write_set: Write) -> None:
    root = write_set(**{"other": {"z": MIXED}} | splits)
    report = _examine(root, *names)
    assert len(report.errors) == 1
    with pytest.raises(UserError, match=message):
        report.raise_errors()
    assert _examine(root, *names, skip_broken=True).errors == report.errors  # no file is broken in these


def test_of_many_files_with_stray_values_the_first_ten_are_listed_each(write_set: Write) -> None:
    report = _examine(write_set(train={f"{i:02d}": 50 + i for i in range(13)}))
    assert len(report.errors) == 13
    with pytest.raises(UserError, match=r"09\.png: value 59 .*\nand 3 more errors$") as caught:
        report.raise_errors()
    assert len(str(caught.value).splitlines()) == 11


@pytest.mark.parametrize("what", ["images/b.jpg", "masks/b.png"])
@pytest.mark.parametrize("how", ["missing", "cut", "text"])
def test_broken_files_are_errors_or_left_out_and_counted(what: str, how: str, write_set: Write) -> None:
    root = write_set(train={"a": MIXED, "b": HALF, "c": 2})
    path = root / what
    data = path.read_bytes()
    path.unlink() if how == "missing" else path.write_bytes(b"no" if how == "text" else data[: len(data) // 2])
    report = _examine(root)
    assert len(report.errors) == 1
    assert what in report.errors[0]
    assert _cell(report, "broken") == "1"
    skipping = _examine(root, skip_broken=True)
    skipping.raise_errors()
    assert (_cell(skipping, "broken"), _cell(skipping, "images")) == ("1", "2")
    sound = skipping.sound["train"]
    assert sound.image_names == ["a", "c"]
    assert sound.mask(1)[0, 0] == 2
    assert skipping.pixel_counts["train"].tolist() == [600, 600, 1200 + 2400]
    assert any("1 broken images are left out" in line and what in line for line in skipping.warnings)


def test_an_image_corrupt_in_the_middle_is_left_out_before_training_meets_it(write_set: Write, write_image) -> None:
    root = write_set(train={"a": MIXED, "b": HALF})
    (root / "images/b.jpg").unlink()
    path = write_image(root / "images/b.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"b\.png cannot be read"):
        _open(root).sample(1)
    report = _examine(root, skip_broken=True)
    report.raise_errors()
    assert report.sound["train"].image_names == ["a"]


def test_nothing_left_after_leaving_out_is_an_error(write_set: Write) -> None:
    root = write_set(train={"a": MIXED})
    (root / "masks/a.png").write_bytes(b"")
    with pytest.raises(UserError, match="has no image that is not broken"):
        _examine(root, skip_broken=True).raise_errors()
    with pytest.raises(UserError, match=r"a\.png cannot be read") as caught:
        _examine(root).raise_errors()
    assert "has no image" not in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        pytest.param({"train": {"a": MIXED}, "val": {"b": MIXED}}, [], id="all-seen"),
        pytest.param({"train": {"a": HALF}}, ["train shows no pixel of 1 classes: dog"], id="train"),
        pytest.param({"train": {"a": MIXED}, "val": {"b": 0}}, ["val shows no pixel of 2 classes: cat, dog"], id="val"),
        pytest.param({"val": {"a": 255}}, ["val (?) has no labelled pixel: its masks are 255"], id="void-val"),
    ],
)
def test_classes_that_are_never_seen_are_a_warning(splits, expected: list[str], write_set: Write) -> None:
    root = write_set(**{"other": {"z": MIXED}} | splits)
    report = _examine(root, *splits)
    report.raise_errors()
    assert len(report.warnings) == len(expected)
    for warning, beginning in zip(report.warnings, expected, strict=True):
        assert warning.startswith(beginning.replace("?", str(root / "masks")))


def _binary(root: Path, relabelled: bool) -> SegmentationIndex:
    """An index of masks of 0 and 255 that was not opened by name, which would have refused them."""
    index = SegmentationIndex(
        name="own",
        split="train",
        source=root / "masks",
        images_dir=root / "images",
        class_names=CLASSES,
        file_names=pack_names(["a.jpg"]),
        image_ids=np.array([1]),
        sizes_hw=np.zeros((1, 2), np.int64),
        masks=MaskFiles(root / "masks", pack_names(["a.png"]), CLASSES, (0, 1, 2)),
    )
    return match_segmentation_classes(index, ("dog", "cat", "background"), "a model") if relabelled else index


@pytest.mark.parametrize("relabelled", [False, True])
def test_masks_of_0_and_255_alone_are_an_error_even_if_not_opened_by_name(relabelled: bool, write_set: Write) -> None:
    root = write_set(train={"a": np.where(HALF == 1, 255, 0)})
    report = examine_masks({"train": _binary(root, relabelled)})
    assert len(report.errors) == 1
    with pytest.raises(UserError, match=r"look binary: they hold only 0 and 255.* Give --binary-masks"):
        report.raise_errors()
    assert report.warnings == []


def test_binary_masks_that_are_said_to_be_are_counted_as_two_classes(write_set: Write) -> None:
    root = write_set(train={"a": np.where(HALF == 1, 255, 0)})
    report = examine_masks({"train": _open(root, classes=None, binary=True)})
    report.raise_errors()
    assert report.class_rows == [("background", "50.00 %", "1"), ("foreground", "50.00 %", "1")]


def test_images_shared_between_splits_are_told_by_content(write_set: Write) -> None:
    root = write_set(train={"a": MIXED, "b": MIXED}, val={"c": MIXED, "d": MIXED})
    shutil.copy(root / "images/a.jpg", root / "images/c.jpg")
    report = _examine(root, "train", "val")
    report.raise_errors()
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("1 images of val are in train too")


def test_a_file_that_is_listed_twice_is_a_warning(write_set: Write) -> None:
    root = write_set(train={"a": MIXED})
    (root / "train.txt").write_text("a\na\n")
    assert any("lists 1 files more than once: a.jpg" in line for line in _examine(root).warnings)


@pytest.mark.parametrize("mask_size_hw", [(60, 40), (40, 60)], ids=["as-seen", "as-stored"])
def test_a_photo_that_exif_turns_is_sound_whichever_way_it_was_annotated(mask_size_hw, write_set: Write) -> None:
    root = write_set(train={"a": np.resize(np.array([0, 1, 2], np.uint8), mask_size_hw)})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(root / "images/a.jpg", exif=exif)
    report = _examine(root, skip_broken=True)
    report.raise_errors()
    assert report.sound["train"].sizes_hw.tolist() == [list(mask_size_hw)]
    assert report.sound["train"].sample(0).image.shape[:2] == mask_size_hw


def test_notes_of_reading_are_passed_on_once(write_set: Write) -> None:
    root = write_set(train={f"{i:02d}": MIXED for i in range(20)})
    (root / "train.txt").unlink()
    report = _examine(root, "train", "val")
    assert len(report.notes) == 1
    assert f"note: {report.notes[0]}" in report.lines()


def test_what_coco_states_of_an_image_is_held_against_the_file(coco_root) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 41}, {"id": 9, "file_name": "b.jpg"}]
    shape = {"segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]], "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0}
    root = coco_root(images=images, annotations=[{"id": 1, "image_id": 9, "category_id": 90} | shape])
    report = examine_masks({"train": open_segmentation("coco", root, "train")}, skip_broken=True)
    assert len(report.errors) == 1
    assert "a.jpg is 60x40 pixels, but its annotation states 60x41" in report.errors[0]


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 7), (5000, 3600)], ids=["one", "few", "beyond-2**24"])
def test_pixels_are_counted_exactly(size_hw: tuple[int, int]) -> None:
    mask = np.full(size_hw, 3, np.uint8)
    mask[0, 0] = 255
    counts = count_labels(mask)
    assert counts.dtype == np.int64
    assert (counts[3], counts[255], counts.sum()) == (mask.size - 1, 1, mask.size)


def test_a_small_split_of_background_and_void_is_a_warning_unless_all_are_so(write_set: Write) -> None:
    two = np.where(HALF == 1, 255, 0)
    root = write_set(train={"a": MIXED, "b": HALF}, val={"c": two})
    report = _examine(root, "train", "val")
    report.raise_errors()
    assert any(sentence.startswith("val: the masks in") for sentence in report.warnings)
    with pytest.raises(UserError, match="look binary"):
        _examine(root, "val").raise_errors()


def test_training_on_background_and_void_is_an_error_whatever_else_there_is(write_set: Write) -> None:
    two = np.where(HALF == 1, 255, 0)
    report = _examine(write_set(train={"a": two}, val={"c": MIXED}), "train", "val")
    with pytest.raises(UserError, match="look binary"):
        report.raise_errors()
