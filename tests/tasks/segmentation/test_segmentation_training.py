"""What a segmentation run promises beside what every run does (tests/contract/test_every_run.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import effdense
from effdense.config import Parsed
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.evaluate import evaluate
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.tasks.segmentation.run import begin, resolve
from effdense.tasks.segmentation.setup import build_loss, build_segmenter, open_data, training_loader

CLASSES = ("ground", "low", "high")


@pytest.fixture
def folder(labelled: Path) -> Path:
    return labelled / "pixels"


def _config(root: Path, out: Path, **changes: Any) -> SegmentationConfig:
    settings: dict[str, Any] = {
        "dataset": "folder",
        "data_root": root,
        "out": out,
        "backbone": "test_efficientnet",
        "arch": "linknet",
        "weights": "none",
        "image_size": 64,
        "batch_size": 2,
        "epochs": 1,
        "loss": "ce+dice",
        "auxiliary_weight": 0.4,
    }
    return SegmentationConfig(**(settings | changes))


def _train(config: SegmentationConfig) -> Path:
    begin(Parsed(config, frozenset()))
    assert config.out is not None
    return config.out


WAYS = [
    pytest.param({}, id="whole"),
    pytest.param({"window": 32, "stride": 24, "scene_size": 0}, id="window"),
]


@pytest.mark.parametrize("changes", WAYS)
def test_training_scores_are_those_of_the_saved_model_and_of_its_predictions(
    changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    run = _train(_config(folder, tmp_path / "run", **changes))
    index = open_segmentation("folder", folder, "val")
    segmenter = effdense.load(run / "last.safetensors")
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert read_header(run / "last.safetensors")["class_names"] == list(CLASSES)
    assert evaluate(segmenter, index, batch_size=2).miou == record["mIoU"]
    confusion = ConfusionMatrix(len(CLASSES))
    for position in range(len(index)):
        found = segmenter.predict(index.path(position))
        confusion.update(index.mask(position), found.mask)
    again = evaluate(segmenter, index, batch_size=3, boundary=True, calibration=True)
    assert np.array_equal(confusion.matrix, again.scores.matrix)
    assert again.boundary is not None
    assert again.calibration is not None
    assert again.calibration.num_pixels == int(confusion.matrix.sum())


def test_settings_reach_what_they_set(folder: Path, tmp_path: Path) -> None:
    config = resolve(
        _config(
            folder,
            tmp_path / "none",
            image_size=32,
            scene_size=96,
            class_weighting="median",
            output_stride=16,
            arch="deeplabv3plus",
        )
    )
    data = open_data(config)
    segmenter = build_segmenter(config, data)
    loss = build_loss(config, data)
    loader = training_loader(config, data, segmenter)
    assert segmenter.image_size == 96  # whole images are shown at the scale that training crops from
    assert next(iter(loader)).images.shape[-2:] == (32, 32)
    assert segmenter.model.backbone.strides[-1] == 16
    assert segmenter.model.auxiliary is not None
    assert loss.class_weights is not None
    assert loss.class_weights[0] == min(loss.class_weights)  # the ground is the most frequent
    assert loss.terms == {"ce": 1.0, "dice": 1.0}


def test_class_weights_need_one_for_each_class(folder: Path, tmp_path: Path) -> None:
    config = resolve(_config(folder, tmp_path / "none", class_weights=(1.0, 2.0)))
    with pytest.raises(UserError, match=r"2 numbers, the data has 3 classes: ground, low, high"):
        build_loss(config, open_data(config))


def test_a_decoder_that_pools_refuses_batches_of_one_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    config = _config(folder, tmp_path / "one", arch="upernet", batch_size=1, auxiliary_weight=0.0)
    with pytest.raises(UserError, match="--batch-size"):
        _train(config)
    assert not (tmp_path / "one").exists()
