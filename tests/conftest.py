"""Data that tests of more than one folder train on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of processes side by side wait for each other's cores; as torch loads
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch has two threads, also where processes of tests run side by side with one each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two kinds of rectangles, some with boxes, some with a mask and some with both; not to be changed.

    ``boxes/`` is COCO's layout (classes low and high), ``pixels/`` is images/ and masks/ (ground, low and high; void
    around each rectangle). An image with both labels is one file, to which the other has a link. Of twelve to train on,
    five have boxes, five a mask, and two both; of three to evaluate on, one each.
    """
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for split, with_boxes, with_masks in (("train", range(7), range(5, 12)), ("val", range(2), range(1, 3))):
        for folder in ("boxes/annotations", f"boxes/{split}", f"pixels/images/{split}", f"pixels/masks/{split}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in sorted({*with_boxes, *with_masks}):
            picture, mask = np.full((48, 64, 3), 90, np.uint8), np.zeros((48, 64), np.uint8)
            for label in (1, 2):
                x, y = (int(rng.integers(0, most)) for most in (38, 26))
                cv2.rectangle(picture, (x, y), (x + 24, y + 20), (255 * (label - 1), 40, 200), -1)
                cv2.rectangle(mask, (x, y), (x + 24, y + 20), label, -1)
                cv2.rectangle(mask, (x, y), (x + 24, y + 20), 255, 1)
                if number in with_boxes:
                    box = {"id": len(annotations) + 1, "image_id": number, "category_id": 3 + 2 * label}
                    annotations.append({**box, "bbox": [x, y, 25, 21], "area": 525, "iscrowd": 0})
            name = f"{split}{number}.png"
            if number in with_boxes:
                cv2.imwrite(str(root / "boxes" / split / name), picture)
                images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            if number in with_masks:
                file = root / "pixels/images" / split / name
                if number in with_boxes:
                    file.symlink_to(root / "boxes" / split / name)
                else:
                    cv2.imwrite(str(file), picture)
                cv2.imwrite(str(root / "pixels/masks" / split / name), mask)
        categories = [{"id": 5, "name": "low"}, {"id": 7, "name": "high"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"boxes/annotations/instances_{split}.json").write_text(json.dumps(content))
    (root / "pixels/classes.txt").write_text("ground\nlow\nhigh\n")
    return root
