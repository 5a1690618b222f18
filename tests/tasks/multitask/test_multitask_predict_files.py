"""What predict leaves of a multitask model: the files of both tasks, and boxes over coloured classes in one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from effdense.datasets.collate import batches
from effdense.datasets.demo import DEMO_CLASSES
from effdense.datasets.image_inputs import as_sample
from effdense.datasets.opening import open_dataset
from effdense.drawing import class_color, mask_color
from effdense.errors import UserError
from effdense.tasks.detection.evaluate import evaluate
from effdense.tasks.detection.metrics.coco_metrics import coco_metrics
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.predict_files import predict_files as detect_files
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.multitask.predict_config import PredictConfig, ignored_settings
from effdense.tasks.multitask.predict_files import box_colors, predict_files
from effdense.tasks.segmentation import predict_files as segmentation_files
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.predict_files import predict_files as segment_files
from effdense.types import Batch, Detections, Segmentation, UInt8

STUFF = ("background", "low", "ring")
FILES = {"classes.txt", "detections.json", "images.json", "masks", "overview.jpg"}


@pytest.fixture(scope="module")
def multitask() -> Multitask:
    torch.manual_seed(0)
    names: dict[str, Any] = {"class_names": DEMO_CLASSES, "seg_class_names": STUFF, "image_size": 64}
    model = create_multitask("lite0", 6, 3, "linknet", **names, channels=16, bifpn_repeats=1, head_repeats=1)
    return Multitask(model, category_ids=[3, 5, 7, 9, 11, 13])


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"photos/p{number}.png" for number in range(3)]
    paths[0].parent.mkdir()
    for path, (height, width) in zip(paths, ((64, 64), (40, 100), (1, 1)), strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return paths


def _assert_same(first: Detections, second: Detections) -> None:
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)


def test_some_images_of_a_batch_get_what_they_get_in_the_whole(multitask: Multitask, photos: list[Path]) -> None:
    (batch,) = batches(map(as_sample, photos), multitask.transform, 3)
    whole = list(multitask.run(batch))
    objects, pixels = multitask.run_parts(batch, [2, 0], [1])
    assert all(len(one.scores) > 20 for one in objects)
    for position, found in zip([2, 0], objects, strict=True):
        _assert_same(found, whole[position].detections)
    (mask,) = pixels
    np.testing.assert_array_equal(mask.mask, whole[1].segmentation.mask)


def test_hooks_on_the_network_and_its_head_see_every_prediction(multitask: Multitask, photos: list[Path]) -> None:
    plain = multitask.predict(photos[1])
    seen: list[str] = []
    handles = [
        multitask.model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
        for name in ("", "detection.head")
    ]
    try:
        watched = multitask.predict(photos[1])
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["detection.head", ""]
    np.testing.assert_allclose(watched.detections.scores, plain.detections.scores, atol=1e-5)
    assert np.mean(watched.segmentation.mask == plain.segmentation.mask) > 0.999


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_files_are_those_of_both_tasks_byte_for_byte_but_for_the_pictures(
    batch_size: int, multitask: Multitask, photos: list[Path], tmp_path: Path
) -> None:
    result = predict_files(multitask, photos, tmp_path / "both", batch_size=batch_size, save_probabilities=True)
    detect_files(multitask.detector, photos, tmp_path / "det", batch_size=batch_size)
    segment_files(multitask.segmenter, photos, tmp_path / "seg", batch_size=batch_size, save_probabilities=True)
    both, det, seg = (_content(tmp_path / name) for name in ("both", "det", "seg"))
    assert set(both) == set(det) | set(seg)
    expected = {**det, **seg}
    assert {name for name in both if both[name] == expected[name]} >= {name for name in both if "jpg" not in name}
    assert (result.results, result.masks) == (tmp_path / "both/detections.json", tmp_path / "both/masks")
    assert len(json.loads(result.results.read_text())) > 0
    assert [path.name for path in result.drawn] == ["p0.jpg", "p1.jpg", "p2.jpg"]


def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model find a strong box, a ring, and a weak one; and the class 1 in the left half, 2 in the right."""

    def detections(self: Detector, batch: Batch, *_: object) -> list[Detections]:
        boxes = np.array([[10, 20, 50, 60], [60, 20, 75, 60]], np.float32)
        one = Detections(boxes, np.array([0.9, 0.2], np.float32), np.array([4, 2]), self.class_names)
        return [one] * len(batch.images)

    def segmentations(self: Segmenter, batch: Batch, *_: object, **__: object) -> list[Segmentation]:
        found = []
        for height, width in batch.original_sizes_hw.tolist():
            mask = np.zeros((height, width), np.uint8)
            mask[: height // 2, : width // 2], mask[: height // 2, width // 2 :] = 1, 2
            found.append(Segmentation(mask, class_names=self.class_names))
        return found

    monkeypatch.setattr(Detector, "from_outputs", detections)
    monkeypatch.setattr(Segmenter, "from_logits", segmentations)


def _grey(path: Path) -> Path:
    Image.new("RGB", (80, 80), (120, 120, 120)).save(path)
    return path


def test_boxes_are_drawn_over_the_classes_and_a_legend_stands_below(
    multitask: Multitask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stub(monkeypatch)
    seen: list[UInt8] = []
    write = segmentation_files.write_files
    monkeypatch.setattr(
        segmentation_files,
        "write_files",
        lambda files, picture, *rest: seen.append(picture) or write(files, picture, *rest),
    )
    result = predict_files(multitask, [_grey(tmp_path / "a.png")], tmp_path / "out", opacity=1.0)
    assert result.objects == 1
    for (row, column), color in {
        (35, 30): mask_color(1),
        (35, 70): mask_color(2),
        (70, 70): (120, 120, 120),
        (59, 30): mask_color(2),
        (30, 10): mask_color(2),
    }.items():
        assert tuple(seen[0][row, column]) == color, (row, column)
    picture = np.asarray(Image.open(result.drawn[0]))
    assert np.abs(picture[:80, :80].astype(int) - seen[0]).mean() < 8  # but for the JPEG
    assert (picture[80:] < 100).any(), "nothing is written in the legend"


@pytest.mark.parametrize(
    ("things", "stuff", "expected"),
    [
        pytest.param(("cat", "dog"), ("background", "dog"), [class_color(0), mask_color(1)], id="one-in-common"),
        pytest.param(("cat",), ("sky",), [class_color(0)], id="none-in-common"),
        pytest.param((), (), [], id="empty"),
    ],
)
def test_a_box_has_the_colour_of_its_class_s_pixels(
    things: tuple[str, ...], stuff: tuple[str, ...], expected: list[tuple[int, int, int]]
) -> None:
    assert box_colors(things, stuff) == expected


@pytest.mark.parametrize(("above", "objects"), [(0.0, 2), (0.2, 2), (0.5, 1), (1.0, 0)])
def test_weak_boxes_are_not_drawn_but_written(
    above: float, objects: int, multitask: Multitask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stub(monkeypatch)
    result = predict_files(multitask, [_grey(tmp_path / "a.png")], tmp_path / "out", draw_above=above)
    assert result.objects == objects
    assert len(json.loads(result.results.read_text())) == 2


def test_the_results_of_a_data_set_score_as_evaluation_does(multitask: Multitask, tmp_path: Path) -> None:
    demo = open_dataset("demo", None, "val").select(range(6))
    result = predict_files(multitask, demo, tmp_path, batch_size=4)
    evaluation = evaluate(multitask.detector, demo, batch_size=4)
    assert coco_metrics(evaluation.truth, result.results).metrics == pytest.approx(
        evaluation.coco.metrics, abs=0, nan_ok=True
    )
    listed = json.loads((tmp_path / "images.json").read_text())["images"]
    assert [image["id"] for image in listed] == demo.image_ids.tolist()


def test_no_image_leaves_no_picture(multitask: Multitask, tmp_path: Path) -> None:
    assert predict_files(multitask, [], tmp_path / "out").drawn == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"masks", "overview.jpg"}


def test_a_broken_image_stops_or_is_counted_as_asked(multitask: Multitask, photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff junk")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        predict_files(multitask, [photos[0], broken], tmp_path / "out")
    result = predict_files(multitask, [photos[0], broken, photos[1]], tmp_path / "out", skip_broken=True)
    assert result.broken == [broken]
    assert [path.name for path in result.drawn] == ["p0.jpg", "p1.jpg"]
    listed = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [image["id"] for image in listed] == [1, 3]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        pytest.param("p0.jpg", "overwrite", id="image"),
        pytest.param("masks/p0.png", "mask that no earlier", id="mask"),
        pytest.param("JPEGImages/x.jpg", "images of a data set", id="data-set"),
    ],
)
def test_what_a_person_made_is_never_overwritten(
    file: str, says: str, multitask: Multitask, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / file).parent.mkdir(parents=True)
    cv2.imwrite(str(out / file), np.zeros((20, 20, 3), np.uint8))
    before = _content(out)
    inputs = [out / file] if says == "overwrite" else photos
    with pytest.raises(UserError, match=says):
        predict_files(multitask, inputs, out)
    assert _content(out) == before


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({}, "either images", id="nothing"),
        pytest.param({"images": (Path("a"),), "dataset": "voc"}, "not both", id="both"),
        pytest.param({"images": (Path("a"),), "opacity": 1.5}, "opacity is 1.5", id="opacity"),
        pytest.param({"images": (Path("a"),), "draw_above": -1.0}, "draw_above is -1.0", id="score"),
        pytest.param({"images": (Path("a"),), "batch_size": 0}, "batch_size is 0", id="batch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PredictConfig(model=Path("m"), **values)


def test_a_split_without_a_data_set_would_be_ignored() -> None:
    assert "split" in ignored_settings(PredictConfig(Path("m"), (Path("a"),)))
    assert "split" not in ignored_settings(PredictConfig(Path("m"), dataset="demo"))
