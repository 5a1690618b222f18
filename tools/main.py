"""``effdense <command>``: find the tool, hand over the arguments."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from effdense import __version__
from effdense.command_line import run_tool
from effdense.config_values import unknown_name


@dataclass(frozen=True)
class Command:
    """A tool: the module in effdense.tools whose ``main(argv)`` runs it, and a line for the help."""

    module: str
    summary: str


COMMANDS = {
    "train-det": Command("train_det", "train a detector"),
    "eval-det": Command("eval_det", "score a detector, or detections in a file"),
    "train-seg": Command("train_seg", "train a semantic segmenter"),
    "eval-seg": Command("eval_seg", "score a segmenter, or masks in a folder"),
    "train-multi": Command("train_multi", "train a detector and a segmenter on one backbone"),
    "eval-multi": Command("eval_multi", "score a model of both tasks in one pass"),
    "join": Command("join", "make one model of a detector and a segmenter on the same backbone"),
    "predict": Command("predict", "run a model on images; draw what it finds and write it down"),
    "export": Command("export", "make one file of a model that ONNX Runtime and OpenVINO run"),
    "backbones": Command("backbones", "list the backbones with their sizes"),
}


def help_text() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: effdense COMMAND [OPTIONS]",
            "       effdense COMMAND --help",
            "       effdense --version",
            "",
            "Object detection and semantic segmentation on EfficientNet backbones.",
            "",
            *rows,
        ]
    )


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``effdense`` with ``argv`` and return its exit code.

    Raises:
        UserError: an unknown command; it names the nearest.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        sys.stderr.write(help_text() + "\n")
        return 2
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"effdense {__version__}")
        return 0
    if name not in COMMANDS:
        raise unknown_name("command", name, [*COMMANDS, "--help", "--version"])
    tool = importlib.import_module(f"effdense.tools.{COMMANDS[name].module}")
    return int(tool.main(rest))


if __name__ == "__main__":
    raise SystemExit(main())
