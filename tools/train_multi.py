"""Train detection and segmentation on one backbone: ``python tools/train_multi.py``, or ``effdense train-multi``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.multitask.config import MultitaskConfig

DESCRIPTION = (
    "Train an EfficientDet and a segmentation decoder on one shared backbone, on one data set with boxes and masks or "
    "on two with one of them each, evaluating as they learn. "
    "Settings come from --config FILE.yaml, then from the flags."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, say where the files are."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(MultitaskConfig, arguments, prog="train_multi", description=DESCRIPTION)
    from effdense.tasks.multitask.run import begin
    from effdense.tools.console import show_comparison, show_log, show_training_result

    show_log()
    best = begin(parsed)
    show_training_result(best, {"score": "mean score", "AP": "mAP", "AP50": "mAP50", "mIoU": "mIoU"})
    if (report := best.parent / "compare.json").exists():
        show_comparison(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
