"""Train an object detector: ``python tools/train_det.py --backbone b2``, or ``effdense train-det``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.detection.config import DetectionConfig

DESCRIPTION = (
    "Train an EfficientDet on COCO JSON, Pascal VOC or the built-in demo set, evaluating as it learns. "
    "Settings come from --config FILE.yaml, then from the flags."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, say where the files are."""
    parsed = parse(DetectionConfig, sys.argv[1:] if argv is None else argv, prog="train_det", description=DESCRIPTION)
    from effdense.tasks.detection.run import begin
    from effdense.tools.console import show_log, show_training_result

    show_log()
    best = begin(parsed)
    show_training_result(best, {"AP": "mAP", "AP50": "mAP50"})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
