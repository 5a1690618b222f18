"""Images decoded small for training: the same crops and labels, nearly the same pixels, only where asked for."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from effdense.datasets.coco import open_coco
from effdense.datasets.fast_decode import read_reduced, reduction, shrunk
from effdense.datasets.images import read_rgb, read_whole
from effdense.datasets.loading import SampleData, train_loader
from effdense.errors import UserError
from effdense.transforms import Compose, Flip, eval_transform, train_transform
from effdense.transforms.geometry import resized

FILL = (124, 116, 104)
SIZE_HW = (241, 322)


def _photo(size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    noise = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three photos, of which one is a PNG and one has no stated size."""
    height, width = SIZE_HW
    images = [
        {"id": 1, "file_name": "a.jpg", "height": height, "width": width},
        {"id": 2, "file_name": "b.png", "height": height, "width": width},
        {"id": 3, "file_name": "c.jpg"},
    ]
    for image in images:
        cv2.imwrite(str(tmp_path / image["file_name"]), _photo(), [cv2.IMWRITE_JPEG_QUALITY, 95])
    boxes = [[10, 20, 60, 40], [100.5, 30.25, 90, 200], [0, 0, width, height]]
    annotations = [
        {"id": 3 * i + k, "image_id": image["id"], "category_id": 1, "bbox": box}
        for i, image in enumerate(images)
        for k, box in enumerate(boxes)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def _open(root: Path):
    return open_coco(None, "train", annotations=root / "train.json", images=root)


REDUCTIONS = {
    "larger": ((480, 640), (481, 640), 1),
    "the-same": ((480, 640), (480, 640), 1),
    "just-above-half": ((480, 640), (241, 320), 1),
    "half": ((480, 640), (240, 320), 2),
    "one-side-is-above": ((480, 640), (200, 321), 1),
    "quarter": ((480, 640), (120, 160), 4),
    "tiny": ((480, 640), (3, 4), 8),
    "odd": ((427, 641), (213, 320), 2),
    "an-eighth-would-stretch": ((427, 640), (53, 80), 4),
    "a-pixel": ((1, 1), (1, 1), 1),
}


@pytest.mark.parametrize("case", REDUCTIONS)
def test_an_image_is_decoded_no_smaller_than_wanted(case: str) -> None:
    size_hw, wanted_hw, expected = REDUCTIONS[case]
    assert reduction(size_hw, wanted_hw) == expected


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_photo_decoded_small_looks_like_the_whole_one_averaged(factor: int, tmp_path: Path) -> None:
    size_hw = (240, 320)
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), _photo(size_hw), [cv2.IMWRITE_JPEG_QUALITY, 95])
    small = read_reduced(path, size_hw, factor)
    assert small.shape == (240 // factor, 320 // factor, 3)
    averaged = cv2.resize(read_rgb(path), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - averaged).mean() < 1.5


@pytest.mark.parametrize("factor", [0.5, 0.51, 0.6, 0.69])
def test_bilinear_shrinking_down_to_a_half_stays_near_the_average(factor: float) -> None:
    photo = _photo((240, 320))
    wanted_hw = (round(240 * factor), round(320 * factor))
    small = shrunk(photo, wanted_hw)
    assert small.shape[:2] == wanted_hw
    assert np.abs(small.astype(int) - resized(photo, wanted_hw)).mean() < 1.5


@pytest.mark.parametrize("wanted_hw", [(241, 322), (400, 600), (180, 240), (119, 161), (120, 159), (3, 4)])
def test_images_that_shrink_by_less_or_by_more_than_bilinear_can_are_left_to_the_transform(
    wanted_hw: tuple[int, int],
) -> None:
    photo = _photo()
    assert shrunk(photo, wanted_hw) is photo


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_what_is_no_jpeg_or_not_smaller_is_read_whole(name: str, root: Path) -> None:
    factor = 1 if name == "a.jpg" else 2
    assert np.array_equal(read_reduced(root / name, SIZE_HW, factor), read_rgb(root / name))


def test_an_image_of_another_size_than_stated_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="322x241 pixels, but its annotation states 300x200"):
        read_reduced(root / "a.jpg", (200, 300), 2)


def test_a_broken_or_missing_image_is_named(root: Path) -> None:
    (root / "a.jpg").write_bytes((root / "a.jpg").read_bytes()[:900])
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        read_reduced(root / "a.jpg", SIZE_HW, 2)
    with pytest.raises(UserError, match="does not exist"):
        read_reduced(root / "none.jpg", SIZE_HW, 2)


def test_a_photo_stored_sideways_is_turned_as_its_annotation_says(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_photo((120, 160))).save(tmp_path / "a.jpg", exif=exif)
    assert read_reduced(tmp_path / "a.jpg", (160, 120), 2).shape == (160, 120, 3)
    assert read_reduced(tmp_path / "a.jpg", (120, 160), 2).shape == (60, 80, 3)


@pytest.mark.parametrize("scale", [(0.1, 0.2), (0.1, 2.0), (0.4, 0.4), (1.5, 1.5)])
def test_crops_boxes_and_labels_are_those_of_whole_images(scale: tuple[float, float], root: Path) -> None:
    transform = train_transform(image_size_hw=(160, 160), fill=FILL, scale=scale, vflip=0.5)
    index = _open(root)
    whole, small = (SampleData(index, transform, 4, fast_decode=fast) for fast in (False, True))
    for epoch in range(8):
        for position in range(3):
            one, other = whole[epoch, position], small[epoch, position]
            assert other.image.shape == one.image.shape
            assert other.labels_size_hw is None
            assert (other.original_size_hw, other.resized_size_hw) == (one.original_size_hw, one.resized_size_hw)
            assert np.array_equal(other.boxes_xyxy, one.boxes_xyxy)
            assert np.array_equal(other.labels, one.labels)
            assert np.abs(one.image.astype(int) - other.image).mean() < 4
            if scale[0] == 1.5 or position == 2:
                assert np.array_equal(one.image, other.image)


def test_images_are_decoded_small_indeed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from effdense.datasets import fast_decode

    factors = []

    def read(path, size_hw, factor):
        factors.append(factor)
        return read_reduced(path, size_hw, factor)

    monkeypatch.setattr(fast_decode, "read_reduced", read)
    transform = train_transform(image_size_hw=(160, 160), fill=FILL, scale=(0.05, 1.3))
    data = SampleData(_open(root), transform, fast_decode=True)
    for epoch in range(60):
        data[epoch, 0]
    assert set(factors) == {1, 2, 4, 8}


WITHOUT_JITTER = {"eval": eval_transform((64, 64), FILL), "flip": Flip(1.0), "none": Compose(())}


@pytest.mark.parametrize("case", WITHOUT_JITTER)
def test_transforms_that_do_not_begin_with_the_jitter_get_whole_images(case: str, root: Path) -> None:
    index, transform = _open(root), WITHOUT_JITTER[case]
    one, other = (SampleData(index, transform, fast_decode=fast)[0, 0] for fast in (False, True))
    assert np.array_equal(one.image, other.image)


def test_the_loader_takes_the_setting_and_workers_change_nothing(root: Path) -> None:
    transform = train_transform(image_size_hw=(64, 64), fill=FILL, scale=(0.2, 1.0))
    batches = [
        next(iter(train_loader(_open(root), transform, batch_size=3, workers=workers, seed=2, fast_decode=True)))
        for workers in (0, 2)
    ]
    assert np.array_equal(batches[0].images.numpy(), batches[1].images.numpy())


def test_a_data_set_without_a_jpeg_is_told_so_once(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transform = train_transform(image_size_hw=(64, 64), fill=FILL)
    for fast in (False, True):
        train_loader(_open(root), transform, batch_size=3, fast_decode=fast)
    assert caplog.records == []
    content = json.loads((root / "train.json").read_text())
    for image in content["images"]:
        whole = cv2.imread(str(root / image["file_name"]))
        image["file_name"] = Path(image["file_name"]).with_suffix(".png").name
        cv2.imwrite(str(tmp_path / image["file_name"]), whole)
    (tmp_path / "train.json").write_text(json.dumps(content))
    index = open_coco(None, "train", annotations=tmp_path / "train.json", images=tmp_path)
    train_loader(index, transform, batch_size=3, fast_decode=False)
    assert caplog.records == []
    train_loader(index, transform, batch_size=3, fast_decode=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no image to train on is a JPEG" in caplog.text


def test_a_mask_of_an_image_decoded_small_is_that_of_the_whole(root: Path) -> None:
    from effdense.datasets.coco_instances import open_coco_instances

    content = json.loads((root / "train.json").read_text())
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    (root / "train.json").write_text(json.dumps(content))
    index = open_coco_instances(None, "train", annotations=root / "train.json", images=root)
    transform = train_transform(image_size_hw=(64, 64), fill=FILL, scale=(0.2, 1.0))
    one, other = (SampleData(index, transform, fast_decode=fast)[1, 0] for fast in (False, True))
    assert one.mask is not None
    assert np.array_equal(one.mask, other.mask)
    assert not np.array_equal(one.image, other.image)


def test_whole_images_come_with_their_size(root: Path) -> None:
    image, size_hw = read_whole(root / "c.jpg", None)
    assert size_hw == image.shape[:2] == SIZE_HW
