"""What a detection run promises beside what every run does (tests/contract/test_every_run.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from effdense.config import Parsed
from effdense.model_header import read_header
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.run import begin, resolve


def _config(root: Path, out: Path, **changes: Any) -> DetectionConfig:
    settings: dict[str, Any] = {"dataset": "coco", "data_root": root / "boxes", "out": out, "weights": "none"}
    return DetectionConfig(**(settings | changes))


def test_the_file_of_a_run_names_the_classes_and_the_data_set_s_own_ids(labelled: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"bifpn_channels": 16, "bifpn_repeats": 1, "head_repeats": 1, "image_size": 64}
    changes: dict[str, Any] = {"backbone": "test_efficientnet", "arch": "d0", "epochs": 1, "batch_size": 2}
    best = begin(Parsed(_config(labelled, tmp_path / "run", **small, **changes), frozenset()))
    header = read_header(best)
    assert (header["class_names"], header["category_ids"]) == (["low", "high"], [5, 7])


def test_a_run_with_an_architecture_alone_takes_its_backbone(labelled: Path, tmp_path: Path) -> None:
    assert resolve(_config(labelled, tmp_path, arch="d1")).backbone == "b1"
    assert resolve(_config(labelled, tmp_path)).backbone == "lite0"
