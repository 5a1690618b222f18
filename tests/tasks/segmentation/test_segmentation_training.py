"""The segmentation loop: resuming is exact, files are whole, settings are honoured, evaluation is prediction."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import effdense
from effdense.backbones.registry import create_backbone
from effdense.config import Parsed
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.segmentation import train as loop
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.evaluate import evaluate
from effdense.tasks.segmentation.metrics.confusion import ConfusionMatrix
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.run import begin, resolve
from effdense.tasks.segmentation.setup import build_loss, build_segmenter, open_data, training_loader
from effdense.training.checkpoint import load_state, read_tensors
from effdense.training.runlog import NonFiniteLossError

EPOCHS = 3
CLASSES = ("ground", "low", "high")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of a ground and two classes, with void around one of them, as images/ and masks/."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for number in range(count):
            picture, mask = np.full((48, 64, 3), 90, np.uint8), np.zeros((48, 64), np.uint8)
            for label in (1, 2):
                x, y = (int(rng.integers(0, most)) for most in (32, 20))
                cv2.rectangle(picture, (x, y), (x + 24, y + 20), (255 * (label - 1), 40, 200), -1)
                cv2.rectangle(mask, (x, y), (x + 24, y + 20), label, -1)
                cv2.rectangle(mask, (x, y), (x + 24, y + 20), 255, 1)
            cv2.imwrite(str(root / "images" / split / f"{number}.png"), picture)
            cv2.imwrite(str(root / "masks" / split / f"{number}.png"), mask)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def _config(root: Path, out: Path, **changes: Any) -> SegmentationConfig:
    settings: dict[str, Any] = {
        "dataset": "folder",
        "data_root": root,
        "out": out,
        "arch": "linknet",
        "weights": "none",
        "image_size": 64,
        "batch_size": 2,
        "epochs": EPOCHS,
        "randaugment_ops": 1,
        "photometric": 0.5,
        "drop_path_rate": 0.3,
        "loss": "ce+dice",
        "auxiliary_weight": 0.4,
    }
    return SegmentationConfig(**(settings | changes))


def _train(config: SegmentationConfig) -> Path:
    begin(Parsed(config, frozenset()))
    assert config.out is not None
    return config.out


def _resume(run: Path) -> None:
    begin(Parsed(SegmentationConfig(resume=run), frozenset({"resume"})))


def _metrics(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("time", "images_per_second")} for record in records]


def _assert_same_run(first: Path, second: Path) -> None:
    assert _metrics(first) == _metrics(second)
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = read_tensors(first / name), read_tensors(second / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
        assert read_header(first / name)["scores"] == read_header(second / name)["scores"]
    one, other = load_state(first / "state.pt"), load_state(second / "state.pt")
    assert one["progress"] == other["progress"]
    assert one["ema_updates"] == other["ema_updates"]
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part]), part


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole segmenter with a mean and std of its own, which a resumed run must not forget."""
    model = create_segmentation_model("linknet", 3, backbone="lite0", auxiliary=True)
    model.backbone.set_statistics((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    path = tmp_path_factory.mktemp("weights") / "begin.safetensors"
    Segmenter(model, CLASSES, image_size=64).save(path)
    return str(path)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(_config(folder, tmp_path_factory.mktemp("runs") / "whole", accumulate=2, weights=weights))


def test_a_run_leaves_the_files_that_it_promises(uninterrupted: Path) -> None:
    names = {entry.name for entry in uninterrupted.iterdir()}
    promised = {"config.yaml", "metrics.jsonl", "best.safetensors", "last.safetensors", "state.pt", "training.png"}
    assert promised <= names
    assert not [name for name in names if name.endswith(".part")]
    assert [record["epoch"] for record in _metrics(uninterrupted)] == [1, 2, 3]
    assert {"ce", "dice", "auxiliary", "total", "mIoU", "pixel_accuracy"} <= _metrics(uninterrupted)[0].keys()
    header = read_header(uninterrupted / "last.safetensors")
    assert header["class_names"] == list(CLASSES)
    assert header["epoch"] == EPOCHS


def test_the_same_seed_gives_the_same_run_however_many_workers_load(
    uninterrupted: Path, folder: Path, weights: str, tmp_path: Path
) -> None:
    again = _train(_config(folder, tmp_path / "again", accumulate=2, weights=weights, workers=1))
    _assert_same_run(uninterrupted, again)


def test_another_seed_gives_another_run(uninterrupted: Path, folder: Path, weights: str, tmp_path: Path) -> None:
    other = _train(_config(folder, tmp_path / "other", accumulate=2, seed=1, epochs=1, weights=weights))
    assert _metrics(uninterrupted)[0]["total"] != _metrics(other)[0]["total"]


class _Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


KILLS = [
    pytest.param("backward", 2, id="within-the-first-epoch"),
    pytest.param("append", 2, id="between-model-and-metrics"),
    pytest.param("save_state", 3, id="between-metrics-and-state"),
]


@pytest.mark.parametrize(("where", "count"), KILLS)
def test_a_run_killed_between_any_two_files_and_resumed_ends_as_one_never_killed(
    where: str,
    count: int,
    uninterrupted: Path,
    folder: Path,
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = _config(folder, tmp_path / "killed", accumulate=2, weights=weights)
    calls = 0
    target = loop.MetricsFile if where == "append" else loop
    original = getattr(target, where)

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise _Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, where, dying)
        with pytest.raises(_Killed):
            _train(config)
    assert config.out is not None
    _resume(config.out)
    _assert_same_run(uninterrupted, config.out)


def test_ctrl_c_within_an_epoch_saves_and_resuming_ends_as_one_never_stopped(
    uninterrupted: Path, folder: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(folder, tmp_path / "stopped", accumulate=2, weights=weights)
    original = loop.backward
    steps = 0

    def interrupted(learner: Any, loss: torch.Tensor) -> bool:
        nonlocal steps
        stepped = original(learner, loss)
        steps += stepped
        if steps == 3 and stepped:
            os.kill(os.getpid(), signal.SIGINT)
        return stepped

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            _train(config)
    assert config.out is not None
    assert load_state(config.out / "state.pt")["progress"]["batches"] > 0
    _resume(config.out)
    _assert_same_run(uninterrupted, config.out)


def test_a_finished_run_resumes_to_itself(uninterrupted: Path) -> None:
    before = _metrics(uninterrupted)
    _resume(uninterrupted)
    assert _metrics(uninterrupted) == before


def test_a_run_that_replaced_a_head_resumes(folder: Path, tmp_path: Path) -> None:
    others = Segmenter(create_segmentation_model("linknet", 2, backbone="lite0"), ("a", "b"), image_size=64)
    others.save(tmp_path / "others.safetensors")
    changes = {"weights": str(tmp_path / "others.safetensors"), "replace_head": True, "epochs": 1}
    run = _train(_config(folder, tmp_path / "run", auxiliary_weight=0.0, **changes))
    before = _metrics(run)
    _resume(run)
    assert _metrics(run) == before


def test_a_run_is_not_overwritten(uninterrupted: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="holds a run already"):
        _train(_config(folder, uninterrupted))


def test_resuming_takes_no_setting_that_would_change_the_result(uninterrupted: Path) -> None:
    parsed = Parsed(SegmentationConfig(resume=uninterrupted, loss="dice"), frozenset({"resume", "loss"}))
    with pytest.raises(UserError, match="--loss cannot be given with --resume"):
        begin(parsed)


def test_a_non_finite_loss_stops_the_run_and_names_what_it_saw(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.losses_of

    def poisoned(run: loop.Run, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        losses = original(run, model, batch)
        if run.progress.step == 1:
            losses["total"] = losses["total"] * float("nan")
        return losses

    monkeypatch.setattr(loop, "losses_of", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*total nan; image ids \["):
        _train(_config(folder, tmp_path / "nan"))


def test_frozen_stages_keep_weights_and_statistics_to_the_last_bit(folder: Path, tmp_path: Path) -> None:
    before = create_backbone("lite0").state_dict()
    save_file(before, tmp_path / "lite0.safetensors")
    config = _config(
        folder, tmp_path / "frozen", epochs=1, freeze_stages=3, weights=str(tmp_path / "lite0.safetensors")
    )
    after = load_state(_train(config) / "state.pt")["model"]
    frozen = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    for name, value in before.items():
        same = torch.equal(value, after[f"backbone.{name}"])
        assert same == name.startswith(frozen) or "num_batches" in name, name


def test_a_factor_of_zero_on_the_backbone_keeps_its_weights(folder: Path, tmp_path: Path) -> None:
    before = create_backbone("lite0").state_dict()
    save_file(before, tmp_path / "lite0.safetensors")
    config = _config(
        folder,
        tmp_path / "still",
        epochs=1,
        backbone_lr_factor=0.0,
        weights=str(tmp_path / "lite0.safetensors"),
    )
    after = load_state(_train(config) / "state.pt")["model"]
    assert torch.equal(before["conv_stem.weight"], after["backbone.conv_stem.weight"])


def test_no_evaluation_but_the_last_when_told_so(folder: Path, tmp_path: Path) -> None:
    records = _metrics(_train(_config(folder, tmp_path / "sparse", eval_every=2)))
    assert ["mIoU" in record for record in records] == [False, True, True]


def test_early_stop_ends_a_run_that_does_not_improve(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Evaluation, "miou", property(lambda self: 0.25))
    assert len(_metrics(_train(_config(folder, tmp_path / "early", early_stop=1, epochs=9)))) == 2


def test_the_loss_falls_on_data_that_can_be_learnt(folder: Path, tmp_path: Path) -> None:
    config = _config(folder, tmp_path / "learns", epochs=12, lr=0.02, drop_path_rate=0.0, randaugment_ops=0, loss="ce")
    records = _metrics(_train(config))
    assert records[-1]["ce"] < 0.5 * records[0]["ce"]


WAYS = [
    pytest.param({}, id="whole"),
    pytest.param({"window": 32, "stride": 24, "scene_size": 0}, id="window"),
]


@pytest.mark.parametrize("changes", WAYS)
def test_training_scores_are_those_of_the_saved_model_and_of_its_predictions(
    changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    run = _train(_config(folder, tmp_path / "run", epochs=1, **changes))
    index = open_segmentation("folder", folder, "val")
    segmenter = effdense.load(run / "last.safetensors")
    recorded = _metrics(run)[-1]["mIoU"]
    assert evaluate(segmenter, index, batch_size=2).miou == recorded
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
