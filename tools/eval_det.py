"""Score a detector, or detections in a file: ``python tools/eval_det.py runs/x/best.safetensors``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.allocator import keep_freed_memory
from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.detection.score_config import ScoreConfig, ignored_settings

DESCRIPTION = (
    "Score a trained detector on a data set (eval_det.py MODEL --dataset voc --data-root DIR --split test), or a COCO "
    "results file (eval_det.py --predictions dets.json --annotations instances.json)."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, score, print the tables."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(ScoreConfig, arguments, prog="eval_det", description=DESCRIPTION, positional=["model"])
    parsed.refuse_ignored(ignored_settings(parsed.config))
    keep_freed_memory()
    from effdense.tasks.detection.score import score
    from effdense.tools.console import show_log, show_scores

    show_log()
    show_scores(score(parsed.config))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
