"""The picture of a training of both tasks."""

from __future__ import annotations

import json
from pathlib import Path

from effdense.tasks.multitask.plots import plot_training


def test_no_title_reaches_over_its_neighbours(tmp_path: Path) -> None:
    record = {"score": 0.512, "AP": 0.4, "AP50": 0.6, "mIoU": 0.5, "total": 1.0, "lr": 0.01, "ce": 1.0}
    lines = [json.dumps({"epoch": epoch, **record}) + "\n" for epoch in (99, 100)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    figure = plot_training(tmp_path / "metrics.jsonl")
    figure.draw_without_rendering()
    assert "best mean of mAP and mIoU 0.512 in epoch 99" in figure.axes[1].get_title()
    room = figure.bbox.width / 3
    assert all(axes.title.get_window_extent().width < room for axes in figure.axes)
