"""The built-in demo set."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest

from effdense.datasets import demo
from effdense.datasets.demo import DEMO_CLASSES, DEMO_SPLITS, draw_demo, draw_scene, open_demo
from effdense.errors import UserError

SCENES = {
    10_000: "89dd9493b38bb19d",
    10_001: "8a90aaeadebef3fd",
    20_007: "a1a539ca3fab6008",
    30_079: "b4c9e24a27c5f4b2",
}
"""Digests of pixels, visible masks and labels: these must not change while the folder is called demo-v1."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("demo")
    draw_demo(parent)
    return parent


@pytest.mark.parametrize("seed", SCENES)
def test_scenes_are_the_same_on_every_machine(seed: int) -> None:
    scene = draw_scene(seed)
    content = scene.image.tobytes() + np.packbits(scene.visible).tobytes() + bytes(scene.labels)
    assert hashlib.sha256(content).hexdigest()[:16] == SCENES[seed]


@pytest.mark.parametrize("split", DEMO_SPLITS)
def test_each_split_has_every_class_in_number_and_some_empty_scenes(split: str, drawn: Path) -> None:
    index = open_demo(drawn, split)
    assert index.name == "demo"
    assert len(index) == DEMO_SPLITS[split]
    assert index.class_names == DEMO_CLASSES
    assert np.bincount(index.labels, minlength=6).min() >= 30
    assert (np.diff(index.offsets) == 0).any()
    sides = index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]
    assert sides.min() >= 10
    assert np.median(sides) > 28
    assert 96 <= index.sizes_hw.min() <= index.sizes_hw.max() <= 160


def test_boxes_enclose_the_visible_part_and_masks_agree(drawn: Path) -> None:
    from pycocotools import mask

    index = open_demo(drawn, "val")
    content = json.loads(index.source.read_text())
    for position in range(12):
        labelled = cv2.imread(str(drawn / "demo-v1/masks/val" / index.path(position).name), cv2.IMREAD_UNCHANGED)
        sample = index.sample(position)
        assert labelled.shape == sample.image.shape[:2]
        together = np.zeros_like(labelled)
        shapes = [a for a in content["annotations"] if a["image_id"] == sample.image_id]
        for annotation, box, label in zip(shapes, sample.boxes_xyxy, sample.labels, strict=True):
            visible = mask.decode(annotation["segmentation"])
            assert mask.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
            assert visible.sum() == annotation["area"]
            x1, y1, x2, y2 = box.astype(int)
            assert visible[y1:y2, x1:x2].sum() == visible.sum()
            together[visible > 0] = label + 1
        assert np.array_equal(together, labelled)


def test_some_shapes_overlap(drawn: Path) -> None:
    index = open_demo(drawn, "val")
    overlaps = 0
    for position in range(len(index)):
        boxes = index.sample(position).boxes_xyxy
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        overlaps += int(((high - low) > 2).all(axis=2).sum() - len(boxes)) // 2
    assert overlaps > 50


def test_splits_share_no_scene(drawn: Path) -> None:
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (drawn / "demo-v1/images").rglob("*.png")]
    assert len(set(digests)) == len(digests) == sum(DEMO_SPLITS.values())


def test_the_second_opening_draws_nothing(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "draw_scene", None)
    assert len(open_demo(drawn, "test")) == 80


def test_nothing_is_left_beside_the_set(drawn: Path) -> None:
    assert [path.name for path in drawn.iterdir()] == ["demo-v1"]


def test_a_crash_while_drawing_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_write_png", lambda *_: 1 / 0)
    monkeypatch.setattr(demo, "DEMO_SPLITS", {"train": 1})
    with pytest.raises(ZeroDivisionError):
        draw_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _draw_few(parent: Path) -> int:
    demo.DEMO_SPLITS = {"train": 8}
    return len(open_demo(parent, "train"))


def test_two_processes_may_draw_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_draw_few, [tmp_path, tmp_path], chunksize=1) == [8, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["demo-v1"]


def test_a_folder_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file.*EFFDENSE_CACHE"):
        open_demo(tmp_path / "file", "train")


def test_an_unknown_split_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'trian', only train, val, test; did you mean 'train'"):
        open_demo(tmp_path, "trian")
    assert list(tmp_path.iterdir()) == []
