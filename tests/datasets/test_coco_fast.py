"""COCO JSON decoded fast gives the columns of the plain way, and leaves to it whatever is unusual."""

from __future__ import annotations

import json
import mmap
import tracemalloc
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effdense.datasets import coco_columns, coco_typed
from effdense.datasets.coco import open_coco
from effdense.datasets.coco_columns import plain_columns, read_columns, stable_order
from effdense.datasets.coco_instances import open_coco_instances
from effdense.datasets.coco_json import match_images
from effdense.datasets.coco_typed import read_typed
from effdense.errors import UserError

IMAGES = [
    {"id": 9, "file_name": "a.jpg", "width": 60, "height": 40, "license": 1},
    {"id": 7, "file_name": "b\\c/d.jpg", "width": 50, "height": 30},
]
CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 3, "name": "ant", "supercategory": "insect"}]
RING = [1, 2, 11, 2, 5, 9.5]
RUNS = {"size": [40, 60], "counts": [85, 3, 37, 3, 2272]}


def _object(**changes: Any) -> dict[str, Any]:
    plain = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 2.25, 3, 4.125], "area": 7.5, "iscrowd": 0}
    row = plain | {"segmentation": [RING]} | changes
    return {key: value for key, value in row.items() if value is not ...}


def _file(objects: list[Any], **parts: Any) -> str:
    return json.dumps({"info": {}, "images": IMAGES, "annotations": objects, "categories": CATEGORIES} | parts)


FAST = {
    "as-coco-writes": _file([_object(id=8, image_id=9), _object(id=2), _object(id=4, image_id=9, category_id=90)]),
    "crowd": _file([_object(iscrowd=1, segmentation=RUNS), _object(id=6, ignore=1)]),
    "no-area-no-flags": _file([_object(area=..., iscrowd=...), _object(id=6)]),
    "area-zero-or-below": _file([_object(area=0), _object(id=6, area=-2)]),
    "sizes-missing": _file([_object()], images=[{"id": 7, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]),
    "sizes-null": _file([_object()], images=[{"id": 7, "file_name": "a.jpg", "height": None, "width": 5}]),
    "float-ids-without-fraction": _file([_object(id=5.0, image_id=7.0, category_id=3.0)]),
    "negative-ids": _file([_object(image_id=-4)], images=[{"id": -4, "file_name": "a.jpg"}]),
    "two-images-of-one-id": _file([_object()], images=[IMAGES[1], IMAGES[1]]),
    "sparse-image-ids": _file([_object(image_id=2**50)], images=[*IMAGES, {"id": 2**50, "file_name": "a.jpg"}]),
    "unknown-category": _file([_object(category_id=17), _object(id=6, category_id=2**40)]),
    "parent-category": _file(
        [_object()],
        categories=[{"id": 0, "name": "bugs"}, {"id": 3, "name": "ant", "supercategory": "bugs"}],
    ),
    "no-objects": _file([]),
    "nothing": _file([], images=[], categories=[]),
    "annotations-first": json.dumps({"annotations": [_object()], "images": IMAGES, "categories": CATEGORIES}),
    "annotations-last": json.dumps({"categories": CATEGORIES, "images": IMAGES, "annotations": [_object()]}),
    "annotations-between": json.dumps({"categories": CATEGORIES, "annotations": [_object()], "images": IMAGES}),
    "indented": json.dumps(json.loads(_file([_object(), _object(id=6)])), indent=2),
    "dense": json.dumps(json.loads(_file([_object(), _object(id=6)])), separators=(",", ":")),
    "letters": json.dumps(
        {"images": [{"id": 7, "file_name": "é日本.jpg"}], "annotations": [_object(note="é")], "categories": CATEGORIES},
        ensure_ascii=False,
    ),
    "text-with-brackets": _file([_object(note="}, {"), _object(id=6, note="]}")]),
    "nested-lists-of-objects": _file([_object(parts=[{"a": 1}, {"a": 2}, {"a": 3}]), _object(id=6)]),
    "nested-objects": _file([_object(attributes={"occluded": False}), _object(id=6, attributes={"rotation": 0.0})]),
    "the-key-in-a-text": _file([_object()], info={"note": '"annotations": [] is a key'}),
    "decimals": _file([_object(bbox=[0.1, 1 / 3, 5e-324, 1e22], area=1.7976931348623157e308)]),
}  # fmt: skip
PLAIN = {
    "ids-as-text": _file([_object(id="5", image_id="7", category_id="3")]),
    "image-ids-as-text": _file([_object()], images=[IMAGES[1] | {"id": "7"}]),
    "flags-as-text": _file([_object(iscrowd="1", ignore="false")]),
    "flags-as-booleans": _file([_object(iscrowd=True, ignore=False)]),
    "flags-null": _file([_object(iscrowd=None)]),
    "area-as-text": _file([_object(area="7")]),
    "area-null": _file([_object(area=None)]),
    "no-id": _file([_object(id=...)]),
    "ids-beyond-a-float": _file([_object(id=2**53 + 1)]),
    "byte-order-mark": "\ufeff" + _file([_object()]),
    "not-a-number": _file([_object(area=float("nan"))]),
}
BROKEN = {
    "no-file": None,
    "empty": "",
    "cut": _file([_object(), _object(id=6)])[:-80],
    "no-list": _file([_object()], annotations=None),
    "two-lists": _file([_object()])[:-1] + ', "annotations": [{"id": 1}]}',
    "stray": _file([_object(image_id=8)]),
    "fraction": _file([_object(image_id=7.5)]),
    "object-is-text": _file(["x"]),
    "ids-of-seventy-bits": _file([_object(id=2**70)]),
    "no-image-id": _file([_object(image_id=...)]),
    "not-utf8": b'{"info": "\xff", "images": [], "annotations": [], "categories": []}',
    "not-utf8-in-an-object": b'{"images": [], "annotations": [{"note": "\xff"}], "categories": []}',
}
ONLY_BOXES = {
    "three-numbers": _file([_object(bbox=[1, 2, 3])]),
    "five-numbers": _file([_object(bbox=[1, 2, 3, 4, 5])]),
}
ONLY_BOXES_PLAIN = {
    "no-box": _file([_object(bbox=...)]),
    "empty-box": _file([_object(bbox=[])]),
    "box-of-text": _file([_object(bbox=["1", "2", "3", "4"])]),
}


@pytest.fixture(params=[1, coco_typed._PIECE_BYTES], ids=["object-by-object", "whole"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_typed, "_PIECE_BYTES", request.param)


def _write(folder: Path, content: str | bytes | None) -> Path:
    path = folder / "train.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _assert_same(ours: Any, plain: Any) -> None:
    for field in fields(ours):
        one, other = getattr(ours, field.name), getattr(plain, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            assert one.shape == other.shape, field.name
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), field.name
        elif field.name != "masks":
            assert one == other, field.name


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("outlines", [False, True], ids=["boxes", "outlines"])
@pytest.mark.parametrize("case", FAST)
def test_usual_files_are_read_fast_and_as_the_plain_way_reads_them(case: str, outlines: bool, tmp_path: Path) -> None:
    path = _write(tmp_path, FAST[case])
    assert read_typed(path, outlines=outlines) is not None
    _assert_same(read_columns(path, outlines=outlines), plain_columns(path, outlines=outlines))


@pytest.mark.parametrize("outlines", [False, True], ids=["boxes", "outlines"])
@pytest.mark.parametrize("case", PLAIN)
def test_what_is_unusual_is_read_the_plain_way(case: str, outlines: bool, tmp_path: Path) -> None:
    path = _write(tmp_path, PLAIN[case])
    assert read_typed(path, outlines=outlines) is None
    _assert_same(read_columns(path, outlines=outlines), plain_columns(path, outlines=outlines))


@pytest.mark.parametrize("case", ONLY_BOXES_PLAIN)
def test_an_unusual_box_is_read_the_plain_way(case: str, tmp_path: Path) -> None:
    path = _write(tmp_path, ONLY_BOXES_PLAIN[case])
    _assert_same(read_columns(path), plain_columns(path))


@pytest.mark.parametrize("case", BROKEN | ONLY_BOXES)
def test_what_is_wrong_is_said_in_the_same_words(case: str, tmp_path: Path) -> None:
    path = _write(tmp_path, (BROKEN | ONLY_BOXES)[case])
    messages = []
    for read in (read_columns, plain_columns):
        with pytest.raises(UserError) as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("case", [name for name in BROKEN if name.startswith("not-utf8")])
def test_text_that_is_not_utf8_is_left_to_the_plain_way(case: str, tmp_path: Path) -> None:
    assert read_typed(_write(tmp_path, BROKEN[case])) is None


@pytest.mark.usefixtures("pieces")
def test_a_letter_that_is_cut_off_is_not_utf8() -> None:
    for text in (b"ab\xc3", b"\xf0\x9f\x98", b"\xf0\x9f\x98."):
        with mmap.mmap(-1, len(text)) as data:
            data.write(text)
            with pytest.raises(UnicodeDecodeError):
                coco_typed._check_utf8(data)


def test_letters_beyond_ascii_take_no_memory_of_the_files_size(tmp_path: Path) -> None:
    note = "\U0001f600" + "x" * 1000  # as one text, four bytes for each of its letters
    path = _write(tmp_path, json.dumps([note] * 4000, ensure_ascii=False))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tracemalloc.start()
        try:
            coco_typed._check_utf8(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < len(data) / 4


@pytest.mark.parametrize("case", FAST | PLAIN)
def test_the_index_is_the_same_column_for_column(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, (FAST | PLAIN)[case])
    fast = open_coco(None, "train", annotations=path, images=tmp_path)
    monkeypatch.setattr(coco_columns, "read_typed", lambda *_, **__: None)
    _assert_same(fast, open_coco(None, "train", annotations=path, images=tmp_path))


@pytest.mark.parametrize("case", ["as-coco-writes", "crowd", "no-area-no-flags", "parent-category", "no-objects"])
def test_the_masks_are_the_same(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, FAST[case])
    fast = open_coco_instances(None, "train", annotations=path, images=tmp_path)
    monkeypatch.setattr(coco_columns, "read_typed", lambda *_, **__: None)
    plain = open_coco_instances(None, "train", annotations=path, images=tmp_path)
    _assert_same(fast, plain)
    for one, other in ((fast.masks, plain.masks), (fast.masks.shapes, plain.masks.shapes)):
        for field in fields(one):
            value = getattr(one, field.name)
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(other, field.name)), field.name
    for position in range(len(fast)):
        assert np.array_equal(fast.masks.read(position, (40, 60)), plain.masks.read(position, (40, 60)))


def test_a_long_random_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    ids = rng.permutation(100_000)[:300].tolist()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 8} for i in ids]
    objects = [
        _object(
            id=k,
            image_id=ids[int(rng.integers(300))],
            bbox=(rng.random(4) * 10.0 ** rng.integers(-8, 9, 4)).tolist(),
            area=float(rng.random()),
            iscrowd=int(rng.integers(2)),
        )
        for k in range(3000)
    ]
    monkeypatch.setattr(coco_typed, "_PIECE_BYTES", 5000)
    path = _write(tmp_path, _file(objects, images=images))
    assert read_typed(path) is not None
    _assert_same(read_columns(path), plain_columns(path))


def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path) -> None:
    import gc

    path = _write(tmp_path, FAST["crowd"])
    read_columns(path)
    assert gc.isenabled()
    gc.disable()
    try:
        read_columns(path)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_objects_are_ordered_by_image_and_otherwise_as_in_the_file(count: int) -> None:
    rows = np.random.default_rng(count).integers(0, 50, count)
    assert stable_order(rows).tolist() == np.argsort(rows, kind="stable").tolist()


SPACING = {"dense": [5, 3, 9, 3], "sparse": [2**62, -(2**62), 5, 5]}


@pytest.mark.parametrize("case", SPACING)
def test_the_first_image_of_an_id_is_found_and_a_stray_is_refused(case: str) -> None:
    ids = np.array(SPACING[case], np.int64)
    wanted = np.array([ids[3], ids[0], ids[1]], np.int64)
    expected = [SPACING[case].index(value) for value in wanted.tolist()]
    assert match_images(np.arange(3), wanted, ids, Path("x.json")).tolist() == expected
    for stray in (4, -(2**63), 2**63 - 1):
        with pytest.raises(UserError, match="belong to no listed image"):
            match_images(np.arange(1), np.array([stray]), ids, Path("x.json"))
