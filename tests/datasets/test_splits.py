"""Lists of splits: which image a line names, and what is no list."""

from __future__ import annotations

from pathlib import Path

import pytest

from effdense.datasets.class_names import read_class_file
from effdense.datasets.splits import find_lists, hashed_rows, listed_rows, read_lines
from effdense.errors import UserError

LINES = {
    "name": ("x", ["a/x", "x"], "x"),
    "folder-of-the-images": ("JPEGImages/x.jpg", ["a/x", "x"], "x"),
    "folder-and-mask": ("/JPEGImages/x.jpg /SegmentationClass/x.png", ["x"], "x"),
    "folder-below": ("images/sub/x.jpg", ["sub/x", "x"], "sub/x"),
    "folder-of-a-split": ("train/images/x.jpg", ["train/x", "x"], "train/x"),
    "two-known-folders": ("./images/masks/x", ["x"], "x"),
    "backslashes": ("images\\sub\\x.jpg", ["sub/x", "x"], "sub/x"),
    "drive": ("C:\\data\\images\\x.jpg", ["x"], "x"),
    "absolute": ("/elsewhere/VOC2012/JPEGImages/x.jpg", ["x"], "x"),
    "own-root": ("voc/JPEGImages/x.jpg", ["x"], "x"),
    "up": ("../../JPEGImages/x.jpg", ["x"], "x"),
    "space": ("images/my x.jpg", ["my x"], "my x"),
    "dot-in-the-name": ("x.1.jpg", ["x.1", "x"], "x.1"),
    "a-known-name-as-image": ("images/images.jpg", ["images"], "images"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line_names_one_image(case: str, tmp_path: Path) -> None:
    line, names, wanted = LINES[case]
    path = tmp_path / "voc" / "train.txt"
    path.parent.mkdir()
    path.write_text(f"{line}\n")
    assert [names[row] for row in listed_rows(path, names, lambda _: "lacks", "remedy")] == [wanted]


@pytest.mark.parametrize("line", ["b/x.jpg", "b\\x.jpg", "b/x", "other/images/x.jpg", "images/b/x.jpg"])
def test_an_image_of_another_folder_is_never_taken_instead(line: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(f"a/x\n{line}\n")
    with pytest.raises(UserError, match=r"train\.txt:2: .* lacks"):
        listed_rows(tmp_path / "train.txt", ["a/x", "x"], lambda _: "lacks", "remedy")


def test_folders_and_leavings_are_no_lists(tmp_path: Path) -> None:
    for name in ("train.txt", "._val.txt", "val.txt"):
        (tmp_path / "ImageSets" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "ImageSets" / name).write_bytes(b"\x00\x05")
    (tmp_path / "ImageSets" / "train.txt").unlink()
    (tmp_path / "ImageSets" / "train.txt").mkdir()
    assert find_lists(tmp_path, ["ImageSets"]) == {"val": tmp_path / "ImageSets" / "val.txt"}
    (tmp_path / "ImageSets" / "val.txt").unlink()
    assert find_lists(tmp_path, ["ImageSets"]) == {}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}: cannot be read"):
        read_lines(tmp_path)


def test_names_that_are_not_utf_8_are_split_too() -> None:
    assert hashed_rows(["a\udcff"], "trainval")[0] == [0]


CITYSCAPES = "0 unlabeled\n1 ego vehicle\n7 road\n8 sidewalk\n"
CLASS_FILES = {
    "cityscapes": (CITYSCAPES, {1: "ego vehicle", 7: "road", 8: "sidewalk"}, (0,), "0 unlabeled is no class by name"),
    "negative-void": ("-1 void\n0 road\n", {0: "road"}, (), None),
    "ade20k": ("0 Void\n1 wall\n2 building\n", {1: "wall", 2: "building"}, (0,), "0 Void is no class by name"),
    "several-void": ("0 void\n1 cat\n9 void\n255 void\n", {1: "cat"}, (0, 9), "0 void, 9 void are no class by name"),
    "at-255": ("0 background\n1 cat\n255 border\n", {0: "background", 1: "cat"}, (), None),
    "cells": ("0 background\n1 cell\n2 border\n", {0: "background", 1: "cell", 2: "border"}, (), None),
    "unnumbered": ("void\ncat\n", {0: "void", 1: "cat"}, (), "'void' is class 0, as it is listed; .*number the lines"),
    "void-alone": ("0 void\n", {}, (0,), "0 void is no class"),
    "empty": ("", {}, (), None),
}


@pytest.mark.parametrize("case", CLASS_FILES)
def test_numbered_void_is_no_class_whatever_its_number(case: str, tmp_path: Path) -> None:
    text, names, void_values, note = CLASS_FILES[case]
    (tmp_path / "classes.txt").write_text(text)
    found = read_class_file(tmp_path)
    assert found is not None
    assert (found.names, found.void_values) == (names, void_values)
    assert len(found.notes) == (note is not None)
    if note is not None:
        with pytest.raises(UserError, match=note):
            raise UserError(found.notes[0])


def test_a_class_of_a_negative_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(f"-1 license plate\n{CITYSCAPES}")
    with pytest.raises(UserError, match=r"gives 'license plate' the number -1, which no mask can hold"):
        read_class_file(tmp_path)
