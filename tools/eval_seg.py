"""Score a segmenter, or masks in a folder: ``python tools/eval_seg.py runs/x/best.safetensors``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.allocator import keep_freed_memory
from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.segmentation.score_config import ScoreConfig, ignored_settings

DESCRIPTION = (
    "Score a trained segmenter on a data set (eval_seg.py MODEL --dataset voc --data-root DIR --split val), or masks "
    "as index PNGs (eval_seg.py --predictions masks/ --annotations truth/ --num-classes 21)."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, score, print the tables."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(ScoreConfig, arguments, prog="eval_seg", description=DESCRIPTION, positional=["model"])
    parsed.refuse_ignored(ignored_settings(parsed.config))
    keep_freed_memory()
    from effdense.tasks.segmentation.score import score
    from effdense.tools.console import show_log, show_segmentation_scores

    show_log()
    show_segmentation_scores(score(parsed.config))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
