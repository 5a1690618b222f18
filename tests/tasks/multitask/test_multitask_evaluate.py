"""One pass over images with boxes, masks or both: each task's numbers are those of its own evaluation."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from effdense.datasets.index import DetectionIndex
from effdense.datasets.opening import open_dataset
from effdense.datasets.segmentation_index import SegmentationIndex
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.json_files import jsonable
from effdense.plots import save_figure
from effdense.tasks.detection import evaluate as detection
from effdense.tasks.detection.metrics.coco_metrics import coco_metrics
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask.evaluate import MultitaskEvaluation, evaluate
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.plots import plot_training
from effdense.tasks.multitask.predict import Multitask, load_multitask
from effdense.tasks.segmentation import evaluate as segmentation
from effdense.tasks.segmentation.predict import Segmenter
from effdense.types import Batch

THINGS, STUFF = ("ant", "bee"), ("background", "low", "high")
WITH_BOXES, WITH_MASKS, ALL = range(5), range(3, 8), range(8)
"""Images 3 and 4 carry both labels; image 1 shows no object."""


def _multitask() -> Multitask:
    """Return a model of random weights whose scores are spread, and which is sure of some pixels."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1, "image_size": 64}
    model = create_multitask("lite0", 2, 3, "linknet", class_names=THINGS, seg_class_names=STUFF, **small)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        for name, parameter in model.named_parameters():
            if name.endswith("pointwise.weight") and "head.classes" in name:
                parameter.mul_(30)
            if name.startswith("segmentation.head") and name.endswith("weight"):
                parameter.mul_(20)
    return Multitask(model)


@pytest.fixture(scope="module")
def multitask() -> Multitask:
    return _multitask()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, multitask: Multitask) -> Path:
    """Draw images, and label them by what the model says, with faults: boxes as COCO, masks in a folder.

    An image with both labels is one file, to which the other data set has a link.
    """
    root = tmp_path_factory.mktemp("data")
    for folder in ("val", "annotations", "images/val", "masks/val"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in zip((3, 7), THINGS, strict=True)]
    for number in ALL:
        height, width = 40 + 3 * number, 64 - 2 * number
        picture = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3), np.uint8), 8, 0), 8, 1)[:height, :width]
        file = root / ("val" if number in WITH_BOXES else "images/val") / f"{number}.png"
        cv2.imwrite(str(file), picture)
        found = multitask.predict(file)
        if number in WITH_BOXES:
            content["images"].append({"id": 10 * number, "file_name": file.name, "width": width, "height": height})
            for row in () if number == 1 else range(0, 12, 3):
                left, top, right, bottom = (found.detections.boxes_xyxy[row] + rng.uniform(-2, 2, 4)).tolist()
                box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
                category = (3, 7)[found.detections.labels[row]]
                box |= {"id": len(content["annotations"]) + 1, "image_id": 10 * number, "category_id": category}
                content["annotations"].append({**box, "iscrowd": 0})
        if number in WITH_MASKS:
            if number in WITH_BOXES:
                (root / "images/val" / file.name).symlink_to(file)
            mask = found.segmentation.mask.copy()
            mask[:12], mask[-4:] = rng.integers(0, 3, mask[:12].shape), 255
            cv2.imwrite(str(root / "masks/val" / file.name), mask)
    (root / "annotations/instances_val.json").write_text(json.dumps(content))
    (root / "classes.txt").write_text("\n".join(STUFF))
    return root


def _indices(root: Path) -> tuple[DetectionIndex, SegmentationIndex]:
    return open_dataset("coco", root, "val"), open_segmentation("folder", root, "val")


def _numbers(found: MultitaskEvaluation) -> dict[str, Any]:
    """Return every number of an evaluation, as JSON holds it to the last digit.

    The floats of a forward pass depend in their last bits on how many images share it. What is counted or ranked does
    not; confidences, which are averaged, are compared apart.
    """
    numbers: dict[str, Any] = {}
    if found.detection is not None:
        numbers["metrics"] = jsonable(found.detection.coco.metrics)
        numbers["ap"] = jsonable(found.detection.coco.ap)
        numbers["found"] = found.detection.detections.image_ids.tolist()
    if found.segmentation is not None:
        numbers["matrix"] = found.segmentation.scores.matrix.tolist()
        numbers["mIoU"] = found.segmentation.miou
        assert found.segmentation.boundary is not None
        numbers["boundary"] = jsonable(found.segmentation.boundary.iou)
    return numbers


def _floats(found: MultitaskEvaluation) -> list[float]:
    """Return what is averaged over confidences, and the confidences of the boxes."""
    assert found.detection is not None
    assert found.segmentation is not None
    assert found.segmentation.calibration is not None
    return [found.segmentation.calibration.expected, *found.detection.detections.scores.tolist()]


def _single(multitask: Multitask, boxes: DetectionIndex, masks: SegmentationIndex, size: int) -> MultitaskEvaluation:
    return MultitaskEvaluation(
        detection.evaluate(multitask.detector, boxes, batch_size=size),
        segmentation.evaluate(multitask.segmenter, masks, batch_size=size, boundary=True, calibration=True),
        0.0,
    )


@pytest.mark.parametrize(("batch_size", "evaluator"), [(1, "hotcoco"), (3, "pycocotools"), (8, "hotcoco")])
def test_the_numbers_are_those_of_the_two_evaluations_to_the_last_digit(
    batch_size: int, evaluator: str, multitask: Multitask, root: Path
) -> None:
    boxes, masks = _indices(root)
    found = evaluate(
        multitask, boxes, masks, batch_size=batch_size, evaluator=evaluator, boundary=True, calibration=True
    )
    single = _single(multitask, boxes, masks, batch_size)
    assert _numbers(found) == _numbers(single)
    assert _floats(found) == (_floats(single) if batch_size == 1 else pytest.approx(_floats(single), abs=1e-6))
    assert found.detection is not None
    assert found.segmentation is not None
    assert 0.05 < found.detection.map < 0.95
    assert 0.05 < found.segmentation.miou < 0.95
    assert found.score == (found.detection.map + found.segmentation.miou) / 2


@pytest.mark.parametrize(
    ("boxes", "masks", "images"),
    [
        pytest.param(True, True, len(ALL), id="both"),
        pytest.param(True, False, len(WITH_BOXES), id="boxes"),
        pytest.param(False, True, len(WITH_MASKS), id="masks"),
    ],
)
def test_every_image_is_run_once_and_scored_by_what_it_carries(
    boxes: bool, masks: bool, images: int, multitask: Multitask, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_boxes, with_masks = _indices(root)
    alone = _single(multitask, with_boxes, with_masks, 2)
    made: Counter[str] = Counter()

    def count(runner: type, name: str) -> None:
        original = getattr(runner, name)

        def counted(self: Any, batch: Batch, *args: Any, **kwargs: Any) -> Any:
            made[name] += len(batch.image_ids)
            return original(self, batch, *args, **kwargs)

        monkeypatch.setattr(runner, name, counted)

    count(Multitask, "run_parts")
    count(Detector, "from_outputs")
    count(Segmenter, "from_logits")
    found = evaluate(
        multitask, with_boxes if boxes else None, with_masks if masks else None,
        batch_size=2, boundary=True, calibration=True,
    )  # fmt: skip
    assert made["run_parts"] == images
    assert made["from_outputs"] == boxes * len(WITH_BOXES)
    assert made["from_logits"] == masks * len(WITH_MASKS)
    assert (found.detection is not None, found.segmentation is not None) == (boxes, masks)
    expected = MultitaskEvaluation(alone.detection if boxes else None, alone.segmentation if masks else None, 0.0)
    assert _numbers(found) == _numbers(expected)
    assert found.score == expected.score
    assert found.images_per_second > 0


def test_one_image_with_both_labels_is_enough(multitask: Multitask, root: Path) -> None:
    boxes, masks = _indices(root)
    found = evaluate(multitask, boxes.select([3]), masks.select(np.array([0])), boundary=True, calibration=True)
    assert _numbers(found) == _numbers(_single(multitask, boxes.select([3]), masks.select(np.array([0])), 8))


def test_another_image_size_is_that_of_both_heads(multitask: Multitask, root: Path, tmp_path: Path) -> None:
    boxes, masks = _indices(root)
    larger = multitask.with_image_size(96)
    found = evaluate(larger, boxes, masks, batch_size=1, boundary=True, calibration=True)
    alone = MultitaskEvaluation(
        detection.evaluate(multitask.detector.with_image_size(96), boxes, batch_size=1),
        segmentation.evaluate(
            multitask.segmenter.with_image_size(96), masks, batch_size=1, boundary=True, calibration=True
        ),
        0.0,
    )
    assert (_numbers(found), _floats(found)) == (_numbers(alone), _floats(alone))
    assert _floats(found) != _floats(evaluate(multitask, boxes, masks, batch_size=1, calibration=True))
    larger.save(tmp_path / "m.safetensors")
    assert load_multitask(tmp_path / "m.safetensors").image_size == 96
    assert larger.with_selection(nms="soft").image_size == 96
    with pytest.raises(UserError, match="such as 64 x 64 or 96 x 96"):
        multitask.with_image_size(80)


def test_what_predict_returns_scores_exactly_as_evaluation_does(multitask: Multitask, root: Path) -> None:
    boxes, masks = _indices(root)
    found = evaluate(multitask, boxes, masks, batch_size=3)
    assert found.detection is not None
    assert found.segmentation is not None
    predicted = [multitask.predict(boxes.path(position)).detections for position in range(len(boxes))]
    table = DetectionTable.from_detections(predicted, boxes.image_ids.tolist(), boxes.category_ids)
    assert coco_metrics(found.detection.truth, table).metrics == found.detection.coco.metrics
    tally = segmentation.Tally(masks)
    for position in range(len(masks)):
        tally.add(position, multitask.predict(masks.path(position)).segmentation)
    assert tally.result(0.0).scores.matrix.tolist() == found.segmentation.scores.matrix.tolist()


@pytest.mark.parametrize("which", ["neither", "boxes", "masks"])
def test_classes_in_another_order_and_no_labels_at_all_are_faults_of_the_caller(
    which: str, multitask: Multitask, root: Path
) -> None:
    boxes, masks = _indices(root)
    wrong = Multitask(multitask.model)
    if which == "boxes":
        wrong.class_names = THINGS[::-1]
    if which == "masks":
        wrong.seg_class_names = STUFF[::-1]
    with pytest.raises(ValueError, match=which):
        evaluate(wrong, None if which == "neither" else boxes, None if which == "neither" else masks)


def test_boxes_and_mask_of_another_size_are_told_apart(multitask: Multitask, root: Path, tmp_path: Path) -> None:
    for folder in ("images/val", "masks/val"):
        (tmp_path / folder).mkdir(parents=True)
    image = cv2.imread(str(root / "val/3.png"))
    cv2.imwrite(str(tmp_path / "images/val/3.png"), np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "masks/val/3.png"), np.zeros((20, 30), np.uint8))
    (tmp_path / "classes.txt").write_text("\n".join(STUFF))
    assert image is not None
    boxes = open_dataset(
        "coco", None, "val", annotations=root / "annotations/instances_val.json", images=tmp_path / "images/val"
    )
    with pytest.raises(UserError, match=r"3\.png"):
        evaluate(multitask, boxes.select([3]), open_segmentation("folder", tmp_path, "val"))


def _process(rank: int, root: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = evaluate(_multitask(), *_indices(root), batch_size=1, boundary=True, calibration=True)
    (folder / f"{rank}.json").write_text(json.dumps({**_numbers(found), "floats": _floats(found)}))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_the_numbers_of_one(multitask: Multitask, root: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, root, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    alone = evaluate(multitask, *_indices(root), batch_size=1, boundary=True, calibration=True)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.pop("floats") == pytest.approx(_floats(alone), abs=1e-6)
        assert found == _numbers(alone)


def test_a_summary_has_the_names_of_a_run_s_record_and_null_for_what_is_not_there(
    multitask: Multitask, root: Path
) -> None:
    boxes, masks = _indices(root)
    found = evaluate(multitask, boxes, masks)
    assert found.detection is not None
    summary = found.summary()
    assert {"score", "AP", "AP50", "mIoU", "pixel_accuracy"} < set(summary)
    assert (summary["APlarge"], math.isnan(found.detection.coco.metrics["APlarge"])) == (None, True)
    json.dumps(summary, allow_nan=False)
    for word in (f"mAP {found.detection.map:.4f}", f"mAP50 {summary['AP50']:.4f}", f"mIoU {summary['mIoU']:.4f}"):
        assert word in found.line()
    alone = evaluate(multitask, boxes, None)
    assert "mIoU" not in alone.summary()
    assert "mIoU" not in alone.line()
    assert alone.summary()["score"] == found.detection.map


def test_a_training_is_drawn_by_task_as_far_as_it_has_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for epoch in (1, 2, 3):
        record = {"epoch": epoch, "total": 3 / epoch, "detection": 2 / epoch, "segmentation": 1 / epoch, "lr": 1e-3}
        record |= {"class": 1.5 / epoch, "box": 0.5, "ce": 0.5, "dice": 0.4, "weight_detection": 1.0}
        records.append(record | {"weight_segmentation": 0.9, "gradient_detection": 40.0 / epoch})
    records[-1] |= {"score": 0.4, "AP": 0.3, "AP50": 0.5, "mIoU": 0.5}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    figure = plot_training(path)
    drawn = {axes.get_title(): [line.get_label() for line in axes.get_lines()] for axes in figure.axes}
    assert drawn["loss"] == ["detection", "segmentation", "total"]
    assert drawn["loss terms"] == ["class", "box", "ce", "dice"]
    assert drawn["weight of the task"] == ["detection", "segmentation"]
    assert drawn["gradient norm on the backbone"] == ["detection"]
    assert figure.axes[5].get_legend().get_texts()[0].get_text() == "detection"
    assert next(title for title in drawn if "mean of mAP and mIoU 0.400 in epoch 3" in title)
    save_figure(figure, tmp_path / "training.png")
    path.write_text("")
    save_figure(plot_training(path), tmp_path / "empty.png")
    assert cv2.imread(str(tmp_path / "training.png")).shape == cv2.imread(str(tmp_path / "empty.png")).shape
