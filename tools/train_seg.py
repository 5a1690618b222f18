"""Train a semantic segmenter: ``python tools/train_seg.py --dataset voc``, or ``effdense train-seg``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.segmentation.config import SegmentationConfig

DESCRIPTION = (
    "Train U-Net, FPN or another decoder on Pascal VOC, COCO, folders of masks or the built-in demo set, evaluating as "
    "it learns. Settings come from --config FILE.yaml, then from the flags."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, say where the files are."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(SegmentationConfig, arguments, prog="train_seg", description=DESCRIPTION)
    from effdense.tasks.segmentation.run import begin
    from effdense.tools.console import show_log, show_training_result

    show_log()
    best = begin(parsed)
    show_training_result(best, {"mIoU": "mIoU", "pixel_accuracy": "pixel accuracy"})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
