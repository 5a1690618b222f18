"""The benchmarks of reading and loading run on tiny input, and compare what is equal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from effdense.datasets.coco import open_coco
from effdense.tools.benchmarks import annotations, loading
from effdense.tools.benchmarks.coco_files import write_coco
from effdense.tools.benchmarks.rows import BenchSettings, Unequal
from effdense.tools.benchmarks.worker_memory import fork_and_measure

QUICK = BenchSettings(quick=True)


@pytest.mark.parametrize("polygons", [False, True], ids=["boxes", "polygons"])
def test_a_generated_file_is_coco_and_has_what_was_asked_for(polygons: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_coco(path, 30, 250, polygons=polygons)
    index = open_coco(None, "train", annotations=path, images=tmp_path)
    assert (len(index), index.num_boxes, len(index.class_names)) == (30, 250, 80)
    objects = json.loads(path.read_text())["annotations"]
    assert all(("segmentation" in one) == polygons for one in objects)
    again = tmp_path / "b.json"
    write_coco(again, 30, 250, polygons=polygons)
    assert again.read_bytes() == path.read_bytes()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process would import PyTorch first, each time."""
    monkeypatch.setattr(annotations, "measure_memory", fork_and_measure)
    monkeypatch.setattr(annotations, "WORKERS", 2)


@pytest.mark.usefixtures("in_this_process")
def test_reading_is_measured_with_and_without_polygons_and_so_is_memory() -> None:
    rows = annotations.run(QUICK)
    assert [row.unit for row in rows] == ["s", "MiB", "MiB"] * 2
    assert [row.target for row in rows] == [5.0, 5.0, None] * 2
    assert all(row.ratio is not None and row.ratio > 0 for row in rows)


def test_other_boxes_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_coco(path, 3, 20, polygons=False)
    ours, theirs = annotations._ours(path), annotations._peer(path)
    annotations.check_same_boxes(ours, theirs)
    moved = replace(ours, boxes_written_xywh=ours.boxes_written_xywh + 1)
    with pytest.raises(Unequal, match="boxes"):
        annotations.check_same_boxes(moved, theirs)


def test_workers_share_our_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_coco(path, 2000, 20_000, polygons=False)
    ours, theirs = (fork_and_measure(kind, path, 2) for kind in ("ours", "torchvision"))
    assert 0 < ours.private_mib < theirs.private_mib
    assert ours.total_mib > ours.private_mib
    assert ours.labels == theirs.labels == 20_000


def test_loading_is_measured_beside_both_peers_and_leaves_threads_as_they_were(two_threads: None) -> None:
    import torch

    rows = loading.run(QUICK)
    assert torch.get_num_threads() == 2
    assert [row.against for row in rows] == ["effdet's PIL loader", "torchvision v2"] * 2
    assert all(row.unit == "images/s" for row in rows)


def test_all_three_make_images_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    index = loading.write_photos(tmp_path, 2)
    assert loading.load_all(loading.our_loader(index, 96), 2) == [(96, 96, 3)] * 2
    assert loading.load_all(loading.effdet_loader(index, 96), 2) == [(3, 96, 96)] * 2
    assert loading.load_all(loading.torchvision_loader(index, 96), 2) == [(3, 96, 96)] * 2
    assert np.array_equal(index.sample(0).boxes_xyxy, index.boxes_xyxy[:8])


def test_without_draws_all_make_the_same_of_an_image(tmp_path: Path) -> None:
    index = loading.write_photos(tmp_path, 2)
    makers = (loading.our_loader, loading.effdet_loader, loading.torchvision_loader)
    loading.check_same_images({make.__name__: make(index, 320, still=True) for make in makers}, 2)


@pytest.mark.parametrize(
    ("image", "boxes", "told"),
    [
        (np.full((8, 8, 3), 100, np.uint8), np.ones((1, 4)), None),
        (np.full((3, 8, 8), 101, np.uint8), np.full((1, 4), 1.5), None),
        (np.zeros((5, 5, 3), np.uint8), np.ones((1, 4)), "shape"),
        (np.zeros((8, 8, 3), np.uint8), np.ones((1, 4)), "pixels are 100"),
        (np.full((8, 8, 3), 100, np.uint8), np.full((1, 4), 9.0), "boxes are 8.0 px apart"),
        (np.full((8, 8, 3), 100, np.uint8), np.ones((2, 4)), "number of boxes"),
    ],
    ids=["same", "near", "size", "black", "moved", "more"],
)
def test_other_images_are_not_timed(image, boxes, told: str | None) -> None:
    loads = {"ours": lambda _: (np.full((8, 8, 3), 100, np.uint8), np.ones((1, 4))), "peer": lambda _: (image, boxes)}
    if told is None:
        loading.check_same_images(loads, 1)
        return
    with pytest.raises(Unequal, match=f"ours beside peer, image 0: {told}"):
        loading.check_same_images(loads, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("curve", [*annotations.CURVES, *loading.CURVES], ids=lambda curve: curve.name)
def test_curves_have_a_point_for_each_size(curve) -> None:
    lines = curve.run(QUICK)
    assert len(lines) == 2
    assert all(len(line.xs) == len(line.ys) == 1 and line.ys[0] > 0 for line in lines)
