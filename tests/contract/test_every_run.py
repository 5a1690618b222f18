"""What every training run promises, whatever its task: whole files, exact resuming, settings that are honoured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import effdense
from effdense.backbones.registry import create_backbone
from effdense.config import Parsed
from effdense.datasets.opening import open_dataset
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.json_files import jsonable
from effdense.model_header import read_header
from effdense.tasks.detection import evaluate as detection
from effdense.tasks.detection import train as detection_loop
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.run import begin as begin_detection
from effdense.tasks.multitask import evaluate as multitask
from effdense.tasks.multitask import train as multitask_loop
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.multitask.run import begin as begin_multitask
from effdense.tasks.segmentation import evaluate as segmentation
from effdense.tasks.segmentation import train as segmentation_loop
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.run import begin as begin_segmentation
from effdense.training.checkpoint import load_state, read_tensors
from effdense.training.runlog import NonFiniteLossError

EPOCHS, BATCHES = 2, 3
"""Of a run, and of an epoch; each two of these are a step, hence the last of an epoch is one alone."""

BACKBONE = "test_efficientnet"
"""timm's own for tests, in a fortieth of the time. It draws no random number; the decoder's dropout does."""

SMALL: dict[str, Any] = {
    "backbone": BACKBONE,
    "weights": "none",
    "image_size": 64,
    "batch_size": 2,
    "epochs": EPOCHS,
    "accumulate": 2,
    "warmup_epochs": 0.5,
    "randaugment_ops": 1,
    "photometric": 0.5,
}
SMALL_HEAD: dict[str, Any] = {"bifpn_channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
OBJECTS, PIXELS = ("low", "high"), ("ground", "low", "high")


def _network(**changes: Any) -> dict[str, Any]:
    return {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1} | changes


def _detector(names: tuple[str, ...]) -> Detector:
    return Detector(create_efficientdet("d0", len(names), backbone=BACKBONE, **_network()), names, image_size=64)


def _segmenter(names: tuple[str, ...]) -> Segmenter:
    names = ("ground", *names)
    model = create_segmentation_model("deeplabv3plus", len(names), backbone=BACKBONE, auxiliary=True)
    return Segmenter(model, names, image_size=64)


def _both(names: tuple[str, ...], **network: Any) -> Multitask:
    given: dict[str, Any] = {"class_names": names, "seg_class_names": ("ground", *names), "image_size": 64} | network
    return Multitask(create_multitask(BACKBONE, len(names), 1 + len(names), det_arch="d0", **_network(**given)))


@dataclass(frozen=True)
class Task:
    """What the tests have to know of a task.

    Attributes:
        command: of effdense.
        settings: beside those of all tasks.
        data: the settings that name the data.
        model: makes what has such classes and saves itself.
        scores: of a loaded model on the data, by the names that a run records them by.
        best: where the score is that the best epoch is chosen by.
        promised: what a run records beside that.
    """

    command: str
    config: type[Any]
    loop: ModuleType
    begin: Callable[[Any], Path]
    settings: dict[str, Any]
    data: Callable[[Path], dict[str, Any]]
    model: Callable[[tuple[str, ...]], Any]
    scores: Callable[[Any, Path], dict[str, Any]]
    best: tuple[type[Any], str]
    promised: frozenset[str]

    def configured(self, root: Path, out: Path, **changes: Any) -> Any:
        return self.config(**(SMALL | self.settings | self.data(root) | {"out": out} | changes))

    def train(self, root: Path, out: Path, **changes: Any) -> Path:
        self.begin(Parsed(self.configured(root, out, **changes), frozenset()))
        return out

    def resume(self, folder: Path) -> None:
        self.begin(Parsed(self.config(resume=folder), frozenset({"resume"})))


def _boxes(root: Path) -> Any:
    return open_dataset("coco", root / "boxes", "val")


def _masks(root: Path) -> Any:
    return open_segmentation("folder", root / "pixels", "val")


def _both_scores(model: Any, root: Path) -> dict[str, Any]:
    return multitask.evaluate(model, _boxes(root), _masks(root), batch_size=2).summary()


DETECTION = Task(
    command="train-det",
    config=DetectionConfig,
    loop=detection_loop,
    begin=begin_detection,
    settings=SMALL_HEAD | {"arch": "d0"},
    data=lambda root: {"dataset": "coco", "data_root": root / "boxes"},
    model=_detector,
    scores=lambda model, root: jsonable(detection.evaluate(model, _boxes(root), batch_size=2).coco.metrics),
    best=(detection.Evaluation, "map"),
    promised=frozenset({"class", "box", "total", "AP", "AP50", "AR100"}),
)
SEGMENTATION = Task(
    command="train-seg",
    config=SegmentationConfig,
    loop=segmentation_loop,
    begin=begin_segmentation,
    settings={"arch": "deeplabv3plus", "loss": "ce+dice", "auxiliary_weight": 0.4},
    data=lambda root: {"dataset": "folder", "data_root": root / "pixels"},
    model=_segmenter,
    scores=lambda model, root: segmentation.evaluate(model, _masks(root), batch_size=2).scores.summary(),
    best=(segmentation.Evaluation, "miou"),
    promised=frozenset({"ce", "dice", "auxiliary", "total", "mIoU", "pixel_accuracy"}),
)
MULTITASK = Task(
    command="train-multi",
    config=MultitaskConfig,
    loop=multitask_loop,
    begin=begin_multitask,
    settings=SMALL_HEAD
    | {"arch": "deeplabv3plus", "det_arch": "d0", "batch_size": 4, "balance": "gradnorm", "gradients_every": 2},
    data=lambda root: {"det_data": f"coco:{root / 'boxes'}", "seg_data": f"folder:{root / 'pixels'}"},
    model=partial(_both, arch="deeplabv3plus"),
    scores=_both_scores,
    best=(multitask.MultitaskEvaluation, "score"),
    promised=frozenset({"class", "box", "ce", "dice", "detection", "segmentation", "total", "AP", "mIoU", "score"}),
)
TASKS = [
    pytest.param(DETECTION, id="detection"),
    pytest.param(SEGMENTATION, id="segmentation"),
    pytest.param(MULTITASK, id="multitask"),
]
UNCERTAINTY = {"arch": "bifpn", "balance": "uncertainty", "auxiliary_weight": 0.4}
FIXED = {"arch": "bifpn", "balance": "fixed", "share_bifpn": False}
WAYS = [
    *TASKS,
    pytest.param(
        replace(
            MULTITASK, settings=MULTITASK.settings | UNCERTAINTY, model=partial(_both, arch="bifpn", auxiliary=True)
        ),
        id="multitask-uncertainty-one-bifpn",
    ),
    pytest.param(
        replace(MULTITASK, settings=MULTITASK.settings | FIXED, model=partial(_both, arch="bifpn", share_bifpn=False)),
        id="multitask-fixed-two-bifpn",
    ),
]


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    found: Task = request.param
    return found


@pytest.fixture(scope="module")
def weights(task: Task, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole model with a mean and std of its own, which a resumed run must not forget."""
    whole = task.model(OBJECTS)
    whole.model.backbone.set_statistics((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    path = tmp_path_factory.mktemp("weights") / "begin.safetensors"
    whole.save(path)
    return str(path)


@pytest.fixture(scope="module")
def uninterrupted(task: Task, labelled: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task.train(labelled, tmp_path_factory.mktemp("runs") / "whole", weights=weights)


@pytest.fixture(autouse=True)
def no_figure(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a third of a short run; it is drawn in the runs that more than one test looks at."""
    monkeypatch.setattr(task.loop, "save_figure", lambda figure, path: None)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("time", "images_per_second")} for record in records]


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of what is not the same, to the last bit, in two states."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in _differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return _differences(dict(enumerate(one)), dict(enumerate(other)), name)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [name]


def _assert_same_run(first: Path, second: Path) -> None:
    assert _metrics(first) == _metrics(second)
    for name in ("best.safetensors", "last.safetensors"):
        assert not _differences(read_tensors(first / name), read_tensors(second / name), name)
        assert read_header(first / name)["scores"] == read_header(second / name)["scores"]
    assert not _differences(load_state(first / "state.pt"), load_state(second / "state.pt"))


# --- files, seeds, resuming


def test_a_run_leaves_the_files_that_it_promises(task: Task, uninterrupted: Path) -> None:
    names = {entry.name for entry in uninterrupted.iterdir()}
    promised = {"config.yaml", "metrics.jsonl", "best.safetensors", "last.safetensors", "state.pt", "training.png"}
    assert promised <= names
    assert not [name for name in names if name.endswith(".part")]
    records = _metrics(uninterrupted)
    assert [record["epoch"] for record in records] == [1, 2]
    assert {"epoch", "step", "lr", *task.promised} <= records[0].keys()
    header, begun = read_header(uninterrupted / "last.safetensors"), read_header(uninterrupted / "best.safetensors")
    assert header["epoch"] == EPOCHS
    assert header["preprocessing"]["mean"] == begun["preprocessing"]["mean"] == [0.2, 0.3, 0.4]


def test_the_last_incomplete_group_of_batches_is_a_step_too(uninterrupted: Path) -> None:
    assert [record["step"] for record in _metrics(uninterrupted)] == [2, 4]


def test_the_same_seed_gives_the_same_run_however_many_workers_load(
    task: Task, uninterrupted: Path, labelled: Path, weights: str, tmp_path: Path
) -> None:
    _assert_same_run(uninterrupted, task.train(labelled, tmp_path / "again", weights=weights, workers=1))


class _Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


KILLS = [
    pytest.param("backward", BATCHES - 1, id="within-the-first-epoch"),
    pytest.param("append", 2, id="between-model-and-metrics"),
    pytest.param("save_state", 2, id="between-metrics-and-state"),
    pytest.param("backward", BATCHES + 2, id="within-an-epoch"),
]


@pytest.mark.parametrize(("where", "count"), KILLS)
def test_a_run_killed_between_any_two_files_and_resumed_ends_as_one_never_killed(
    where: str,
    count: int,
    task: Task,
    uninterrupted: Path,
    labelled: Path,
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = task.loop.MetricsFile if where == "append" else task.loop
    original, calls = getattr(target, where), 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise _Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, where, dying)
        with pytest.raises(_Killed):
            task.train(labelled, tmp_path / "killed", weights=weights)
    task.resume(tmp_path / "killed")
    _assert_same_run(uninterrupted, tmp_path / "killed")


@pytest.mark.parametrize("task", WAYS, indirect=True, scope="module")
def test_ctrl_c_within_an_epoch_saves_and_resuming_ends_as_one_never_stopped(
    task: Task, uninterrupted: Path, labelled: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = task.loop.backward, 0

    def interrupted(learner: Any, loss: torch.Tensor) -> bool:
        nonlocal steps
        stepped: bool = original(learner, loss)
        steps += stepped
        if steps == 3 and stepped:
            os.kill(os.getpid(), signal.SIGINT)
        return stepped

    with monkeypatch.context() as patch:
        patch.setattr(task.loop, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            task.train(labelled, tmp_path / "stopped", weights=weights)
    progress = load_state(tmp_path / "stopped/state.pt")["progress"]
    assert (progress["epoch"], progress["batches"]) == (1, 2)
    task.resume(tmp_path / "stopped")
    _assert_same_run(uninterrupted, tmp_path / "stopped")


def _wait_for(path: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline, "the run never got there"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_process_killed_by_sigkill_and_resumed_ends_as_one_never_killed(
    epoch: int, task: Task, labelled: Path, tmp_path: Path
) -> None:
    settings = SMALL | task.settings | task.data(labelled) | {"epochs": 3, "workers": 1}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "effdense", task.command]
    subprocess.run([*command, *flags, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, *flags, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait_for(tmp_path / "killed" / "metrics.jsonl", epoch, process)
    time.sleep(0.3)
    process.kill()
    process.wait()
    subprocess.run([*command, "--resume", str(tmp_path / "killed")], check=True, capture_output=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_resumes_to_itself(task: Task, uninterrupted: Path) -> None:
    before = _metrics(uninterrupted)
    task.resume(uninterrupted)
    assert _metrics(uninterrupted) == before


# --- what is refused


def test_a_run_is_not_overwritten(task: Task, uninterrupted: Path, labelled: Path) -> None:
    with pytest.raises(UserError, match="holds a run already"):
        task.train(labelled, uninterrupted)


def test_resuming_takes_no_setting_that_would_change_the_result(task: Task, uninterrupted: Path) -> None:
    parsed = Parsed(task.config(resume=uninterrupted, lr=0.1), frozenset({"resume", "lr"}))
    with pytest.raises(UserError, match="--lr cannot be given with --resume"):
        task.begin(parsed)


def test_resuming_needs_the_data_that_the_run_began_with(
    task: Task, uninterrupted: Path, labelled: Path, tmp_path: Path
) -> None:
    for name in ("config.yaml", "state.pt", "metrics.jsonl"):
        (tmp_path / name).write_bytes((uninterrupted / name).read_bytes())
    config = (tmp_path / "config.yaml").read_text().replace("train_split: train", "train_split: val")
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=r"was trained on \d+ images .* resuming needs the same data"):
        task.resume(tmp_path)


def test_a_non_finite_loss_stops_the_run_and_names_what_it_saw(
    task: Task, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = task.loop.losses_of

    def poisoned(run: Any, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        losses: dict[str, torch.Tensor] = original(run, model, batch)
        if run.progress.step == 1:
            losses["total"] = losses["total"] * float("nan")
        return losses

    monkeypatch.setattr(task.loop, "losses_of", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*total nan.*; (image ids \[\d|images /.*\.png)"):
        task.train(labelled, tmp_path / "nan")


# --- settings


@pytest.fixture(scope="module")
def stopped_early(task: Task, labelled: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another seed whose score stays the same."""
    evaluation, score = task.best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, score, property(lambda self: 0.25))
        out = tmp_path_factory.mktemp("runs") / "early"
        return task.train(labelled, out, weights=weights, seed=1, early_stop=1, epochs=9)


def test_a_run_that_does_not_improve_is_stopped_early(stopped_early: Path) -> None:
    assert len(_metrics(stopped_early)) == 2


def test_another_seed_gives_another_run(uninterrupted: Path, stopped_early: Path) -> None:
    # More epochs make no difference yet: the one step whose result the first epoch sees is that of the warm-up.
    one, other = _metrics(uninterrupted)[0], _metrics(stopped_early)[0]
    assert one["step"] == other["step"]
    assert one["total"] != other["total"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(create_backbone(BACKBONE).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def plain(task: Task, labelled: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an average, on frozen stages, that evaluates every other epoch."""
    changes: dict[str, Any] = {"ema": False, "freeze_stages": 3, "eval_every": 2, "epochs": 3}
    return task.train(labelled, tmp_path_factory.mktemp("runs") / "plain", weights=str(backbone), **changes)


def test_no_evaluation_but_every_other_and_the_last_when_told_so(task: Task, plain: Path) -> None:
    name = next(name for name in ("score", "AP", "mIoU") if name in task.promised)
    assert [name in record for record in _metrics(plain)] == [False, True, True]


def test_frozen_stages_keep_weights_and_statistics_to_the_last_bit(plain: Path, backbone: Path) -> None:
    after = load_state(plain / "state.pt")["model"]
    frozen = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    for name, value in read_tensors(backbone).items():
        assert torch.equal(value, after[f"backbone.{name}"]) == name.startswith(frozen), name


def test_without_the_average_the_network_itself_is_evaluated_as_it_is_loaded(
    task: Task, plain: Path, labelled: Path
) -> None:
    state, saved = load_state(plain / "state.pt"), read_tensors(plain / "last.safetensors")
    assert state["ema"] is None
    assert not _differences(saved, state["model"])
    _assert_scores_as_recorded(task, plain, labelled)


def _assert_scores_as_recorded(task: Task, run: Path, root: Path) -> None:
    found, recorded = task.scores(effdense.load(run / "last.safetensors"), root), _metrics(run)[-1]
    assert found == {name: recorded[name] for name in found}
    assert any(found.values())


def test_a_loaded_model_scores_as_the_run_that_saved_it(task: Task, uninterrupted: Path, labelled: Path) -> None:
    _assert_scores_as_recorded(task, uninterrupted, labelled)


@pytest.fixture(scope="module")
def others(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other classes."""
    path = tmp_path_factory.mktemp("weights") / "others.safetensors"
    task.model(("a", "b", "c")).save(path)
    return path


@pytest.fixture(scope="module")
def replaced(task: Task, labelled: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with another head, and does not move the backbone."""
    changes: dict[str, Any] = {"replace_head": True, "backbone_lr_factor": 0.0, "epochs": 1}
    return task.train(labelled, tmp_path_factory.mktemp("runs") / "replaced", weights=str(others), **changes)


def test_a_run_that_replaced_a_head_resumes(task: Task, replaced: Path) -> None:
    before = _metrics(replaced)
    task.resume(replaced)
    assert _metrics(replaced) == before


def test_a_factor_of_zero_on_the_backbone_keeps_its_weights(replaced: Path, others: Path) -> None:
    after = load_state(replaced / "state.pt")["model"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    same = {name: torch.equal(value, after[name]) for name, value in read_tensors(others).items() if name in after}
    for name, unchanged in same.items():
        assert unchanged != name.endswith(statistics) or not name.startswith("backbone."), name
    assert not all(unchanged for name, unchanged in same.items() if not name.startswith("backbone."))


def test_the_loss_falls_on_data_that_can_be_learnt(task: Task, labelled: Path, tmp_path: Path) -> None:
    as_it_is: dict[str, Any] = {"randaugment_ops": 0, "photometric": 0.0, "hflip": 0.0, "scale_min": 1.0}
    as_it_is |= {"scale_max": 1.0, "ema": False}
    changes = {"epochs": 5, "eval_every": 5, "accumulate": 1, "lr": 0.2, "warmup_epochs": 0.0}
    records = _metrics(task.train(labelled, tmp_path / "learns", **as_it_is, **changes))
    for name in {"class", "box", "ce"} & task.promised:
        assert records[-1][name] < 0.6 * records[0][name], name
