"""Find objects in images: ``python tools/predict.py runs/x/best.safetensors photos/ --out drawn/``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.detection.predict_config import PredictConfig, ignored_settings

DESCRIPTION = (
    "Run a trained model on image files and folders, or on a split of a data set; leaves a drawn picture of each "
    "image, and detections.json with every detection in COCO's results format."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, predict, say what was written."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(PredictConfig, arguments, prog="predict", description=DESCRIPTION, positional=["model", "images"])
    parsed.refuse_ignored(ignored_settings(parsed.config))
    from effdense.tasks.detection.predict_files import run_prediction
    from effdense.tools.console import show_log

    show_log()
    result = run_prediction(parsed.config)
    print(f"{len(result.drawn)} images, {result.objects} objects drawn in {parsed.config.out}")
    if result.broken:
        print(f"{len(result.broken)} images left out because they cannot be read")
    print(f"detections: {result.results}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
