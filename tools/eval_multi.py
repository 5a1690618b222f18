"""Score a model of both tasks, in one pass: ``python tools/eval_multi.py runs/x/best.safetensors``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.allocator import keep_freed_memory
from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.multitask.score_config import ScoreConfig, ignored_settings

DESCRIPTION = (
    "Score a model of both tasks, boxes and masks from one pass: on a data set that has both (eval_multi.py MODEL "
    "--dataset voc --data-root DIR --split test), or on one of each (--det-data voc:DIR1 --seg-data voc:DIR2)."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, score, print the tables of both tasks."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(ScoreConfig, arguments, prog="eval_multi", description=DESCRIPTION, positional=["model"])
    parsed.refuse_ignored(ignored_settings(parsed.config))
    keep_freed_memory()
    from effdense.tasks.multitask.score import score
    from effdense.tools.console import show_log, show_multitask_scores

    show_log()
    show_multitask_scores(score(parsed.config))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
