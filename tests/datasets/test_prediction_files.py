"""Which images are predicted on, and how what is written is called: the same for every task."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from effdense.datasets.image_inputs import as_sample
from effdense.datasets.prediction_files import (
    Overview,
    find_images,
    open_images,
    picture_names,
    refuse_to_overwrite,
    root_of,
    sample_groups,
)
from effdense.errors import UserError
from effdense.pictures import write_picture
from effdense.prediction import PredictSettings
from effdense.types import Sample


def test_thousands_of_drawn_pictures_do_not_each_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("waited"))
    write_picture(tmp_path / "a.jpg", np.zeros((4, 6, 3), np.uint8))
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (4, 6, 3)


def test_folders_are_searched_and_the_order_is_stable(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "below/c.jpeg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images([tmp_path])] == ["a.png", "b.JPG", "c.jpeg"]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_inputs_without_an_image_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        find_images([tmp_path / name])


def test_an_earlier_calls_pictures_inside_the_folder_are_not_predicted_on(tmp_path: Path) -> None:
    for name in ("a.png", "drawn/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images([tmp_path], tmp_path / "drawn")] == ["a.png"]


def test_hidden_files_and_archive_leavings_in_a_folder_are_not_images(tmp_path: Path) -> None:
    folder = tmp_path / ".cache"  # the folder that was asked for may be hidden itself
    for name in ("a.png", "._a.png", ".thumbs/a.png", "__MACOSX/a.png", "below/.x/y/a.png", "b__MACOSX/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert [path.relative_to(folder).as_posix() for path in find_images([folder])] == ["a.png", "b__MACOSX/c.png"]
    assert find_images([folder / "._a.png"]) == [folder / "._a.png"]


def test_names_that_differ_in_case_alone_get_a_number() -> None:
    assert picture_names([Path("a/X.png"), Path("b/x.jpg"), Path("Overview.png")]) == [
        "X.jpg",
        "x-2.jpg",
        "Overview-2.jpg",
    ]


def test_naming_many_images_of_one_name_takes_no_time() -> None:
    start = time.process_time()
    names = picture_names([Path(f"{number}/frame.png") for number in range(30_000)])
    assert len(set(names)) == 30_000
    assert names[-1] == "frame-30000.jpg"
    assert time.process_time() - start < 5


def test_pictures_of_images_with_one_name_do_not_overwrite_each_other() -> None:
    names = picture_names([Path("a/x.png"), Path("b/x.jpg"), Path("y.png"), Path("c/x-2.png")])
    assert names == ["x.jpg", "x-2.jpg", "y.jpg", "x-2-2.jpg"]


def _pictures(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((4, 6, 3), number, np.uint8))
    return paths


@pytest.mark.parametrize(("size", "groups"), [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_groups_hold_no_more_than_was_asked_for_and_every_image_once(
    size: int, groups: list[int], tmp_path: Path
) -> None:
    paths, read = open_images(_pictures(tmp_path, 3))
    found = list(sample_groups(paths, read, size, skip_broken=False, broken=[]))
    assert [len(group) for group in found] == groups
    flat = [pair for group in found for pair in group]
    assert [(position, sample.image_id) for position, sample in flat] == [(0, 1), (1, 2), (2, 3)]
    assert [int(sample.image[0, 0, 0]) for _, sample in flat] == [0, 1, 2]


def test_no_image_makes_no_group() -> None:
    paths, read = open_images([])
    assert list(sample_groups(paths, read, 4, skip_broken=False, broken=[])) == []


def test_a_data_set_keeps_its_own_ids(tmp_path: Path) -> None:
    class Index:
        def __len__(self) -> int:
            return 2

        def path(self, position: int) -> Path:
            return tmp_path / f"{position}.png"

        def sample(self, position: int) -> Sample:
            return as_sample(self.path(position)).replace(image_id=70 + position)

    _pictures(tmp_path, 2)
    paths, read = open_images(Index())
    assert [path.name for path in paths] == ["0.png", "1.png"]
    assert [read(position).image_id for position in range(2)] == [70, 71]


def test_a_broken_image_is_noted_or_stops_as_asked(tmp_path: Path) -> None:
    paths = _pictures(tmp_path, 3)
    paths[1].write_bytes(b"no image")
    broken: list[Path] = []
    _, read = open_images(paths)
    groups = list(sample_groups(paths, read, 2, skip_broken=True, broken=broken))
    assert [[position for position, _ in group] for group in groups] == [[0, 2]]
    assert broken == [paths[1]]
    with pytest.raises(UserError, match=r"1\.png"):
        list(sample_groups(paths, read, 2, skip_broken=False, broken=broken))


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_an_image_is_known_under_every_name(link: Any, tmp_path: Path) -> None:
    (path,) = _pictures(tmp_path, 1)
    link(path, tmp_path / "other.jpg")
    refuse_to_overwrite([path], [tmp_path / "new.jpg"])
    with pytest.raises(UserError, match=r"other\.jpg would overwrite"):
        refuse_to_overwrite([path], [tmp_path / "other.jpg"])


def test_an_overview_shows_the_first_twelve_and_nothing_for_none() -> None:
    overview = Overview()
    assert overview.sheet() is None
    for number in range(20):
        assert overview.is_full is (number >= 12)
        overview.add(np.full((700, 1400, 3), number, np.uint8))
    sheet = overview.sheet()
    assert sheet is not None
    assert sheet.shape == (3 * 260 + 4, 4 * 260 + 4, 3)
    assert {int(value) for value in np.unique(sheet)} == {*range(12), 255}


def test_a_folder_that_is_searched_cannot_take_the_pictures_too(tmp_path: Path) -> None:
    _pictures(tmp_path, 1)
    for out in (tmp_path, tmp_path / "." / "x" / ".."):
        with pytest.raises(UserError, match=r"--out .* is the folder of the images: .*name another folder"):
            find_images([tmp_path], out)
    assert len(find_images([tmp_path / "0.png"], tmp_path)) == 1


@pytest.mark.parametrize(("size_hw", "written"), [((20, 100), (10, 50)), ((60, 1), (50, 1)), ((50, 50), (50, 50))])
def test_a_picture_too_large_for_jpeg_is_shrunk(size_hw, written, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("effdense.pictures.MAX_SIDE", 50)
    write_picture(tmp_path / "a.jpg", np.full((*size_hw, 3), 200, np.uint8))
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (*written, 3)


def test_a_strip_of_70000_pixels_is_drawn(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", np.zeros((10, 70_000, 3), np.uint8))
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (9, 65_500, 3)


def test_a_picture_that_does_not_become_a_jpeg_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, np.zeros(0, np.uint8)))
    with pytest.raises(UserError, match=r"a\.jpg cannot be written: a picture of 6x4 pixels"):
        write_picture(tmp_path / "a.jpg", np.zeros((4, 6, 3), np.uint8))
    assert not (tmp_path / "a.jpg").exists()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_data_set_that_is_not_there_is_missed_before_it_is_opened(task: str, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    settings = PredictSettings(Path("m.safetensors"), dataset="voc", data_root=tmp_path)
    trainer = "train_det.py" if task == "detection" else "train_seg.py"
    with pytest.raises(UserError, match=rf"no data for --dataset voc.*\n(.*\n)*.* {trainer} --dataset voc --download"):
        root_of(settings, task)
    (tmp_path / "JPEGImages").mkdir()
    assert root_of(settings, task) == tmp_path
