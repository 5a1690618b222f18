"""Run a trained model on images: ``python tools/predict.py runs/x/best.safetensors photos/ --out drawn/``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from effdense.allocator import keep_freed_memory
from effdense.command_line import run_tool
from effdense.config import Parsed, parse
from effdense.config_flags import asks_help, flag
from effdense.errors import UserError
from effdense.prediction import PredictSettings
from effdense.tasks.detection import predict_config as detection
from effdense.tasks.multitask import predict_config as multitask
from effdense.tasks.segmentation import predict_config as segmentation

DESCRIPTION = "Run a trained model on image files and folders, or on a split of a data set; leaves a picture of each. "


@dataclass(frozen=True)
class Task:
    """What the tool does with a model for one task.

    Attributes:
        model: what such a model is called, with its article.
        models: several of them.
        config: the settings.
        ignored: names settings that a combination would ignore.
        run: predicts and says what was written.
        leaves: what is written beside pictures, for the help.
    """

    model: str
    models: str
    config: type[PredictSettings]
    ignored: Callable[[Any], Mapping[str, str]]
    run: Callable[[Any], None]
    leaves: str


def detect(config: detection.PredictConfig) -> None:
    """Detect objects, and say what was written."""
    from effdense.tasks.detection.predict_files import run_prediction

    result = run_prediction(config)
    print(f"{len(result.drawn)} images, {result.objects} objects drawn in {config.out}")
    _say_broken(result.broken)
    print(f"detections: {result.results}")


def segment(config: segmentation.PredictConfig) -> None:
    """Label pixels, and say what was written."""
    from effdense.tasks.segmentation.predict_files import run_prediction

    result = run_prediction(config)
    print(f"{len(result.drawn)} images drawn in {config.out}")
    _say_broken(result.broken)
    print(f"label maps: {result.masks}")


def do_both(config: multitask.PredictConfig) -> None:
    """Detect objects and label pixels in one pass, and say what was written."""
    from effdense.tasks.multitask.predict_files import run_prediction

    result = run_prediction(config)
    print(f"{len(result.drawn)} images, {result.objects} objects drawn in {config.out}")
    _say_broken(result.broken)
    print(f"detections: {result.results}")
    print(f"label maps: {result.masks}")


def _say_broken(broken: Sequence[Path]) -> None:
    if broken:
        print(f"{len(broken)} images left out because they cannot be read")


TASKS = {
    "detection": Task(
        "a detector",
        "detectors",
        detection.PredictConfig,
        detection.ignored_settings,
        detect,
        "A detector leaves detections.json too, with every detection in COCO's results format.",
    ),
    "segmentation": Task(
        "a segmentation model",
        "segmentation models",
        segmentation.PredictConfig,
        segmentation.ignored_settings,
        segment,
        "A segmentation model leaves masks/ too, with the label map of each image as an index PNG.",
    ),
    "multitask": Task(
        "a multitask model",
        "multitask models",
        multitask.PredictConfig,
        multitask.ignored_settings,
        do_both,
        "A multitask model leaves both, and pictures with boxes over the classes of the pixels.",
    ),
}
"""By what a model's header calls its task."""


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Find out what the model is for, parse by its settings, predict, say what was written."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if asks_help(arguments):
        print_help(arguments)
    keep_freed_memory()
    task, given = task_of_arguments(arguments)
    refuse_foreign(task, given)
    parsed = _parse(task.config, arguments)
    parsed.refuse_ignored(task.ignored(parsed.config))
    from effdense.tools.console import show_log

    show_log()
    task.run(parsed.config)
    return 0


def print_help(arguments: Sequence[str]) -> None:
    """Print the settings of the model that is named, or those that every model has.

    Raises:
        SystemExit: 0, always.
    """
    try:
        task, _ = task_of_arguments([word for word in arguments if word not in ("-h", "--help")], images_needed=False)
    except UserError:
        more = " Models of each task have settings of their own: predict MODEL --help lists those of a model."
        leaves = " ".join(task.leaves for task in TASKS.values())
        _parse(PredictSettings, ["--help"], DESCRIPTION + leaves + more)
    else:
        _parse(task.config, ["--help"], DESCRIPTION + task.leaves)


def task_of_arguments(arguments: Sequence[str], *, images_needed: bool = True) -> tuple[Task, Parsed[PredictSettings]]:
    """Return what the model that is named is for, and the arguments read by the settings of all tasks together.

    Args:
        arguments: of the command line.
        images_needed: refuse arguments that name no image; the help needs none.

    Raises:
        UserError: a flag that no task has, or a file that is no model.
    """
    given = _parse(_all_settings(check=images_needed), arguments)
    from effdense.loading import task_of

    model = given.config.model
    name = task_of(model)
    if name not in TASKS:
        raise UserError(f"{model} is a model for {name!r}; this version of effdense knows {', '.join(TASKS)}")
    return TASKS[name], given


def refuse_foreign(task: Task, given: Parsed[PredictSettings]) -> None:
    """Stop at a setting that only models of another task have.

    Raises:
        UserError: names the flag, and what the model is.
    """
    own = _names(task.config)
    for other in TASKS.values():
        for name in sorted(given.given & _names(other.config) - own):
            raise UserError(
                f"{flag(name)} belongs to {other.models}; {given.config.model} is {task.model}: leave it out"
            )


def _all_settings(*, check: bool) -> type[PredictSettings]:
    """Return a class with the settings of all tasks, for reading arguments before the task is known."""
    more: dict[str, tuple[str, Any, Any]] = {}
    for task in TASKS.values():
        hints = get_type_hints(task.config)
        for one in fields(task.config):
            if one.name not in _names(PredictSettings):
                more[one.name] = (one.name, hints[one.name], field(default=one.default))
    unchecked = {} if check else {"__post_init__": lambda self: None}
    made: type[PredictSettings] = make_dataclass(
        "AllSettings", more.values(), bases=(PredictSettings,), namespace=unchecked, frozen=True
    )
    return made


def _names(config: type[PredictSettings]) -> frozenset[str]:
    return frozenset(one.name for one in fields(config))


def _parse(config: type[PredictSettings], arguments: Sequence[str], description: str = "") -> Parsed[PredictSettings]:
    return parse(config, arguments, prog="predict", description=description, positional=["model", "images"])


if __name__ == "__main__":
    raise SystemExit(main())
