"""Parts run on tiny input, and what is not the peer's result is no row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from effdense.tools.benchmarks import curves, evaluation, exports, inference, segmentation, starting
from effdense.tools.benchmarks.batchnorm import settle_batchnorm
from effdense.tools.benchmarks.checks import check_close, check_same_labels
from effdense.tools.benchmarks.effdet_peer import check_detections, detector_pair, scripted
from effdense.tools.benchmarks.rows import BenchSettings, Unequal
from effdense.tools.benchmarks.scenes import scene, write_jpeg
from effdense.types import Detections

pytestmark = pytest.mark.parity
QUICK = BenchSettings(quick=True, repeats=1)


@pytest.fixture
def in_pytorch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "ways_here", lambda device: [])


@pytest.mark.slow
@pytest.mark.usefixtures("in_pytorch_alone")
def test_detectors_are_measured_beside_effdet() -> None:
    rows = inference.run(QUICK)
    assert [row.target for row in rows] == [2.0] + 7 * [None]
    assert [row.against for row in rows] == [*2 * [""], *2 * [inference.SCRIPTED], "", inference.SCRIPTED, *2 * [""]]
    assert [row.case.endswith(exports.KEEPING) for row in rows] == [False, True, False, True, False, False, False, True]
    assert all(re.search(r"the same detections|9\d% of \d+ detections the same", row.note) for row in rows)
    assert all(row.ours > 0 and row.peer and row.ratio for row in rows)


@pytest.mark.usefixtures("in_pytorch_alone")
def test_segmenters_are_measured_beside_smp() -> None:
    rows = segmentation.run(QUICK)
    assert [row.case.rpartition("px, ")[2] for row in rows] == [exports.PYTORCH, exports.KEEPING]
    assert all(re.fullmatch(r"(100|99)\.\d\d% of the labels the same, \d+% right", row.note) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "least"), [(inference, 2), (segmentation, 1)], ids=["inference", "segmentation"])
def test_exported_files_are_measured_too(part: Any, least: int) -> None:
    pytest.importorskip("onnxruntime")
    rows = [row for row in part.run(QUICK) if "exported" in row.case]
    assert len(rows) >= least
    assert all(row.ratio and bool(row.target) == (row.against == "") for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("in_pytorch_alone")
def test_a_curve_has_a_point_for_each_batch() -> None:
    lines = curves.by_batch(QUICK)
    assert [line.label for line in lines] == [
        "effdet",
        "effdet, scripted",
        "effdense, PyTorch",
        f"effdense, {exports.KEEPING}",
    ]
    assert all(line.xs == (1, 2) and min(line.ys) > 0 for line in lines)


def test_scoring_is_measured_beside_pycocotools() -> None:
    (row,) = evaluation.run(QUICK)
    assert (row.target, row.unit) == (50, "s")


def test_the_curve_of_scoring_ends_where_the_peer_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SIZES", (100, 200))
    monkeypatch.setattr(evaluation, "PATIENCE", 0.0)
    ours, peer = evaluation.by_detections(BenchSettings())
    assert (ours.xs, peer.xs) == ((100, 200), (100,))
    assert min(ours.ys + peer.ys) > 0


def test_twelve_numbers_that_differ_are_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "peer", lambda truth, found: [0.5] * 12)
    with pytest.raises(Unequal, match="twelve numbers"):
        evaluation.run(QUICK)


def test_the_help_is_timed_beside_what_the_peer_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PEER", "import argparse; argparse.ArgumentParser().parse_args(['--help'])")
    (row,) = starting.run(QUICK)
    assert (row.target, row.target_is, row.unit) == (1, "most", "s")


def test_a_command_that_prints_no_help_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PEER", "pass")
    with pytest.raises(Unequal, match="no help"):
        starting.run(QUICK)


@pytest.mark.slow
@pytest.mark.usefixtures("in_pytorch_alone")
def test_other_weights_are_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(*args: Any, **kwargs: Any) -> Any:
        ours, peer = detector_pair(*args, **kwargs)
        ours.model.head.classes.predict.pointwise.bias.data += 0.5
        return ours, peer

    monkeypatch.setattr("effdense.tools.benchmarks.effdet_peer.detector_pair", pair)
    with pytest.raises(Unequal, match="of the detections are the peer's"):
        inference.run(QUICK)


@pytest.mark.parametrize(
    ("ours", "peer", "tolerance", "passes"),
    [
        ([], [], 0.0, True),
        ([1.0], [1.0], 0.0, True),
        ([1.0, 2.0], [1.0, 2.1], 0.0, False),
        ([1.0, 2.0], [1.0, 2.1], 0.1, True),
        ([1.0], [1.0, 2.0], 9.0, False),
        ([float("nan")], [1.0], 9.0, False),
    ],
    ids=["empty", "single", "differ", "tolerated", "shape", "nan"],
)
def test_arrays_are_close_or_unequal(ours: list[float], peer: list[float], tolerance: float, passes: bool) -> None:
    if passes:
        assert check_close("x", np.array(ours), np.array(peer), tolerance) <= tolerance * max(peer, default=0)
        return
    with pytest.raises(Unequal, match="x: ours"):
        check_close("x", np.array(ours), np.array(peer), tolerance)


def test_labels_are_the_same_in_a_share_that_is_asked_for() -> None:
    assert check_same_labels("x", np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]), 0.75) == 0.75
    assert check_same_labels("x", np.array([]), np.array([])) == 1
    with pytest.raises(Unequal, match="only 75"):
        check_same_labels("x", np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]))
    with pytest.raises(Unequal, match="shape"):
        check_same_labels("x", np.array([1]), np.array([1, 2]))


BOX = [10.0, 20.0, 30.0, 60.0]


def found(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([label for _, _, label in rows], np.int64),
        tuple("abc"),
    )


@pytest.mark.parametrize(
    ("ours", "share"),
    [
        pytest.param(found((BOX, 0.9, 1)), 1.0, id="same"),
        pytest.param(found((BOX, 0.9, 2)), 0.0, id="label"),
        pytest.param(found((BOX, 0.8, 1)), 0.0, id="score"),
        pytest.param(found(([11.0, *BOX[1:]], 0.9, 1)), 0.0, id="box"),
        pytest.param(found((BOX, 0.9, 1), (BOX, 0.5, 0)), 0.5, id="one-more"),
        pytest.param(found(), 0.0, id="none"),
        pytest.param(found((BOX, 0.9, 1), (BOX, 0.0005, 0)), 1.0, id="below-the-threshold"),
        pytest.param(found((BOX, 0.9, 1), (BOX, 0.001001, 0)), 1.0, id="at-the-threshold"),
    ],
)
def test_detections_are_the_peers_in_box_score_and_label(ours: Detections, share: float) -> None:
    peer = np.array([[*BOX, 0.9, 2], [*BOX, 0.0005, 1]], np.float32)  # classes from 1; too low a score is no detection
    assert check_detections("x", ours, peer, least=0.0) == share
    if share < 1:
        with pytest.raises(Unequal, match="of the detections"):
            check_detections("x", ours, peer)


def test_the_peers_boxes_in_the_padding_cost_nothing() -> None:
    peer = np.array([[*BOX, 0.9, 2], [5, 64, 9, 64, 0.8, 1]], np.float32)
    assert check_detections("x", found((BOX, 0.9, 1), (BOX, 0.5, 0)), peer) == 1


def test_a_peer_that_finds_nothing_is_nothing_to_compare_with() -> None:
    with pytest.raises(Unequal, match="nothing to compare"):
        check_detections("x", found(), np.zeros((100, 6), np.float32), least=0.0)


def test_batchnorm_takes_the_statistics_of_what_it_sees() -> None:
    norm = torch.nn.BatchNorm2d(3).eval()
    images = torch.rand(2, 3, 8, 8) * 5
    settle_batchnorm(norm, norm, images)
    assert (norm.training, norm.momentum) == (False, 0.1)
    seen = norm(images).detach()
    assert float(seen.mean(dim=(0, 2, 3)).abs().max()) < 1e-5
    assert seen.var(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.01)


def test_a_gpus_fast_multiplication_is_off_while_results_are_compared() -> None:
    before = torch.backends.cudnn.allow_tf32
    with exports.every_digit():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_scores_spread_as_asked_on_both_sides() -> None:
    image = scene(128, 128)
    ours, peer = detector_pair("lite0", 128, 5, image[None], candidates=60)
    detections, theirs = ours.predict(image), peer.boxes_of_array(image[None])[0]
    assert detections.scores[0] == pytest.approx(0.9, abs=1e-3)
    assert 5 < (theirs[:, 4] > 0.001).sum() <= 60
    assert check_detections("x", detections, theirs) == 1


@pytest.mark.slow
def test_the_scripted_peer_finds_what_the_plain_one_finds() -> None:
    image = scene(128, 128)
    peer = detector_pair("d0", 128, 5, image[None], candidates=60)[1]
    through_script = scripted(peer, image[None])
    assert isinstance(through_script.bench, torch.jit.ScriptModule)
    assert not isinstance(peer.bench, torch.jit.ScriptModule)
    np.testing.assert_allclose(through_script.boxes_of_array(image[None]), peer.boxes_of_array(image[None]), atol=1e-3)


def test_a_scene_is_drawn_from_its_seed(tmp_path: Path) -> None:
    image = scene(48, 64, seed=3)
    assert image.shape == (48, 64, 3)
    assert np.array_equal(image, scene(48, 64, seed=3))
    assert not np.array_equal(image, scene(48, 64, seed=4))
    assert write_jpeg(tmp_path / "a.jpg", image).stat().st_size > 100
