"""COCO instances and panoptic PNGs as masks."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_api
from pycocotools.coco import COCO

from effdense.datasets.coco_instances import InstanceMasks, open_coco_instances
from effdense.datasets.coco_panoptic import PanopticMasks, open_coco_panoptic
from effdense.datasets.demo import DEMO_CLASSES, DEMO_SPLITS, draw_demo
from effdense.datasets.segmentation_index import LabelError, SegmentationIndex
from effdense.errors import UserError

SIZE = (6, 8)
"""Height and width of the hand-drawn images."""


def _box(x: float, y: float, right: float, bottom: float) -> list[float]:
    return [x, y, right, y, right, bottom, x, bottom]


def _runs(
    *rectangles: tuple[int, int, int, int], compressed: bool = True, size: tuple[int, int] = SIZE
) -> dict[str, Any]:
    """Run lengths of rectangles x, y, right, bottom."""
    pixels = np.zeros(size, np.uint8, order="F")
    for x, y, right, bottom in rectangles:
        pixels[y:bottom, x:right] = 1
    if compressed:
        packed = coco_api.encode(pixels)
        return {"size": [*size], "counts": packed["counts"].decode()}
    flat = pixels.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [-1]]))) if flat.any() else [len(flat)]
    return {"size": [*size], "counts": np.diff([0, *edges]).tolist()}


def _object(number: int, shape: Any, category: int = 3, image: int = 7, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": shape} | more


@pytest.fixture
def instances(tmp_path: Path) -> Callable[..., SegmentationIndex]:
    """Open objects on two 8x6 images, ids 7 and 9; categories 3 ant, 12 bee, 90 cat."""

    def make(*objects: dict[str, Any], **changes: Any) -> SegmentationIndex:
        names = {3: "ant", 12: "bee", 90: "cat"}
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": SIZE[1], "height": SIZE[0]} for i in (7, 9)],
            "annotations": list(objects),
            "categories": [{"id": i, "name": name} for i, name in reversed(names.items())],
        } | changes
        path = tmp_path / "annotations" / "instances_train.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        for image in content["images"]:
            file = tmp_path / "images" / image["file_name"]
            file.parent.mkdir(exist_ok=True)
            assert cv2.imwrite(str(file), np.zeros((*SIZE, 3), np.uint8))
        return open_coco_instances(tmp_path, "train")

    return make


NOTHING = " ".join(["........"] * 6)
RIGHT = "........ .....111 .....111 ........ ........ ........"
DRAWN = {
    "no-object": ((), NOTHING),
    "rectangle": (([_box(1, 2, 4, 5)],), "........ ........ .111.... .111.... .111.... ........"),
    "triangle": (([[0, 0, 4, 0, 0, 4]],), "111..... 11...... 1....... ........ ........ ........"),
    "two-rings-united": (
        ([_box(0, 0, 3, 2), _box(2, 1, 5, 3)],), "111..... 11111... ..111... ........ ........ ........",
    ),
    "a-ring-within-a-ring-is-no-hole": (
        ([_box(0, 0, 4, 4), _box(1, 1, 3, 3)],), "1111.... 1111.... 1111.... 1111.... ........ ........",
    ),
    "past-the-border": (([_box(-3, 4, 20, 9)],), "........ ........ ........ ........ 11111111 11111111"),
    "outside": (([_box(9, 0, 12, 3)],), NOTHING),
    "runs-as-numbers": ((_runs((5, 1, 8, 3), compressed=False),), RIGHT),
    "runs-as-text": ((_runs((5, 1, 8, 3)),), RIGHT),
    "runs-from-the-first-pixel": ((_runs((0, 0, 8, 6), compressed=False),), " ".join(["11111111"] * 6)),
    "runs-with-a-hole": ((_runs((0, 0, 3, 1), (0, 2, 3, 3)),), "111..... ........ 111..... ........ ........ ........"),
    "empty-runs": ((_runs(),), NOTHING),
}  # fmt: skip


def _parse(drawing: str) -> np.ndarray:
    return np.array([[0 if pixel == "." else int(pixel, 16) for pixel in row] for row in drawing.split()], np.uint8)


@pytest.mark.parametrize("case", DRAWN)
def test_objects_cover_the_pixels_drawn_by_hand(case: str, instances: Callable[..., SegmentationIndex]) -> None:
    shapes, drawing = DRAWN[case]
    index = instances(*(_object(k, shape) for k, shape in enumerate(shapes, start=1)))
    mask = index.mask(0)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, _parse(drawing))
    assert not index.mask(1).any()
    assert np.array_equal(index.sample(0).mask, mask)


WIDE, SMALL = [_box(0, 0, 8, 3)], [_box(1, 1, 3, 2)]
OVERLAPS = {
    "larger-first": ([_object(1, WIDE, 3), _object(2, SMALL, 12)], "11111111 12211111 11111111"),
    "whatever-the-order-of-the-file": ([_object(1, SMALL, 12), _object(2, WIDE, 3)], "11111111 12211111 11111111"),
    "by-the-stated-area": (
        [_object(1, WIDE, 3, area=1.5), _object(2, SMALL, 12, area=2)], "11111111 11111111 11111111",
    ),
    "an-area-of-zero-is-none": (
        [_object(1, WIDE, 3, area=0), _object(2, SMALL, 12, area=2)], "11111111 12211111 11111111",
    ),
    "of-one-size-the-later": ([_object(1, SMALL, 12), _object(2, SMALL, 90)], "........ .33..... ........"),
    "crowd-below": (
        [_object(1, SMALL, 12, iscrowd=1), _object(2, WIDE, 3)], "11111111 11111111 11111111",
    ),
    "crowd-where-nothing-lies": (
        [_object(1, SMALL, 12), _object(2, _runs((0, 0, 8, 3), compressed=False), 3, iscrowd=1)],
        "ffffffff f22fffff ffffffff",
    ),
    "crowds-of-one-category": ([_object(1, SMALL, 3, iscrowd=1), _object(2, SMALL, 3, iscrowd=0)], "........ .11....."),
}  # fmt: skip


@pytest.mark.parametrize("case", OVERLAPS)
def test_a_smaller_object_lies_on_a_larger_one_and_a_crowd_below_all(
    case: str, instances: Callable[..., SegmentationIndex]
) -> None:
    objects, drawing = OVERLAPS[case]
    wanted = _parse(drawing)
    wanted[wanted == 15] = 255
    assert np.array_equal(instances(*objects).mask(0)[: len(wanted)], wanted)


def _categories(*rows: tuple[int, str, str | None]) -> list[dict[str, Any]]:
    return [{"id": i, "name": name, "supercategory": parent} for i, name, parent in rows]


CLASSES = {
    "in-order-of-ids": (_categories((12, "b", None), (3, "a", None)), ("background", "a", "b"), 12, 2),
    "unused-parent": (
        _categories((0, "farm", "none"), (1, "a", "farm"), (2, "b", "farm")), ("background", "a", "b"), 2, 2,
    ),
    "own-background": (_categories((0, "Background", None), (4, "a", None)), ("background", "a"), 4, 1),
    "objects-of-the-background": (_categories((1, "a", None), (2, "__background__", None)), ("background", "a"), 2, 0),
    "single": (_categories((5, "a", None)), ("background", "a"), 5, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_the_background_is_class_0_and_the_categories_follow(
    case: str, instances: Callable[..., SegmentationIndex]
) -> None:
    categories, names, used, label = CLASSES[case]
    index = instances(_object(1, [_box(0, 0, 2, 2)], used), categories=categories)
    assert index.class_names == names
    assert index.mask(0)[0, 0] == label


def test_254_categories_fit_beside_the_background(instances: Callable[..., SegmentationIndex]) -> None:
    shape = [_box(0, 0, 2, 2)]
    index = instances(_object(1, shape, 254), categories=_categories(*((i, f"c{i}", None) for i in range(1, 255))))
    assert index.mask(0)[0, 0] == 254
    with pytest.raises(UserError, match=r"has 255 categories; a mask holds 254 .*join some"):
        instances(_object(1, shape, 1), categories=_categories(*((i, f"c{i}", None) for i in range(1, 256))))


FAULTS = {
    "box-only": ([_object(5, None, bbox=[1, 1, 2, 2]), _object(6, [])], r"2 annotations have no segm.*id 5, 6\. "),
    "two-points": ([_object(5, [_box(0, 0, 2, 2), [1, 1, 2, 2]])], r"1 polygons have fewer than three .*id 5\."),
    "no-points": ([_object(5, [[]])], r"fewer than three points: annotation id 5\."),
    "odd-coordinates": ([_object(5, [[0, 0, 4, 0, 0, 4, 1]])], r"odd number of coordinates.*annotation id 5"),
    "not-a-number": ([_object(4, [_box(0, 0, 2, 2)]), _object(5, [[0, 0, 4, "x", 0, 4]])], r"id 5: .*finite numbers"),
    "infinite": ([_object(5, [[0, 0, 4, float("inf"), 0, 4]])], r"annotation id 5: .*finite numbers"),
    "points-in-pairs": ([_object(5, [[[0, 0], [4, 0], [0, 4], [1, 1], [1, 2], [2, 2]]])], r"id 5: .*finite numbers"),
    "not-a-list-of-rings": ([_object(5, [0, 0, 4, 0, 0, 4])], r"id 5: segmentation must be a list of polygons"),
    "text": ([_object(5, "0 0 4 0")], r"annotation id 5: segmentation must be"),
    "runs-without-size": ([_object(5, {"counts": [48]})], r"annotation id 5: run lengths \(RLE\) need size.*'size'"),
    "runs-too-short": ([_object(5, {"size": [6, 8], "counts": [3, 2]})], r"annotation id 5: .*sum to 5 for size 6, 8"),
    "negative-runs": ([_object(5, {"size": [6, 8], "counts": [50, -2]})], r"annotation id 5: .*sum to 48"),
    "no-such-category": ([_object(5, [_box(0, 0, 2, 2)], 4)], r"no listed category \(category id 4\): annotation id 5"),
    "no-such-image": ([_object(5, [_box(0, 0, 2, 2)], image=8)], r"no listed image: annotation id 5 \(image id 8\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_an_unusable_outline_is_refused_with_its_annotation(
    case: str, instances: Callable[..., SegmentationIndex]
) -> None:
    objects, message = FAULTS[case]
    with pytest.raises(UserError, match=message) as caught:
        instances(*objects)
    assert "instances_train.json" in str(caught.value)


FAULTS_WITH_THE_IMAGE = {
    "runs-of-another-size": (_runs((0, 0, 2, 2), size=(8, 6)), r"id 5: .*for 6x8 pixels, but the image is 8x6"),
    "text-too-short": ({"size": [6, 8], "counts": "52"}, r"id 5: its run lengths cover 7 pixels, the image has 48"),
    "text-too-long": ({"size": [6, 8], "counts": "0" * 9 + "P4"}, r"id 5: its run lengths cover 128 pixels"),
    "text-without-end": ({"size": [6, 8], "counts": "5P"}, r"id 5: its run lengths are broken"),
    "text-of-endless-numbers": ({"size": [6, 8], "counts": "o" * 20 + "0"}, r"id 5: its run lengths are broken"),
    "strange-characters": ({"size": [6, 8], "counts": "~~"}, r"id 5: its run lengths are broken"),
    "empty-text": ({"size": [6, 8], "counts": ""}, r"id 5: its run lengths are broken"),
    "negative-text": ({"size": [6, 8], "counts": "@"}, r"id 5: its run lengths are broken"),
    "far-outside": ([_box(0, 0, 1e9, 2)], r"id 5: its polygon reaches from 0, 0 to 1e\+09, 2, far outside .*8x6"),
}


@pytest.mark.parametrize("case", FAULTS_WITH_THE_IMAGE)
def test_an_outline_that_does_not_go_with_the_image_is_refused_when_it_is_read(
    case: str, instances: Callable[..., SegmentationIndex]
) -> None:
    shape, message = FAULTS_WITH_THE_IMAGE[case]
    index = instances(_object(4, [_box(0, 0, 2, 2)], image=9), _object(5, shape))
    assert index.mask(1).any()
    with pytest.raises(LabelError, match=message):
        index.mask(0)


@pytest.mark.parametrize("decimals", [0, 1, 2, 3, 12], ids=lambda decimals: f"{decimals}-decimals")
@pytest.mark.parity
def test_polygons_have_the_pixels_of_pycocotools(decimals: int, instances: Callable[..., SegmentationIndex]) -> None:
    # Fifths and halves of pixels are where the rounding of a coordinate decides.
    draw = np.random.default_rng(decimals)
    rings = [np.round(draw.uniform(-1, 9, 2 * draw.integers(3, 9)), decimals).tolist() for _ in range(300)]
    index = instances(*(_object(k, [ring]) for k, ring in enumerate(rings)))
    masks = index.masks
    assert isinstance(masks, InstanceMasks)
    assert masks.shapes.coordinates.dtype == (np.float64 if decimals == 12 else np.float32)
    reference = COCO(str(index.source))
    for row, number in enumerate(masks.shapes.annotation_ids.tolist()):
        ours = coco_api.decode(masks.shapes.encode(row, SIZE))
        assert np.array_equal(ours, reference.annToMask(reference.anns[number])), rings[row]


def test_objects_are_flat_columns_that_a_selection_shares(instances: Callable[..., SegmentationIndex]) -> None:
    index = instances(_object(1, SMALL, 12, image=9), _object(2, _runs((4, 4, 6, 6)), 3), _object(3, WIDE, 90, image=9))
    masks = index.masks
    assert isinstance(masks, InstanceMasks)
    for owner in (masks, masks.shapes):
        columns = [getattr(owner, field.name) for field in fields(owner) if field.name not in ("shapes", "source")]
        assert all(isinstance(column, np.ndarray) and column.dtype != object for column in columns)
    swapped = index.select([1, 0, 1])
    assert isinstance(swapped.masks, InstanceMasks)
    assert np.shares_memory(swapped.masks.shapes.coordinates, masks.shapes.coordinates)
    for position, before in enumerate([1, 0, 1]):
        assert np.array_equal(swapped.mask(position), index.mask(before))
        assert swapped.masks.where(position) == f"{index.source}, image id {[7, 9][before]}"
    assert np.array_equal(pickle.loads(pickle.dumps(swapped)).mask(2), index.mask(1))
    assert len(index.select([])) == 0


def test_an_image_without_a_stated_size_has_its_own(instances: Callable[..., SegmentationIndex]) -> None:
    index = instances(_object(1, [_box(0, 0, 2, 2)]), images=[{"id": 7, "file_name": "7.png"}])
    assert index.mask(0).shape == SIZE
    assert index.sample(0).mask is not None


def test_a_file_without_objects_is_all_background(instances: Callable[..., SegmentationIndex]) -> None:
    index = instances()
    assert [index.mask(position).any() for position in range(len(index))] == [False, False]


def test_the_demo_set_has_the_same_masks_as_objects_and_as_files(tmp_path: Path) -> None:
    root = draw_demo(tmp_path)
    for split, count in DEMO_SPLITS.items():
        index = open_coco_instances(root, split)
        assert (len(index), index.class_names) == (count, ("background", *DEMO_CLASSES))
        for position in range(count):
            written = cv2.imread(
                str(root / "masks" / split / f"{index.image_names[position]}.png"), cv2.IMREAD_UNCHANGED
            )
            assert np.array_equal(index.mask(position), written)


@pytest.mark.parity
def test_a_piece_of_coco_has_the_pixels_of_pycocotools(real_data: Path) -> None:
    index = open_coco_instances(real_data / "coco_mini", "train")
    masks, reference = index.masks, COCO(str(index.source))
    assert isinstance(masks, InstanceMasks)
    assert (len(index), len(index.class_names)) == (33, 81)
    for position, image_id in enumerate(index.image_ids.tolist()):
        covered = np.zeros(index.size_hw(position), np.bool_)
        for row in masks.rows[slice(*masks.spans[position])].tolist():
            theirs = reference.annToMask(reference.anns[int(masks.shapes.annotation_ids[row])])
            assert np.array_equal(coco_api.decode(masks.shapes.encode(row, index.size_hw(position))), theirs)
            covered |= theirs.astype(np.bool_)
        assert np.array_equal(index.mask(position) != 0, covered), image_id
    crowds = [
        position for position in range(len(index)) if masks.crowd[masks.rows[slice(*masks.spans[position])]].any()
    ]
    assert len(crowds) == 3
    assert all((index.mask(position) == 255).any() for position in crowds)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_facades_have_the_same_masks_as_objects_and_as_files(split: str, real_data: Path) -> None:
    root = real_data / "facade512"
    index = open_coco_instances(root, split)
    for position in range(0, len(index), 5):
        with Image.open(root / "masks" / f"{index.image_names[position]}.png") as written:
            assert np.array_equal(index.mask(position), np.asarray(written)), index.image_names[position]


def _segment(number: int, category: int = 3, **more: Any) -> dict[str, Any]:
    return {"id": number, "category_id": category} | more


@pytest.fixture
def panoptic(tmp_path: Path) -> Callable[..., SegmentationIndex]:
    """Open panoptic PNGs, 8x6: each image id with the ids of its pixels' columns and its segments."""

    def make(pictures: dict[int, tuple[list[int], list[dict[str, Any]]]], **changes: Any) -> SegmentationIndex:
        listed = changes.pop("listed", list(pictures))
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIZE[1], "height": SIZE[0]} for i in listed],
            "annotations": [
                {"image_id": i, "file_name": f"{i}.png", "segments_info": segments}
                for i, (_, segments) in pictures.items()
            ],
            "categories": [{"id": 12, "name": "bee"}, {"id": 3, "name": "ant"}, {"id": 90, "name": "cat"}],
        } | changes
        folder = tmp_path / "annotations" / "panoptic_val2017"
        folder.mkdir(parents=True, exist_ok=True)
        folder.with_suffix(".json").write_text(json.dumps(content))
        for i in listed:
            (tmp_path / "val2017").mkdir(exist_ok=True)
            assert cv2.imwrite(str(tmp_path / "val2017" / f"{i}.jpg"), np.zeros((*SIZE, 3), np.uint8))
        for i, (columns, _) in pictures.items():
            ids = np.broadcast_to(np.array(columns), (SIZE[0], len(columns)))
            rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(folder / f"{i}.png")
        return open_coco_panoptic(tmp_path, "val")

    return make


BIG = 1 + 256 * 2 + 65536 * 3


def test_panoptic_pixels_have_the_category_of_their_segment(panoptic: Callable[..., SegmentationIndex]) -> None:
    segments = [_segment(BIG, 90), _segment(5, 3), _segment(256, 12), _segment(9, 3, iscrowd=1), _segment(77, 3)]
    index = panoptic({7: ([BIG, 5, 256, 0, 9, 5, 5, BIG], segments)})
    assert index.class_names == ("ant", "bee", "cat")
    assert index.mask(0).tolist() == [[2, 0, 1, 255, 255, 0, 0, 2]] * SIZE[0]
    assert index.mask(0).dtype == np.uint8
    assert index.sample(0).mask is not None


def test_images_without_a_panoptic_annotation_are_left_out_and_counted(
    panoptic: Callable[..., SegmentationIndex],
) -> None:
    pictures = {i: ([i] * 8, [_segment(i, category)]) for i, category in ((4, 90), (2, 12))}
    index = panoptic(pictures, listed=[1, 2, 3, 4])
    assert index.image_ids.tolist() == [2, 4]
    assert index.image_names == ["2", "4"]
    assert any("2 of 4 images have no panoptic annotation" in note for note in index.notes)
    assert [index.mask(position)[0, 0] for position in range(2)] == [1, 2]
    assert isinstance(index.masks, PanopticMasks)
    assert [index.select([1]).mask(0)[0, 0], index.masks.where(1).rpartition("/")[2]] == [2, "4.png, image id 4"]


def test_an_image_without_segments_is_all_ignored(panoptic: Callable[..., SegmentationIndex]) -> None:
    assert (panoptic({1: ([0] * 8, []), 2: ([6] * 8, [_segment(6)])}).mask(0) == 255).all()
    assert len(panoptic({})) == 0


PANOPTIC_FAULTS = {
    "unknown-category": ([_segment(5, 4)], r"image id 7: segment id 5 is of no listed category"),
    "id-0": ([_segment(0)], r"image id 7: segment id 0 is not in 1\.\.16777215"),
    "id-too-large": ([_segment(1 << 24)], r"image id 7: segment id 16777216 is not in"),
    "twice": ([_segment(5), _segment(5, 90)], r"image id 7: segment id 5 comes twice"),
    "no-id": ([{"category_id": 3}], r"image id 7 \(number 1 of annotations\): expected file_name.*at fault: 'id'"),
}


@pytest.mark.parametrize("case", PANOPTIC_FAULTS)
def test_unusable_segments_are_refused(case: str, panoptic: Callable[..., SegmentationIndex]) -> None:
    segments, message = PANOPTIC_FAULTS[case]
    with pytest.raises(UserError, match=message):
        panoptic({7: ([5] * 8, segments)})


def test_a_png_with_segments_that_are_not_listed_is_refused(panoptic: Callable[..., SegmentationIndex]) -> None:
    index = panoptic({7: ([5, 6, 6, BIG, 5, 5, 5, 5], [_segment(5)])})
    with pytest.raises(LabelError, match=rf"7\.png has segments .*image id 7: id 6 \(12 pixels\), {BIG} \(6 pixels\)"):
        index.mask(0)


def test_a_png_of_another_size_is_refused(panoptic: Callable[..., SegmentationIndex]) -> None:
    index = panoptic({7: ([5] * 4, [_segment(5)])})
    with pytest.raises(LabelError, match=r"7\.png is 4x6 pixels, but its image is 8x6"):
        index.mask(0)


def test_missing_pngs_are_named(panoptic: Callable[..., SegmentationIndex]) -> None:
    index = panoptic({7: ([5] * 8, [_segment(5)])})
    folder = index.source.with_suffix("")
    (folder / "7.png").unlink()
    with pytest.raises(UserError, match=r"7\.png does not exist"):
        index.mask(0)
    folder.rename(folder.with_name("elsewhere"))
    folder.with_suffix(".zip").touch()
    with pytest.raises(UserError, match=r"panoptic PNGs of .* not found: .*unpack panoptic_val2017\.zip there"):
        open_coco_panoptic(index.source.parent.parent, "val")


def test_one_entry_for_each_image(panoptic: Callable[..., SegmentationIndex]) -> None:
    entry = {"image_id": 7, "file_name": "7.png", "segments_info": []}
    with pytest.raises(UserError, match=r"image id 7 has more than one entry"):
        panoptic({7: ([0] * 8, [])}, annotations=[entry, entry])
    with pytest.raises(UserError, match=r"1 annotations belong to no listed image: number 1 \(image id 8\)"):
        panoptic({7: ([0] * 8, [])}, annotations=[entry | {"image_id": 8}])


def test_the_other_kind_of_json_is_recognised(
    instances: Callable[..., SegmentationIndex], panoptic: Callable[..., SegmentationIndex]
) -> None:
    objects = instances(_object(1, SMALL, bbox=[1, 1, 2, 1]))
    with pytest.raises(UserError, match=r"segments_info .*this may be a file of instances"):
        open_coco_panoptic(None, "train", annotations=objects.source, images=objects.images_dir)
    segments = panoptic({7: ([5] * 8, [_segment(5)])})
    with pytest.raises(UserError, match=r"category_id"):
        open_coco_instances(None, "val", annotations=segments.source, images=segments.images_dir)
    with pytest.raises(
        UserError, match=r"no COCO panoptic annotations for split 'test': .*panoptic_test\*\.json.* val\."
    ):
        open_coco_panoptic(segments.source.parent.parent, "test")


def test_panoptic_pngs_of_coco_have_the_areas_that_their_json_states(real_data: Path) -> None:
    index = open_coco_panoptic(real_data / "coco_mini", "train")
    assert (len(index), len(index.class_names)) == (26, 133)
    content = json.loads(index.source.read_text())
    label_of = {category["id"]: label for label, category in enumerate(content["categories"])}
    position_of = {image_id: position for position, image_id in enumerate(index.image_ids.tolist())}
    for annotation in content["annotations"]:
        areas = np.zeros(256, np.int64)
        for segment in annotation["segments_info"]:
            areas[255 if segment["iscrowd"] else label_of[segment["category_id"]]] += segment["area"]
        mask = index.mask(position_of[annotation["image_id"]])
        areas[255] += mask.size - areas.sum()
        assert np.array_equal(np.bincount(mask.ravel(), minlength=256), areas)


SET_FLAGS = {"text-0": ("0", False), "text-1": ("1", True), "false": (False, False), "true": ("True", True),
             "null": (None, False), "one": (1, True)}  # fmt: skip


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
@pytest.mark.parametrize("case", SET_FLAGS)
def test_a_crowd_or_an_ignored_object_is_255_and_text_0_is_neither(
    case: str, flag: str, instances: Callable[..., SegmentationIndex]
) -> None:
    value, is_set = SET_FLAGS[case]
    index = instances(_object(1, WIDE, 3, **{flag: value}), _object(2, SMALL, 12))
    assert index.mask(0)[0, 0] == (255 if is_set else 1)
    assert index.mask(0)[1, 1] == 2


def test_a_flag_that_says_neither_is_named(instances: Callable[..., SegmentationIndex]) -> None:
    with pytest.raises(UserError, match=r"annotation id 5: iscrowd 'maybe' is neither 0 nor 1"):
        instances(_object(5, WIDE, iscrowd="maybe"))
