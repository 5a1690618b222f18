"""The training loop: resuming is exact, files are whole, settings are honoured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import effdense
from effdense.backbones.registry import create_backbone
from effdense.config import Parsed
from effdense.datasets.opening import open_dataset
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.detection import train as loop
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.evaluate import evaluate
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.run import begin, resolve
from effdense.training.checkpoint import load_state, read_tensors
from effdense.training.runlog import NonFiniteLossError

EPOCHS = 3


@pytest.fixture(scope="module")
def small_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of two classes in COCO's layout."""
    import cv2

    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, count in (("train", 9), ("val", 3)):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            picture = np.full((48, 64, 3), 90, np.uint8)
            for label in (0, 1):
                x, y = rng.integers(0, 32), rng.integers(0, 20)
                cv2.rectangle(picture, (int(x), int(y)), (int(x) + 24, int(y) + 20), (255 * label, 40, 200), -1)
                box = [int(x), int(y), 24, 20]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": 5 + 2 * label, "bbox": box}
                    | {"area": 480, "iscrowd": 0}
                )
            cv2.imwrite(str(root / split / f"{number}.png"), picture)
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 5, "name": "low"}, {"id": 7, "name": "high"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _config(root: Path, out: Path, **changes: Any) -> DetectionConfig:
    settings: dict[str, Any] = {
        "dataset": "coco",
        "data_root": root,
        "out": out,
        "weights": "none",
        "image_size": 64,
        "batch_size": 2,
        "epochs": EPOCHS,
        "bifpn_channels": 16,
        "bifpn_repeats": 1,
        "head_repeats": 1,
        "warmup_epochs": 0.5,
        "randaugment_ops": 1,
        "photometric": 0.5,
        "drop_path_rate": 0.3,
    }
    return DetectionConfig(**(settings | changes))


def _train(config: DetectionConfig) -> Path:
    begin(Parsed(config, frozenset()))
    assert config.out is not None
    return config.out


def _resume(folder: Path) -> None:
    begin(Parsed(DetectionConfig(resume=folder), frozenset({"resume"})))


def _metrics(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
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
    """A whole detector with a mean and std of its own, which a resumed run must not forget."""
    model = create_efficientdet("lite0", 2, channels=16, bifpn_repeats=1, head_repeats=1)
    model.backbone.set_statistics((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    path = tmp_path_factory.mktemp("weights") / "begin.safetensors"
    Detector(model, ["low", "high"], image_size=64).save(path)
    return str(path)


@pytest.fixture(scope="module")
def uninterrupted(small_coco: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(_config(small_coco, tmp_path_factory.mktemp("runs") / "whole", accumulate=2, weights=weights))


def test_a_run_leaves_the_files_that_it_promises(uninterrupted: Path) -> None:
    names = {entry.name for entry in uninterrupted.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "best.safetensors", "last.safetensors", "state.pt"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert [record["epoch"] for record in _metrics(uninterrupted)] == [1, 2, 3]
    header = read_header(uninterrupted / "last.safetensors")
    assert header["class_names"] == ["low", "high"]
    assert header["category_ids"] == [5, 7]
    assert header["epoch"] == EPOCHS


def test_the_same_seed_gives_the_same_run_however_many_workers_load(
    uninterrupted: Path, small_coco: Path, weights: str, tmp_path: Path
) -> None:
    again = _train(_config(small_coco, tmp_path / "again", accumulate=2, weights=weights, workers=1))
    _assert_same_run(uninterrupted, again)


def test_another_seed_gives_another_run(uninterrupted: Path, small_coco: Path, weights: str, tmp_path: Path) -> None:
    other = _train(_config(small_coco, tmp_path / "other", accumulate=2, seed=1, epochs=1, weights=weights))
    assert _metrics(uninterrupted)[0]["total"] != _metrics(other)[0]["total"]


class _Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


KILLS = [
    pytest.param("backward", 2, id="within-the-first-epoch"),
    pytest.param("append", 2, id="between-model-and-metrics"),
    pytest.param("save_state", 3, id="between-metrics-and-state"),
    pytest.param("backward", 10, id="within-an-epoch"),
]


@pytest.mark.parametrize(("where", "count"), KILLS)
def test_a_run_killed_between_any_two_files_and_resumed_ends_as_one_never_killed(
    where: str,
    count: int,
    uninterrupted: Path,
    small_coco: Path,
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = _config(small_coco, tmp_path / "killed", accumulate=2, weights=weights)
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
    uninterrupted: Path, small_coco: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(small_coco, tmp_path / "stopped", accumulate=2, weights=weights)
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


def _wait_for(path: Path, lines: int, process: subprocess.Popen[bytes]) -> Iterator[None]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
        yield
    raise AssertionError("the run never got there")


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_process_killed_by_sigkill_and_resumed_ends_as_one_never_killed(
    epoch: int, small_coco: Path, tmp_path: Path
) -> None:
    flags = "--dataset coco --weights none --image-size 64 --batch-size 2 --epochs 3 --bifpn-channels 16 --workers 1"
    flags += f" --bifpn-repeats 1 --head-repeats 1 --randaugment-ops 1 --data-root {small_coco}"
    command = [sys.executable, "-m", "effdense", "train-det"]
    subprocess.run([*command, *flags.split(), "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, *flags.split(), "--out", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in _wait_for(tmp_path / "killed" / "metrics.jsonl", epoch, process):
        pass
    time.sleep(0.3)
    process.kill()
    process.wait()
    subprocess.run([*command, "--resume", str(tmp_path / "killed")], check=True, capture_output=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_resumes_to_itself(uninterrupted: Path) -> None:
    before = _metrics(uninterrupted)
    _resume(uninterrupted)
    assert _metrics(uninterrupted) == before


def test_a_run_that_replaced_a_head_resumes(small_coco: Path, tmp_path: Path) -> None:
    model = create_efficientdet("lite0", 3, channels=16, bifpn_repeats=1, head_repeats=1)
    Detector(model, ["a", "b", "c"], image_size=64).save(tmp_path / "others.safetensors")
    changes = {"weights": str(tmp_path / "others.safetensors"), "replace_head": True, "epochs": 1}
    run = _train(_config(small_coco, tmp_path / "run", **changes))
    before = _metrics(run)
    _resume(run)
    assert _metrics(run) == before


def test_a_run_is_not_overwritten(uninterrupted: Path, small_coco: Path) -> None:
    with pytest.raises(UserError, match="holds a run already"):
        _train(_config(small_coco, uninterrupted))


def test_resuming_takes_no_setting_that_would_change_the_result(uninterrupted: Path) -> None:
    parsed = Parsed(DetectionConfig(resume=uninterrupted, lr=0.1), frozenset({"resume", "lr"}))
    with pytest.raises(UserError, match="--lr cannot be given with --resume"):
        begin(parsed)


def test_a_non_finite_loss_stops_the_run_and_names_what_it_saw(
    small_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.losses_of

    def poisoned(run: loop.Run, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        losses = original(run, model, batch)
        if run.progress.step == 1:
            losses["total"] = losses["total"] * float("nan")
        return losses

    monkeypatch.setattr(loop, "losses_of", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*total nan; image ids \["):
        _train(_config(small_coco, tmp_path / "nan"))


def test_frozen_stages_keep_weights_and_statistics_to_the_last_bit(small_coco: Path, tmp_path: Path) -> None:
    before = create_backbone("lite0").state_dict()
    save_file(before, tmp_path / "lite0.safetensors")
    config = _config(
        small_coco, tmp_path / "frozen", epochs=1, freeze_stages=3, weights=str(tmp_path / "lite0.safetensors")
    )
    folder = _train(config)
    after = load_state(folder / "state.pt")["model"]
    frozen = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    for name, value in before.items():
        same = torch.equal(value, after[f"backbone.{name}"])
        assert same == name.startswith(frozen) or "num_batches" in name, name


def test_accumulating_takes_a_step_for_the_last_incomplete_group_too(small_coco: Path, tmp_path: Path) -> None:
    folder = _train(_config(small_coco, tmp_path / "accumulated", accumulate=3, epochs=1))
    assert _metrics(folder)[0]["step"] == 2  # four batches of two: a group of three and one of one


def test_without_the_average_the_network_itself_is_evaluated_as_it_is_loaded(small_coco: Path, tmp_path: Path) -> None:
    folder = _train(_config(small_coco, tmp_path / "plain", ema=False, epochs=1))
    assert _reevaluated(folder, small_coco) == _metrics(folder)[-1]["AR100"]


def test_a_run_with_an_architecture_alone_takes_its_backbone(small_coco: Path, tmp_path: Path) -> None:
    resolved = resolve(_config(small_coco, tmp_path, arch="d1"))
    assert resolved.backbone == "b1"
    assert resolve(_config(small_coco, tmp_path)).backbone == "lite0"


def test_no_evaluation_but_the_last_when_told_so(small_coco: Path, tmp_path: Path) -> None:
    records = _metrics(_train(_config(small_coco, tmp_path / "sparse", eval_every=2)))
    assert ["AP" in record for record in records] == [False, True, True]


def test_early_stop_ends_a_run_that_does_not_improve(
    small_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Evaluation, "map", property(lambda self: 0.25))
    records = _metrics(_train(_config(small_coco, tmp_path / "early", early_stop=1, epochs=9)))
    assert len(records) == 2


def _reevaluated(folder: Path, root: Path) -> float:
    detector = effdense.load(folder / "last.safetensors")
    evaluation = evaluate(detector, open_dataset("coco", root, "val"), batch_size=2)
    return evaluation.coco.metrics["AR100"]


def test_a_loaded_model_detects_as_the_run_that_saved_it(uninterrupted: Path, small_coco: Path) -> None:
    assert _metrics(uninterrupted)[-1]["AR100"] > 0
    assert _reevaluated(uninterrupted, small_coco) == _metrics(uninterrupted)[-1]["AR100"]
