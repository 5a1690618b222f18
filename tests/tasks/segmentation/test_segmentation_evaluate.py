"""Evaluation: calibration without all probabilities at once, and the same scores from any number of processes."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.tasks.segmentation import label_maps
from effdense.tasks.segmentation.evaluate import Evaluation, evaluate
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.metrics.calibration import CalibrationError
from effdense.tasks.segmentation.predict import Segmenter

CLASSES = ("background", "low", "high")


class Stub(nn.Module):
    """What a Segmenter asks of a model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Module()
        self.backbone.mean = (0.5, 0.4, 0.3)  # type: ignore[assignment]
        self.images_seen = 0
        self.conv = nn.Conv2d(3, len(CLASSES), 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        self.images_seen += len(images)
        logits: Tensor = self.conv(images.float() / 128 - 1)
        return logits * 4


def _segmenter(**inference: Any) -> Segmenter:
    return Segmenter(Stub(), CLASSES, image_size=48, inference=Inference(**inference))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of sizes of their own."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part / "val").mkdir(parents=True)
    for number in range(5):
        size = (40 + number, 60 - number)
        cv2.imwrite(str(folder / f"images/val/{number}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
        cv2.imwrite(str(folder / f"masks/val/{number}.png"), rng.choice([0, 1, 2, 255], size).astype(np.uint8))
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def _index(root: Path) -> SegmentationIndex:
    return open_segmentation("folder", root, "val")


@pytest.mark.parametrize("way", [{}, {"window": 32}], ids=["whole", "window"])
def test_calibration_is_that_of_the_probabilities_which_are_never_all_held(
    way: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, index = _segmenter(**way), _index(root)
    expected = CalibrationError()
    for position in range(len(index)):
        found = segmenter.predict(index.path(position), probabilities=True)
        expected.update(index.mask(position), found.mask, found.probabilities.max(0))
    monkeypatch.setattr(label_maps, "require_memory", lambda *_: pytest.fail("all probabilities were asked for"))
    calibration = evaluate(segmenter, index, calibration=True).calibration
    assert calibration is not None
    assert calibration.num_pixels == expected.num_pixels > 0
    assert calibration.expected == pytest.approx(expected.expected, abs=1e-6)


def _numbers(found: Evaluation) -> dict[str, Any]:
    assert found.boundary is not None
    assert found.calibration is not None
    return {
        "matrix": found.scores.matrix.tolist(),
        "boundary": [found.boundary.intersections.tolist(), found.boundary.unions.tolist()],
        "pixels": found.calibration.num_pixels,
        "calibration": round(found.calibration.expected, 9),
    }


def _both(root: Path) -> list[dict[str, Any]]:
    """Evaluate on all images, and on one, of which the second process has none."""
    index, segmenter = _index(root), _segmenter()
    indices = (index, index.select(np.array([2])))
    return [_numbers(evaluate(segmenter, one, batch_size=2, boundary=True, calibration=True)) for one in indices]


def _process(rank: int, root: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(_both(root)))
    segmenter = _segmenter()
    evaluate(segmenter, _index(root), batch_size=1)
    (folder / f"{rank}.txt").write_text(str(segmenter.model.images_seen - 1))  # one probe for the memory
    torch.distributed.destroy_process_group()


def test_two_processes_find_the_scores_of_one(root: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, root, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    alone = _both(root)
    assert np.sum(alone[0]["matrix"]) > np.sum(alone[1]["matrix"]) > 0
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["3", "2"]
