"""Join two trained models: ``python tools/join.py det.safetensors seg.safetensors --out both.safetensors``."""

from __future__ import annotations

if __name__ == "__main__":
    __import__("checkout")

import sys
from collections.abc import Sequence

from effdense.command_line import run_tool
from effdense.config import parse
from effdense.tasks.multitask.join_config import JoinConfig

DESCRIPTION = (
    "Make one model of a detector and a segmenter that were trained apart on the same backbone (join.py DETECTOR "
    "SEGMENTER --out FILE): it gives what the two give, from one forward pass."
)


@run_tool
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, join, say what was written."""
    arguments = sys.argv[1:] if argv is None else argv
    parsed = parse(JoinConfig, arguments, prog="join", description=DESCRIPTION, positional=["detector", "segmenter"])
    config = parsed.config
    from effdense.tasks.detection.predict import load_detector
    from effdense.tasks.multitask.join import join
    from effdense.tasks.segmentation.predict import load_segmenter
    from effdense.tools.console import show_log

    show_log()
    joined = join(load_detector(config.detector), load_segmenter(config.segmenter), image_size=config.image_size)
    joined.save(config.out)
    print(
        f"{config.out}: {len(joined.class_names)} classes of objects and {len(joined.seg_class_names)} of pixels on "
        f"one {joined.model.backbone.name}, {joined.image_size} px"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
