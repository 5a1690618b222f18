"""Export a trained model: ``python tools/export.py runs/x/best.safetensors --format onnx``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import importlib
import sys
from collections.abc import Sequence

from effdense.allocator import keep_freed_memory
from effdense.command_line import run_tool
from effdense.config import parse
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.runtime.export_config import ExportConfig, ignored_settings

DESCRIPTION = (
    "Make one file of a trained model that needs no PyTorch: resizing, normalisation, network and non-maximum "
    "suppression in ONNX (export.py MODEL). It is compared with its checkpoint on labelled images, and stays only if "
    "both score the same."
)
GATES = {
    "detection": "effdense.tasks.detection.gate",
    "segmentation": "effdense.tasks.segmentation.gate",
    "multitask": "effdense.tasks.multitask.gate",
}
"""By what a model's header calls its task: the module that exports."""


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, export, compare, say what was written."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(ExportConfig, arguments, prog="export", description=DESCRIPTION, positional=["model"])
    config = parsed.config
    keep_freed_memory()
    header = read_header(config.model)
    task = header.get("task")
    if task not in GATES:
        raise UserError(f"{config.model} is a model for {task!r}; this version of effdense knows {', '.join(GATES)}")
    parsed.refuse_ignored(ignored_settings(config, task))
    from effdense.runtime.gate import require_exporter
    from effdense.runtime.session import choose_runtime
    from effdense.tools.console import show_log

    require_exporter()
    choose_runtime(config.runtime, config.precision)
    show_log()
    gate = importlib.import_module(GATES[task]).run_export(config, header)
    for line in gate.lines():
        print(line)
    print(f"{gate.images} images, {max(gate.points_apart.values()):.2f} points apart; wrote {config.path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
