from __future__ import annotations

import pytest
import torch

from effdense.tasks.detection.assign import Targets
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.postprocess import BatchDetections
from effdense.tools.benchmarks import labelling, loss, postprocessing, training, training_curves
from effdense.tools.benchmarks.boxes import random_boxes
from effdense.tools.benchmarks.rows import BenchSettings, Curve, Unequal

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
QUICK = BenchSettings(quick=True, repeats=1)


@pytest.mark.parametrize("count", [0, 1, 30], ids=["none", "one", "many"])
def test_boxes_lie_in_the_image_and_have_a_class(count: int) -> None:
    boxes, labels = random_boxes(2, count, 128, 5)
    assert boxes.shape == (2, count, 4)
    assert bool(((boxes >= 0) & (boxes <= 128)).all())
    assert bool((boxes[..., 2:] > boxes[..., :2]).all())
    assert bool(((labels >= 0) & (labels < 5)).all())


def test_labelling_has_a_row_for_each_number_of_boxes_and_a_curve_for_both() -> None:
    rows = labelling.PART.run(QUICK)
    assert [one.case for one in rows] == ["128 px, 1 box an image", "128 px, 10 boxes an image"]
    assert all(one.ratio is not None and one.ratio > 0 for one in rows)
    lines = labelling.CURVES[0].run(QUICK)
    assert [(line.label, line.xs) for line in lines] == [("effdense", (1.0, 10.0)), ("effdet", (1.0, 10.0))]


def test_other_labels_are_not_timed() -> None:
    targets = Targets(torch.full((1, 4), -1), torch.zeros(1, 4, 4), torch.zeros(1, dtype=torch.int64))
    same = [torch.full((1, 2, 1, 2), -1)], [torch.zeros(1, 2, 1, 8)], None
    labelling.check_same_targets(targets, same)
    same[0][0][0, 1] = 3
    with pytest.raises(Unequal, match="labels"):
        labelling.check_same_targets(targets, same)


def test_the_loss_saves_what_the_table_says_of_it() -> None:
    saved, time = loss.PART.run(QUICK)
    assert saved.met
    assert saved.peer is not None
    assert saved.ours <= 1.1 < 5 < saved.peer
    assert time.unit == "ms"


def test_shared_memory_is_counted_once() -> None:
    x = torch.ones(100, requires_grad=True)
    y = x * 1
    assert loss.saved_bytes(lambda: (y * y).sum() + (y * y[:100]).sum()) == 400


def test_postprocessing_has_a_row_for_each_kind_of_outputs() -> None:
    rows = postprocessing.PART.run(QUICK)
    assert [one.target for one in rows] == [5] * len(postprocessing.OUTPUTS)
    assert all(one.unit == "ms" for one in rows)


def test_detections_of_one_score_may_come_in_any_order_and_others_not() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.5]])
    boxes = torch.arange(12.0).view(1, 3, 4)
    labels = torch.tensor([[2, 1, 0]])
    found = BatchDetections(boxes, scores, labels, torch.tensor([3]))
    theirs = torch.cat((boxes, scores.unsqueeze(2), labels.unsqueeze(2) + 1.0), 2)
    postprocessing.check_same_detections(found, theirs[:, [0, 2, 1]])
    theirs[0, 0, 5] = 1
    with pytest.raises(Unequal, match="labels"):
        postprocessing.check_same_detections(found, theirs)


def test_the_training_loops_train_and_are_compared_in_images_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ways", lambda device: (training.Way("as it is", {"amp": "off"}),))
    (one,) = training.PART.run(QUICK)
    assert one.case == "lite0, 128 px, batch 2: as it is"
    assert one.unit == "images/s"
    assert one.peer is not None
    assert one.ratio == pytest.approx(one.ours / one.peer, rel=1e-6)
    assert one.note == "ours fp32, the peer fp32"


@pytest.mark.slow
@pytest.mark.parametrize("curve", training_curves.CURVES, ids=lambda curve: curve.name)
def test_a_training_curve_has_a_point_for_the_peer_and_both_precisions(curve: Curve) -> None:
    lines = curve.run(QUICK)
    assert [line.label for line in lines] == ["effdet", "effdense, float32", "effdense, default precision"]
    assert all(len(line.xs) == len(line.ys) == 1 and line.ys[0] > 0 for line in lines)


def test_weights_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "trained", lambda network: (len(list(network.modules())), 1.0))
    with pytest.raises(Unequal, match="number of trained parameters"):
        training.PART.run(QUICK)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_way_is_a_run_that_can_be_asked_for(device: str) -> None:
    for way in training.ways(device):
        config = DetectionConfig(weights="start.safetensors", **way.settings)
        assert all(getattr(config, name) == value for name, value in way.settings.items())
