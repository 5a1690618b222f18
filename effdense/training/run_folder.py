"""The folder of a run: its files, where it lies, and how a run is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from effdense.config import Parsed, load_yaml, to_yaml
from effdense.cores import available_cores
from effdense.errors import UserError
from effdense.files import require_writable, write_atomically
from effdense.model_header import read_header
from effdense.model_parts import DETECTION, MULTITASK, SEGMENTATION
from effdense.training.checkpoint import require_space
from effdense.training.device import choose_device
from effdense.training.precision import choose_precision
from effdense.training.settings import WEIGHT_WORDS, TrainingSettings

STATE, BEST, LAST = "state.pt", "best.safetensors", "last.safetensors"
METRICS, CURVES, CONFIG = "metrics.jsonl", "training.png", "config.yaml"

STATE_COPIES = 10
"""What a run's files hold, in copies of the model: best, last and a state of four, each written beside the old one."""

_TRAINERS = {DETECTION: "train_det", SEGMENTATION: "train_seg", MULTITASK: "train_multi"}
"""Which tool trains a model for each task."""

_PATHS = ("data_root", "train_annotations", "train_images", "val_annotations", "val_images")
_WITH_RESUME = {"resume", "device", "workers"}

S = TypeVar("S", bound=TrainingSettings)


def begin_run(
    parsed: Parsed[S],
    ignored: Callable[[S], Mapping[str, str]],
    resolve: Callable[[S], S],
    train: Callable[..., Path],
) -> Path:
    """Start a run, or go on with the one in ``--resume DIR``.

    Args:
        parsed: what the user set.
        ignored: names the settings that the chosen combination would ignore, each with the reason.
        resolve: fills in every setting that depends on others or on the machine.
        train: takes the resolved settings, the folder and ``resume``; returns the path of the best model.

    Raises:
        UserError: settings that contradict each other, a folder with another run or that cannot be
            written to, or anything that ``train`` raises.
    """
    config = parsed.config
    if config.resume is not None:
        kept = resumed(parsed)
        require_writable(config.resume)
        return train(resolve(kept), config.resume, resume=True)
    parsed.refuse_ignored(ignored(config))
    config = resolve(config)
    assert config.out is not None
    refuse_second_run(config.out)
    require_writable(config.out)
    return train(config, config.out)


def resumed(parsed: Parsed[S]) -> S:
    """Return the settings that the run in ``--resume DIR`` began with.

    Raises:
        UserError: there is no run, or another setting was given, which would change its result.
    """
    folder = parsed.config.resume
    assert folder is not None
    if not (folder / CONFIG).is_file() or not (folder / STATE).is_file():
        raise UserError(f"{folder} holds no run to resume: expected {CONFIG} and {STATE} in it")
    if extra := sorted(parsed.given - _WITH_RESUME):
        flags = ", ".join("--" + name.replace("_", "-") for name in extra)
        raise UserError(f"{flags} cannot be given with --resume, which goes on with the settings in {folder / CONFIG}")
    try:
        kept = load_yaml(type(parsed.config), folder / CONFIG).config
    except UserError as error:
        raise _of_another_tool(folder, error) from error
    changes = {name: getattr(parsed.config, name) for name in parsed.given & {"device", "workers"}}
    return replace(kept, **changes)


def _of_another_tool(folder: Path, error: UserError) -> UserError:
    """Return the error for settings that a training tool does not know: as a rule they are those of another one."""
    try:
        task = read_header(folder / LAST).get("task")
    except UserError:  # not one epoch has ended yet
        task = None
    tool = _TRAINERS.get(str(task))
    began = f"{tool} began that run" if tool else "another tool may have begun that run"
    return UserError(f"{folder} cannot be resumed: {str(error).rstrip('.')}; {began}: go on with it by that")


def resolve_machine(settings: S, task: str, name: str) -> S:
    """Fill in what depends on the machine: workers, precision, absolute paths, and the folder of the run.

    Args:
        settings: of the run.
        task: under which folder of ``runs/`` it goes.
        name: what a run without ``--out`` is called, up to its number.
    """
    device = choose_device(settings.device)
    changes: dict[str, Any] = {}
    if settings.workers < 0:
        changes["workers"] = min(8, available_cores()) if device.type == "cuda" else 0
    if settings.amp == "auto":
        precision = choose_precision("auto", device).name
        changes["amp"] = "off" if precision == "fp32" else precision
    for path in _PATHS:
        if getattr(settings, path) is not None:
            changes[path] = getattr(settings, path).absolute()
    if settings.weights not in WEIGHT_WORDS and Path(settings.weights).is_file():
        changes["weights"] = str(Path(settings.weights).absolute())
    if settings.out is None:
        changes["out"] = free_folder(Path("runs") / task, name)
    return replace(settings, **changes)


def free_folder(parent: Path, name: str) -> Path:
    """Return ``parent/name-N`` with the first N that is not there yet."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


def refuse_second_run(folder: Path) -> None:
    """Refuse a folder that holds a run already.

    Raises:
        UserError: says how to go on with it.
    """
    if (folder / STATE).exists():
        raise UserError(f"{folder} holds a run already: go on with it by --resume {folder}, or choose another --out")


def require_same_data(folder: Path, state: Mapping[str, Any], class_names: Sequence[str], num_images: int) -> None:
    """Refuse to go on with a run on other data than it began with.

    Args:
        folder: of the run.
        state: its state, with ``class_names`` and ``num_images``.
        class_names: of the data as it is now.
        num_images: of its training split.

    Raises:
        UserError: they differ.
    """
    if tuple(state["class_names"]) != tuple(class_names) or state["num_images"] != num_images:
        raise UserError(
            f"{folder} was trained on {state['num_images']} images of {len(state['class_names'])} classes, the "
            f"data now has {num_images} of {len(class_names)}: resuming needs the same data"
        )


def make_run_folder(folder: Path, settings: TrainingSettings, model_bytes: int) -> None:
    """Make the folder of a new run and write its settings into it.

    Args:
        folder: of the run.
        settings: resolved; what config.yaml says.
        model_bytes: of one copy of the model's state.

    Raises:
        UserError: the disk has no room for the run's files, or cannot be written.
    """
    require_space(folder, STATE_COPIES * model_bytes)
    write_atomically(folder / CONFIG, to_yaml(settings))
