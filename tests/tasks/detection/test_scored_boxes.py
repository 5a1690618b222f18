"""Evaluation compares with the boxes as the file has them, whatever the doctor does to those that are learned from."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.score import score_model
from effdense.tasks.detection.score_config import ScoreConfig
from effdense.tasks.detection.setup import open_data
from effdense.types import Batch, Detections

CLASSES = ("ant", "bee")
BOXES = {
    7: [(3, [4, 6, 20, 20]), (3, [30, 5, 0, 12]), (5, [50, 30, 40, 30])],
    9: [(5, [-8, -4, 30, 25]), (5, [70, 10, 9, 9]), (3, [12, 12, 24.5, 20.25])],
}
"""Category and box, by image of 64 x 48: one without width, one wholly outside, two that reach outside."""


@pytest.fixture
def odd_coco(tmp_path: Path) -> Path:
    """Write the boxes as COCO, the same for both splits."""
    rows = [(image, category, box) for image, found in BOXES.items() for category, box in found]
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    content = {
        "images": [{"id": one, "file_name": f"{one}.png", "width": 64, "height": 48} for one in BOXES],
        "annotations": [
            {"id": number} | dict(zip(keys, (*row, row[2][2] * row[2][3], 0), strict=True))
            for number, row in enumerate(rows, start=1)
        ],
        "categories": [{"id": 3, "name": "ant"}, {"id": 5, "name": "bee"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for one in BOXES:
        pixels = np.random.default_rng(one).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{one}.png")
    return tmp_path


def _detect(detector: Detector, batch: Batch) -> list[Detections]:
    """Find each labelled box, a little beside where it is."""
    found = []
    for image_id in batch.image_ids:
        rows = BOXES[image_id]
        corners = np.array([[x, y, x + max(w, 1), y + h] for _, (x, y, w, h) in rows], np.float32) + 1
        scores = np.linspace(0.9, 0.5, len(rows)).astype(np.float32)
        labels = np.array([(3, 5).index(category) for category, _ in rows], np.int64)
        found.append(Detections(corners, scores, labels, detector.class_names))
    return found


def _pycocotools_stats(truth: Path, detections: Path) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO(str(truth))
        evaluation = COCOeval(ours, ours.loadRes(str(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parity
def test_scoring_data_with_boxes_without_width_gives_the_numbers_of_pycocotools_on_the_file(
    odd_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_efficientdet("lite0", 2, channels=16, bifpn_repeats=1, head_repeats=1)
    detector = Detector(model, CLASSES, image_size=64, category_ids=[1, 2])
    monkeypatch.setattr("effdense.tasks.detection.score.open_detector", lambda *_, **__: detector)
    monkeypatch.setattr(Detector, "detect", _detect)
    settings: dict[str, Any] = {"dataset": "coco", "data_root": odd_coco, "device": "cpu"}
    scores = score_model(ScoreConfig(model=tmp_path / "m.safetensors", out=tmp_path / "out", **settings))
    expected = _pycocotools_stats(odd_coco / "annotations/instances_val.json", tmp_path / "out/detections.json")
    ours = [-1.0 if np.isnan(value) else value for value in scores.coco.metrics.values()]
    assert ours == pytest.approx(expected, abs=0)
    assert 0.2 < expected[0] < 0.8
    assert scores.coco.instances.sum() == 6


def test_a_run_learns_from_cleaned_boxes_and_validates_on_those_of_the_file(odd_coco: Path, tmp_path: Path) -> None:
    data = open_data(DetectionConfig(dataset="coco", data_root=odd_coco, out=tmp_path / "run", image_size=64))
    assert data.train.num_boxes == 4
    assert data.train.boxes_xyxy.min() == 0
    written = np.array([box for found in BOXES.values() for _, box in found])
    assert np.array_equal(data.val.boxes_written_xywh, written)
    assert np.array_equal(data.val.boxes_xyxy, np.hstack([written[:, :2], written[:, :2] + written[:, 2:]]))
