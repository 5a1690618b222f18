"""The index of images with boxes, masks or both: which images are the same, what a sample carries, sizes and ids."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effdense.datasets import multitask_index
from effdense.datasets.doctor import examine
from effdense.datasets.index import DetectionIndex
from effdense.datasets.loading import eval_loader
from effdense.datasets.multitask_index import LabelCounts, MultitaskIndex
from effdense.datasets.multitask_opening import open_multitask
from effdense.datasets.opening import open_dataset
from effdense.datasets.segmentation_doctor import examine_masks
from effdense.datasets.segmentation_index import LabelError, SegmentationIndex
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.transforms import eval_transform

BOX = ("cat", (3, 4, 20, 30))
Pair = tuple[DetectionIndex, SegmentationIndex]


@pytest.fixture
def voc(tmp_path: Path, write_voc, write_image, write_mask) -> Callable[..., Path]:
    """Write a VOC folder: boxes (one an image) of some names, masks of some, the images of all."""

    def write(boxes: str, masks: str, root: Path = tmp_path) -> Path:
        write_voc({name: [BOX] for name in boxes}, {"train": [*boxes]}, root)
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in masks))
        for name in masks:
            write_image(root / f"JPEGImages/{name}.jpg", seed=ord(name))
            write_mask(root / f"SegmentationClass/{name}.png", ord(name) - ord("a"))
        return root

    return write


def opened(boxes: Path, masks: Path | None = None) -> Pair:
    return open_dataset("voc", boxes, "train"), open_segmentation("voc", masks or boxes, "train")


def carried(index: MultitaskIndex) -> dict[str, str]:
    """What each image carries by its labels as they are read, by name."""
    found = {}
    for position in range(len(index)):
        sample = index.sample(position)
        labels = ["boxes"] * sample.has_boxes + ["mask"] * (sample.mask is not None)
        assert (index.has_boxes[position], index.has_masks[position]) == ("boxes" in labels, "mask" in labels)
        assert len(sample.labels) == sample.has_boxes
        found[index.path(position).stem] = " ".join(labels)
    return found


# which images are the same


@pytest.mark.parametrize(
    ("boxes", "masks", "expected"),
    [
        pytest.param("abc", "abc", "a2 b2 c2", id="all of both"),
        pytest.param("abcd", "c", "a0 b0 c2 d0", id="few masks"),
        pytest.param("b", "abc", "b2 a1 c1", id="few boxes"),
        pytest.param("ab", "cd", "a0 b0 c1 d1", id="nothing shared"),
        pytest.param("abc", "dcb", "a0 b2 c2 d1", id="some shared, in another order"),
        pytest.param("a", "a", "a2", id="a single image"),
    ],
)
def test_an_image_that_both_list_is_one_with_both_labels(boxes: str, masks: str, expected: str, voc) -> None:
    detection, segmentation = opened(voc(boxes, masks))
    index = MultitaskIndex.of(detection, segmentation)
    kinds = ("boxes", "mask", "boxes mask")
    assert carried(index) == {word[0]: kinds[int(word[1])] for word in expected.split()}
    assert [index.path(i).stem for i in range(len(index))] == [word[0] for word in expected.split()]
    for position, (box_row, mask_row) in enumerate(index.rows.tolist()):
        sample = index.sample(position)
        if box_row >= 0:
            assert detection.path(box_row) == index.path(position)
            assert np.array_equal(sample.boxes_xyxy, detection.sample(box_row).boxes_xyxy)
        if mask_row >= 0:
            assert segmentation.path(mask_row) == index.path(position)
            assert np.array_equal(sample.mask, segmentation.mask(mask_row))
    number = {kind: expected.count(str(digit)) for digit, kind in enumerate(("boxes_only", "masks_only", "both"))}
    assert index.counts == LabelCounts(**number)
    assert index.summary().startswith(f"{len(index)} images: {number['both']} with boxes and masks")


@pytest.mark.parametrize("which", ["boxes", "masks"])
def test_one_index_alone_will_do(which: str, voc) -> None:
    detection, segmentation = opened(voc("ab", "bcd"))
    boxes = which == "boxes"
    index = MultitaskIndex.of(detection, None) if boxes else MultitaskIndex.of(None, segmentation)
    assert carried(index) == ({"a": "boxes", "b": "boxes"} if boxes else dict.fromkeys("bcd", "mask"))
    assert index.image_ids.tolist() == ([1, 2] if boxes else [1, 2, 3])


def test_no_index_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="neither"):
        MultitaskIndex.of(None, None)


@pytest.mark.parametrize(("boxes", "masks"), [("", ""), ("", "a"), ("a", "")], ids=["both", "boxes", "masks"])
def test_empty_indices_are_joined(boxes: str, masks: str, voc) -> None:
    detection, segmentation = opened(voc("a", "a"))
    index = MultitaskIndex.of(detection.select(range(len(boxes))), segmentation.select(range(len(masks))))
    assert len(index) == len(index.image_ids) == len(boxes + masks)
    assert index.rows.shape == (len(index), 2)
    assert index.counts == LabelCounts(0, len(boxes), len(masks))


def _linked_folder(root: Path) -> Path:
    (root.parent / "elsewhere").symlink_to(root)
    return root.parent / "elsewhere"


def _linked_files(root: Path) -> Path:
    other = root.parent / "elsewhere"
    shutil.copytree(root, other)
    for image in (other / "JPEGImages").iterdir():
        image.unlink()
        image.symlink_to(root / "JPEGImages" / image.name)
    return other


def _links_to_links(root: Path) -> Path:
    other = _linked_files(root)
    for image in (other / "JPEGImages").iterdir():
        moved = image.rename(other / image.name)
        image.symlink_to(moved)
    return other


def _roundabout(root: Path) -> Path:
    return root / "JPEGImages" / ".."


def _copied(root: Path) -> Path:
    return Path(shutil.copytree(root, root.parent / "elsewhere"))


@pytest.mark.parametrize(
    ("way", "same"),
    [
        (_linked_folder, True),
        (_linked_files, True),
        (_links_to_links, True),
        (_roundabout, True),
        (_copied, False),
    ],
)
@pytest.mark.parametrize("turned", [False, True], ids=["masks there", "boxes there"])
def test_a_file_reached_by_two_paths_is_one_image(
    way: Callable[[Path], Path], same: bool, turned: bool, tmp_path: Path, voc
) -> None:
    root = voc("abc", "bcd", tmp_path / "first")
    other = way(root)
    index = MultitaskIndex.of(*(opened(other, root) if turned else opened(root, other)))
    assert index.counts == (LabelCounts(2, 1, 1) if same else LabelCounts(0, 3, 3))
    assert len(carried(index)) == 4


def test_a_relative_path_and_an_absolute_one_are_the_same(tmp_path: Path, voc, monkeypatch) -> None:
    root = voc("ab", "ab")
    monkeypatch.chdir(tmp_path.parent)
    index = MultitaskIndex.of(*opened(root, Path(tmp_path.name)))
    assert index.counts == LabelCounts(2, 0, 0)


def test_a_file_that_is_listed_twice_is_matched_as_often_as_it_is_listed(voc) -> None:
    detection, segmentation = opened(voc("ab", "ab"))
    twice = MultitaskIndex.of(detection.select([0, 1, 0]), segmentation.select([0, 0, 1]))
    assert twice.rows.tolist() == [[0, 0], [1, 2], [2, 1]]
    once = MultitaskIndex.of(detection.select([0, 0]), segmentation.select([0]))
    assert once.rows.tolist() == [[0, 0], [1, -1]]
    assert len(set(once.image_ids.tolist())) == 2


def test_files_that_are_missing_are_matched_by_name_and_told_when_they_are_read(voc) -> None:
    root = voc("ab", "ab")
    detection, segmentation = opened(root)
    (root / "JPEGImages/b.jpg").unlink()
    index = MultitaskIndex.of(detection, segmentation)
    assert index.counts == LabelCounts(2, 0, 0)
    with pytest.raises(UserError, match=r"b\.jpg does not exist"):
        index.sample(1)


def test_doctors_may_leave_out_other_images_of_each_index(voc) -> None:
    root = voc("abcd", "bcde")
    (root / "JPEGImages/a.jpg").write_bytes(b"no image")  # of the boxes alone
    (root / "JPEGImages/b.jpg").write_bytes(b"no image")  # of both
    (root / "SegmentationClass/c.png").write_bytes(b"no mask")
    (root / "JPEGImages/e.jpg").write_bytes(b"no image")  # of the masks alone
    detection, segmentation = opened(root)
    boxes = examine({"train": detection}, skip_broken=True).cleaned["train"]
    masks = examine_masks({"train": segmentation}, skip_broken=True).sound["train"]
    index = MultitaskIndex.of(boxes, masks)
    assert carried(index) == {"c": "boxes", "d": "boxes mask"}


# ids


def test_ids_are_the_data_sets_own_where_they_are_unique(voc) -> None:
    detection, segmentation = opened(voc("ab", "bc"))
    detection = replace(detection, image_ids=np.array([70, 80]))
    segmentation = replace(segmentation, image_ids=np.array([80, 95]))
    index = MultitaskIndex.of(detection, segmentation)
    assert index.image_ids.tolist() == [70, 80, 95]
    assert [index.sample(i).image_id for i in range(3)] == [70, 80, 95]
    reordered = index.select([2, 0])
    assert [reordered.sample(i).image_id for i in range(2)] == [95, 70]


def test_ids_that_collide_are_replaced_and_each_task_keeps_its_own(voc) -> None:
    detection, segmentation = opened(voc("ab", "bc"))
    index = MultitaskIndex.of(detection, segmentation)  # 1 a and 2 b; 1 b and 2 c
    assert index.image_ids.tolist() == [1, 2, 3]
    assert [index.sample(i).image_id for i in range(3)] == [1, 2, 3]
    assert detection.image_ids[index.rows[[0, 1], 0]].tolist() == [1, 2]
    assert segmentation.image_ids[index.rows[[1, 2], 1]].tolist() == [1, 2]
    assert [index.path_of(image_id).stem for image_id in (1, 2, 3)] == ["a", "b", "c"]
    assert index.select([2, 0]).path_of(3).stem == "c"


# sizes and EXIF


@pytest.fixture
def one_photo(tmp_path: Path, write_mask) -> Callable[..., Pair]:
    """Write a photo, stored 60 wide and 40 high, its left half red, with the sizes that boxes and mask are for."""

    def write(orientation: int, box_size_hw: tuple[int, int] | None, mask_size_hw: tuple[int, int]) -> Pair:
        left_red = np.zeros((40, 60, 3), np.uint8)
        left_red[:, :30, 0] = 250
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / "JPEGImages").mkdir()
        Image.fromarray(left_red).save(tmp_path / "JPEGImages/a.jpg", exif=exif, quality=95)
        height, width = box_size_hw or (0, 0)
        size = f"<size><width>{width}</width><height>{height}</height></size>" if box_size_hw else ""
        corners = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>8</ymax>"
        (tmp_path / "Annotations").mkdir()
        (tmp_path / "Annotations/a.xml").write_text(
            f"<annotation>{size}<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
        )
        write_mask(tmp_path / "SegmentationClass/a.png", np.ones(mask_size_hw))
        for kind in ("Main", "Segmentation"):
            (tmp_path / "ImageSets" / kind).mkdir(parents=True)
            (tmp_path / "ImageSets" / kind / "train.txt").write_text("a\n")
        return opened(tmp_path)

    return write


STORED, TURNED = (40, 60), (60, 40)


@pytest.mark.parametrize("examined", [False, True], ids=["as opened", "examined"])
@pytest.mark.parametrize(
    ("orientation", "box_size_hw", "mask_size_hw", "agree"),
    [
        pytest.param(1, STORED, STORED, True, id="upright"),
        pytest.param(1, None, STORED, True, id="boxes without a size"),
        pytest.param(6, STORED, STORED, True, id="both as stored"),
        pytest.param(6, TURNED, TURNED, True, id="both as seen"),
        pytest.param(6, TURNED, STORED, False, id="boxes as seen, mask as stored"),
        pytest.param(6, STORED, TURNED, False, id="boxes as stored, mask as seen"),
        pytest.param(6, None, TURNED, False, id="boxes without a size are as stored"),
        pytest.param(6, None, STORED, True, id="boxes without a size and a mask as stored"),
    ],
)
def test_boxes_and_mask_belong_to_the_same_picture(
    examined: bool, orientation: int, box_size_hw, mask_size_hw, agree: bool, one_photo
) -> None:
    detection, segmentation = one_photo(orientation, box_size_hw, mask_size_hw)
    if examined:
        reports = examine({"train": detection}), examine_masks({"train": segmentation})
        for report in reports:
            report.raise_errors()
        detection, segmentation = reports[0].cleaned["train"], reports[1].sound["train"]

    def read() -> Any:
        return MultitaskIndex.of(detection, segmentation).sample(0)

    if not agree:
        (height, width), (mask_height, mask_width) = box_size_hw or STORED, mask_size_hw
        sizes = rf"a\.xml means {width}x{height} pixels, .*a\.png is {mask_width}x{mask_height}"
        with pytest.raises(LabelError, match=rf"a\.jpg.*{sizes}"):
            read()
        return
    sample = read()
    assert sample.image.shape[:2] == sample.mask.shape == sample.original_size_hw == mask_size_hw
    assert sample.boxes_xyxy.tolist() == [[0, 0, 9, 8]]
    assert np.array_equal(sample.image, detection.sample(0).image)
    assert np.array_equal(sample.image, segmentation.sample(0).image)


def test_sizes_that_are_known_are_compared_at_once_and_the_differing_counted(voc) -> None:
    detection, segmentation = opened(voc("abc", "cba"))
    segmentation = replace(segmentation, sizes_hw=np.array([[40, 60], [41, 60], [40, 61]]))
    with pytest.raises(LabelError, match=r"(?s)a\.jpg.*60x40.*61x40.*1 more"):
        MultitaskIndex.of(detection, segmentation)


def test_an_image_with_both_labels_is_decoded_once(voc, monkeypatch) -> None:
    index = MultitaskIndex.of(*opened(voc("a", "a")))
    reads = []
    from effdense.datasets.images import read_whole

    def read(*given):
        reads.append(given[0])
        return read_whole(*given)

    index.sample(0, read)
    assert len(reads) == 1


# what it costs


def test_the_index_survives_the_way_to_a_worker_and_holds_no_python_objects(voc) -> None:
    index = MultitaskIndex.of(*opened(voc("ab", "bc")))
    again = pickle.loads(pickle.dumps(index))
    assert carried(again) == carried(index)
    arrays = [value for field in fields(index) if isinstance(value := getattr(index, field.name), np.ndarray)]
    assert [array.dtype for array in arrays] == [np.int64, np.int64]
    big = index.select(np.zeros(10_000, np.int64))
    assert (len(pickle.dumps(big)) - len(pickle.dumps(index))) / len(big) < 30  # bytes per image


def test_no_path_is_resolved_from_the_root_but_links_and_folders(voc, monkeypatch) -> None:
    root = voc("abcd", "abcd")
    (root / "JPEGImages/b.jpg").rename(root / "b.jpg")
    (root / "JPEGImages/b.jpg").symlink_to(root / "b.jpg")
    detection, segmentation = opened(root)
    resolved = []
    original = multitask_index.os.path.realpath
    monkeypatch.setattr(multitask_index.os.path, "realpath", lambda path: resolved.append(str(path)) or original(path))
    MultitaskIndex.of(detection, segmentation)
    assert resolved == [
        str(root / "JPEGImages"),
        str(root / "JPEGImages/b.jpg"),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_all_kinds_are_loaded_in_one_batch(workers: int, voc) -> None:
    index = MultitaskIndex.of(*opened(voc("ab", "bc")))
    loader = eval_loader(index, eval_transform((64, 64), (0, 0, 0)), batch_size=3, workers=workers)
    (batch,) = loader
    assert batch.with_boxes.tolist() == [True, True, False]
    assert batch.with_masks.tolist() == [False, True, True]
    assert batch.masks is not None
    assert [int(mask[0, 0]) for mask in batch.masks] == [255, 1, 2]


# data that people have


@pytest.mark.parametrize(
    ("name", "folder", "split", "count"),
    [
        pytest.param("voc", "facade_voc", "train", 424, id="voc"),
        pytest.param("coco", "facade512", "val", 80, id="coco"),
        pytest.param("coco", "coco_mini", "train", 33, id="coco with sizes of all kinds"),
    ],
)
def test_real_data_have_both_labels_of_every_image(
    name: str, folder: str, split: str, count: int, real_data: Path
) -> None:
    detection, segmentation = open_multitask(name, real_data / folder, split)
    assert detection is not None
    assert segmentation is not None
    index = MultitaskIndex.of(detection, segmentation)
    assert index.counts == LabelCounts(count, 0, 0)
    assert index.image_ids.tolist() == detection.image_ids.tolist()
    for position in (0, count // 2, count - 1):
        sample, boxes, mask = index.sample(position), detection.sample(position), segmentation.sample(position)
        assert np.array_equal(sample.image, boxes.image)
        assert np.array_equal(sample.boxes_xyxy, boxes.boxes_xyxy)
        assert np.array_equal(sample.mask, mask.mask)
