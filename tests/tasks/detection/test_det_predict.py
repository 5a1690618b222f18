"""Prediction: one path for every kind of input, equal to evaluation, in original pixels."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import effdense
from effdense.datasets import prediction_files
from effdense.datasets.demo import DEMO_CLASSES
from effdense.datasets.opening import open_dataset
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.detection.evaluate import evaluate
from effdense.tasks.detection.metrics.coco_metrics import coco_metrics
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.model import EfficientDet, create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.predict_files import predict_files
from effdense.training.checkpoint import save_model
from effdense.types import Detections

CLASSES = DEMO_CLASSES


def _detector(**changes: Any) -> Detector:
    torch.manual_seed(0)
    model = create_efficientdet("lite0", len(CLASSES), channels=16, bifpn_repeats=1, head_repeats=1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        for name, parameter in model.head.classes.named_parameters():
            if name.endswith("pointwise.weight"):
                parameter.mul_(30)
    return Detector(model, CLASSES, image_size=96, category_ids=[3, 5, 7, 9, 11, 13], **changes)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return _detector()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(60, 100), (100, 60), (96, 96), (33, 47), (1, 200)]):
        blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
        picture = np.repeat(np.repeat(blocks, 8, 0), 8, 1)[:height, :width]
        paths.append(folder / f"p{number}.png")
        cv2.imwrite(str(paths[-1]), picture)
    return paths


def _assert_same(first: Detections, second: Detections) -> None:
    np.testing.assert_allclose(first.boxes_xyxy, second.boxes_xyxy, atol=5e-3)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_a_path_an_array_and_a_pil_image_give_the_same(detector: Detector, pictures: list[Path]) -> None:
    by_path = detector.predict(pictures[0])
    assert len(by_path) > 0
    array = cv2.cvtColor(cv2.imread(str(pictures[0])), cv2.COLOR_BGR2RGB)
    _assert_same(by_path, detector.predict(str(pictures[0])))
    _assert_same(by_path, detector.predict(np.asarray(array, np.uint8)))
    _assert_same(by_path, detector.predict(Image.open(pictures[0])))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_batch_gives_what_single_images_give(detector: Detector, pictures: list[Path], batch_size: int) -> None:
    together = detector.predict(pictures, batch_size=batch_size)
    assert len(together) == len(pictures)
    for path, found in zip(pictures, together, strict=True):
        _assert_same(found, detector.predict(path))


def test_hooks_on_the_network_and_its_head_see_every_prediction(pictures: list[Path]) -> None:
    detector = _detector()
    plain = detector.predict(pictures[0])
    seen: list[str] = []
    for name in ("", "head"):
        detector.model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    _assert_same(detector.predict(pictures[0]), plain)
    assert seen == ["head", ""]


class Bolder(EfficientDet):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        class_logits, box_codes = super().forward(images)
        return class_logits + 5, box_codes


def test_a_network_with_another_forward_is_asked_by_it(pictures: list[Path]) -> None:
    plain, detector = _detector(), _detector()
    detector.model.__class__ = Bolder
    best, bolder = (one.predict(pictures[0]).scores[0] for one in (plain, detector))
    assert np.log(bolder / (1 - bolder)) == pytest.approx(np.log(best / (1 - best)) + 5, abs=1e-2)


def test_an_empty_list_gives_an_empty_list(detector: Detector) -> None:
    assert detector.predict([]) == []


def test_boxes_are_in_pixels_of_the_original_image_and_sorted_by_score(
    detector: Detector, pictures: list[Path]
) -> None:
    for path, found in zip(pictures, detector.predict(pictures), strict=True):
        height, width = cv2.imread(str(path)).shape[:2]
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy[:, [0, 2]] <= width).all()
        assert (found.boxes_xyxy[:, [1, 3]] <= height).all()
        assert (np.diff(found.scores) <= 0).all()
        assert found.class_names == CLASSES


def test_a_photo_with_an_exif_orientation_is_seen_upright(
    detector: Detector, pictures: list[Path], tmp_path: Path
) -> None:
    upright = Image.open(pictures[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    _assert_same(detector.predict(tmp_path / "lying.png"), detector.predict(pictures[0]))
    _assert_same(detector.predict(Image.open(tmp_path / "lying.png")), detector.predict(pictures[0]))


BAD_IMAGES = [
    pytest.param(np.zeros((4, 4), np.uint8), "uint8 .H, W, 3.", id="grey-array"),
    pytest.param(np.zeros((4, 4, 3), np.float32), "float32", id="float-array"),
    pytest.param(np.zeros((0, 4, 3), np.uint8), "uint8 .H, W, 3.", id="empty-array"),
    pytest.param(3, "a path, an RGB array or a PIL image, not a int", id="number"),
    pytest.param(Path("nowhere.jpg"), "nowhere.jpg", id="missing-file"),
]


@pytest.mark.parametrize(("image", "says"), BAD_IMAGES)
def test_what_is_no_image_is_refused(detector: Detector, image: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        detector.predict(image)


def test_a_saved_detector_loads_whole_and_predicts_the_same(
    detector: Detector, pictures: list[Path], tmp_path: Path
) -> None:
    detector.with_selection(max_detections=7).save(tmp_path / "d.safetensors")
    loaded = effdense.load(tmp_path / "d.safetensors")
    assert loaded.class_names == CLASSES
    assert loaded.category_ids == (3, 5, 7, 9, 11, 13)
    assert loaded.image_size == 96
    assert loaded.selection.max_detections == 7
    for path in pictures:
        one, other = detector.with_selection(max_detections=7).predict(path), loaded.predict(path)
        assert len(other) <= 7
        _assert_same(one, other)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "not a whole effdense model", id="empty"),
        pytest.param(pickle.dumps(print), "not a whole effdense model", id="pickle"),
        pytest.param(None, "no model file", id="missing"),
    ],
)
def test_load_refuses_what_is_no_model(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=says):
        effdense.load(tmp_path / "m.safetensors")


def _without(*keys: str) -> Any:
    def change(header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(_without("preprocessing"), "'preprocessing' is missing", id="preprocessing"),
        pytest.param(_without("preprocessing", "mean"), "'mean' is missing", id="mean"),
        pytest.param(_without("model"), "'model' is missing", id="model"),
        pytest.param(_without("model", "name"), "name", id="name-of-the-model"),
        pytest.param(_without("class_names"), "'class_names' is missing", id="classes"),
        pytest.param(_without("selection"), "'selection' is missing", id="selection"),
        pytest.param(lambda header: header.update(model=[1]), "", id="list-for-model"),
        pytest.param(lambda header: header.update(model="d0"), "", id="text-for-model"),
        pytest.param(lambda header: header["model"].update(channels="many"), "", id="text-for-a-number"),
        pytest.param(lambda header: header["model"].update(later=1), "later", id="model-of-a-later-version"),
        pytest.param(lambda header: header["selection"].update(later=1), "later", id="selection-of-a-later-version"),
        pytest.param(lambda header: header.update(class_names=None), "", id="null-for-classes"),
        pytest.param(lambda header: header["preprocessing"].update(image_size="big"), "big", id="text-for-size"),
        pytest.param(lambda header: header["preprocessing"].update(mean=["a", "b", "c"]), "", id="text-for-mean"),
        pytest.param(lambda header: header.update(category_ids=3), "", id="number-for-ids"),
    ],
)
def test_a_damaged_or_foreign_header_is_an_error_that_names_the_file(
    change: Any, says: str, detector: Detector, tmp_path: Path
) -> None:
    detector.save(tmp_path / "whole.safetensors")
    header = read_header(tmp_path / "whole.safetensors")
    change(header)
    save_model(tmp_path / "m.safetensors", detector.model, header)
    with pytest.raises(UserError, match=rf"header of .*m\.safetensors is damaged or of another version.*{says}"):
        effdense.load(tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_dataset("demo", None, "val").select(range(12))


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_predicted_files_score_exactly_as_evaluation_does(
    nms: str, detector: Detector, demo: Any, tmp_path: Path
) -> None:
    chosen = detector.with_selection(nms=nms)
    evaluation = evaluate(chosen, demo, batch_size=5)
    assert evaluation.coco.metrics["AR100"] > 0
    paths = [demo.path(position) for position in range(len(demo))]
    predicted = chosen.predict(paths, batch_size=5)
    table = DetectionTable.from_detections(predicted, demo.image_ids, demo.category_ids)
    assert coco_metrics(evaluation.truth, table).metrics == pytest.approx(evaluation.coco.metrics, abs=0, nan_ok=True)


def test_the_results_file_of_a_data_set_scores_exactly_as_evaluation_does(
    detector: Detector, demo: Any, tmp_path: Path
) -> None:
    named = Detector(detector.model, CLASSES, image_size=96, category_ids=demo.category_ids)
    evaluation = evaluate(named, demo, batch_size=8)
    result = predict_files(named, demo, tmp_path)
    from_file = coco_metrics(evaluation.truth, result.results)
    assert from_file.metrics == pytest.approx(evaluation.coco.metrics, abs=0, nan_ok=True)
    assert len(result.drawn) == len(demo)


def test_files_get_numbers_and_images_json_says_which(detector: Detector, pictures: list[Path], tmp_path: Path) -> None:
    result = predict_files(detector, pictures, tmp_path / "out", draw_above=0.0)
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [(image["id"], image["file_name"]) for image in listed["images"]] == [
        (number, str(path)) for number, path in enumerate(pictures, start=1)
    ]
    entries = json.loads(result.results.read_text())
    assert {entry["category_id"] for entry in entries} <= {3, 5, 7, 9, 11, 13}
    assert {entry["image_id"] for entry in entries} <= set(range(1, 6))
    for path, drawn in zip(pictures, result.drawn, strict=True):
        assert cv2.imread(str(drawn)).shape == cv2.imread(str(path)).shape


def test_a_broken_image_stops_or_is_counted_as_asked(detector: Detector, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff junk")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        predict_files(detector, [pictures[0], broken], tmp_path / "out")
    result = predict_files(detector, [pictures[0], broken, pictures[1]], tmp_path / "out", skip_broken=True)
    assert result.broken == [broken]
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [image["id"] for image in listed["images"]] == [1, 3]


def test_an_image_is_never_overwritten_by_its_picture(detector: Detector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(UserError, match="overwrite"):
        predict_files(detector, [tmp_path / "a.jpg"], tmp_path)
    assert (tmp_path / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_an_image_is_not_overwritten_under_another_name(link: Any, detector: Detector, tmp_path: Path) -> None:
    # as a case-insensitive file system has it: A.JPG is there by the name of a.jpg, too
    (tmp_path / "out").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    link(tmp_path / "a.png", tmp_path / "out" / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg would overwrite"):
        predict_files(detector, [tmp_path / "a.png"], tmp_path / "out")


def test_an_image_called_overview_is_not_overwritten(detector: Detector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "overview.jpg"), np.zeros((20, 20, 3), np.uint8))
    before = (tmp_path / "overview.jpg").read_bytes()
    with pytest.raises(UserError, match=r"overview\.jpg would overwrite"):
        predict_files(detector, [tmp_path / "overview.jpg"], tmp_path)
    assert (tmp_path / "overview.jpg").read_bytes() == before


def test_the_overview_holds_no_picture_in_its_full_size(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[int, ...]] = []
    sheet = prediction_files.contact_sheet
    monkeypatch.setattr(
        prediction_files, "contact_sheet", lambda images: held.extend(one.shape for one in images) or sheet(images)
    )
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((700, 1400, 3), np.uint8))
    predict_files(detector, [tmp_path / "large.png"], tmp_path / "out")
    assert held == [(128, 256, 3)]
    assert cv2.imread(str(tmp_path / "out" / "large.jpg")).shape == (700, 1400, 3)
