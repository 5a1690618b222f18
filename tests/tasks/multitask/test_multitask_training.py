"""The multitask loop: what it records of each task, what is frozen stays, one label is enough for an image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import effdense
from effdense.backbones.registry import create_backbone
from effdense.config import Parsed
from effdense.datasets.opening import open_dataset
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.json_files import jsonable
from effdense.model_header import read_header
from effdense.tasks.detection import evaluate as detection
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector, Selection
from effdense.tasks.detection.run import begin as begin_detection
from effdense.tasks.multitask import train as loop
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.multitask.evaluate import evaluate
from effdense.tasks.multitask.join import join
from effdense.tasks.multitask.run import begin, resolve
from effdense.tasks.multitask.setup import build_loss, build_multitask, open_data, training_loader
from effdense.tasks.segmentation import evaluate as segmentation
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.run import begin as begin_segmentation
from effdense.training.checkpoint import read_tensors
from effdense.training.interrupt import InterruptWatch
from effdense.training.runlog import NonFiniteLossError
from effdense.types import Batch, Detections, Segmentation

BACKBONE = "test_efficientnet"
OBJECTS, PIXELS = ("low", "high"), ("ground", "low", "high")
NETWORK: dict[str, Any] = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
SMALL: dict[str, Any] = {"backbone": BACKBONE, "weights": "none", "image_size": 64, "epochs": 1}
SMALL_HEAD: dict[str, Any] = {"bifpn_channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
FIXED: dict[str, Any] = {"arch": "deeplabv3plus", "det_weight": 0.5, "seg_weight": 2.0, "epochs": 2}
"""With a decoder that draws random numbers, which a measurement must leave alone."""
GRADIENTS = {"gradient_detection", "gradient_segmentation"}


def _sources(root: Path) -> dict[str, Any]:
    return {"det_data": f"coco:{root / 'boxes'}", "seg_data": f"folder:{root / 'pixels'}"}


def _config(out: Path, **changes: Any) -> MultitaskConfig:
    settings: dict[str, Any] = SMALL | SMALL_HEAD | {"det_arch": "d0", "arch": "linknet", "batch_size": 4}
    return MultitaskConfig(**(settings | {"out": out, "randaugment_ops": 1} | changes))


def _train(out: Path, **changes: Any) -> Path:
    begin(Parsed(_config(out, **changes), frozenset()))
    return out


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _boxes(root: Path) -> Any:
    return open_dataset("coco", root / "boxes", "val")


def _masks(root: Path) -> Any:
    return open_segmentation("folder", root / "pixels", "val")


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a third of a short run; it is drawn in the run that more than one test looks at."""
    monkeypatch.setattr(loop, "save_figure", lambda figure, path: None)


# --- what is recorded


@pytest.fixture(scope="module")
def run(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three batches an epoch."""
    return _train(tmp_path_factory.mktemp("runs") / "run", **_sources(labelled), **FIXED, gradients_every=2)


def test_the_record_has_loss_weight_and_gradient_norm_of_each_task_and_the_labels_seen(run: Path) -> None:
    for record in _metrics(run):
        assert record["detection"] == pytest.approx(record["class"] + 50 * record["box"])
        assert record["segmentation"] == pytest.approx(record["ce"] + record["dice"])
        assert record["total"] == pytest.approx(0.5 * record["detection"] + 2 * record["segmentation"])
        assert (record["weight_detection"], record["weight_segmentation"]) == (0.5, 2.0)
        assert all(record[name] > 0 for name in GRADIENTS)
        assert (record["images_with_boxes"], record["images_with_masks"]) == (7, 7)
        assert record["score"] == (record["AP"] + record["mIoU"]) / 2


def test_the_labels_seen_are_those_of_the_images_drawn(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = loop.losses_of

    def noting(run: loop.Run, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        seen.extend(batch.image_ids)
        return original(run, model, batch)

    monkeypatch.setattr(loop, "losses_of", noting)
    (record,) = _metrics(_train(tmp_path / "run", **_sources(labelled), mask_share=0.25, gradients_every=0))
    assert len(seen) == 20  # five images have a mask alone and come one a batch; the other seven two or three times
    assert record["images_with_boxes"] == sum(number <= 7 for number in seen) == 15
    assert sum(number >= 6 for number in seen) > 7
    assert record["images_with_masks"] == 7  # the five, and the two of the others that have both, the first time
    assert not GRADIENTS & record.keys()


def test_measuring_gradients_does_not_change_the_run(labelled: Path, run: Path, tmp_path: Path) -> None:
    other = _train(tmp_path / "other", **_sources(labelled), **FIXED, gradients_every=0)
    unlike = GRADIENTS | {"time", "images_per_second"}
    for one, two in zip(_metrics(run), _metrics(other), strict=True):
        assert {k: v for k, v in one.items() if k not in unlike} == {k: v for k, v in two.items() if k not in unlike}
    first, second = (read_tensors(folder / "last.safetensors") for folder in (run, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("every", "measured"),
    [
        pytest.param(1, [(0, 0), (1, 2), (2, 0), (3, 2)], id="every step"),
        pytest.param(2, [(0, 0), (2, 0)], id="every second"),
    ],
)
def test_gradients_are_measured_once_in_each_optimizer_step_that_is_due(
    every: int, measured: list[tuple[int, int]], labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve(_config(tmp_path / "run", **_sources(labelled), epochs=2, accumulate=2, gradients_every=every))
    run = loop.start(config, tmp_path / "run", resume=False)
    due = []
    monkeypatch.setattr(run.balance, "observe", lambda *_: due.append((run.progress.step, run.progress.batches)))
    with InterruptWatch() as watch:
        for _ in range(2):  # of three batches, hence of two steps
            loop.train_one_epoch(run, watch)
            run.progress.epoch += 1
    assert due == measured


def test_a_loss_that_is_not_finite_names_the_files_of_its_images(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    original = loop.losses_of

    def broken(run: loop.Run, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch)
        losses = original(run, model, batch)
        return {**losses, "total": losses["total"] * float("nan")}

    monkeypatch.setattr(loop, "losses_of", broken)
    with pytest.raises(NonFiniteLossError) as error:
        _train(tmp_path / "run", **_sources(labelled))
    # COCO's ids, from 0 on, collide with the others': numbered anew from 1 on, these come last, train10 before train7
    order = [
        *(f"boxes/train/train{n}" for n in range(7)),
        *(f"pixels/images/train/train{n}" for n in (10, 11, 7, 8, 9)),
    ]
    paths = [str(labelled / f"{order[image_id - 1]}.png") for image_id in seen[0].image_ids]
    assert f"; images {', '.join(paths)})" in str(error.value)


@pytest.mark.parametrize("balance", ["uncertainty", "gradnorm"])
def test_weights_that_adapt_move_from_where_they_are_told_to_begin(
    balance: str, labelled: Path, tmp_path: Path
) -> None:
    changes = {"det_weight": 0.5, "seg_weight": 2.0, "gradients_every": 1, "lr": 0.05}
    (record,) = _metrics(_train(tmp_path / "run", **_sources(labelled), balance=balance, **changes))
    for name, first in (("weight_detection", 0.5), ("weight_segmentation", 2.0)):
        assert record[name] == pytest.approx(first, rel=0.3)
        assert record[name] != first


def test_recorded_scores_are_those_of_the_saved_file_and_of_each_view_alone(labelled: Path, run: Path) -> None:
    boxes, masks = _boxes(labelled), _masks(labelled)
    loaded = effdense.load(run / "last.safetensors")
    found = evaluate(loaded, boxes, masks, batch_size=4).summary()
    alone = jsonable(detection.evaluate(loaded.detector, boxes, batch_size=4).coco.metrics)
    alone |= segmentation.evaluate(loaded.segmenter, masks, batch_size=4).scores.summary()
    recorded = _metrics(run)[-1]
    assert {name: recorded[name] for name in found} == found
    assert {name: found[name] for name in alone} == alone
    scores = read_header(run / "last.safetensors")["scores"]
    assert {**scores["detection"], **scores["segmentation"]} == alone


def test_images_with_one_label_each_from_two_folders_train_both_heads(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "data", symlinks=True)
    for link in list((tmp_path / "data/pixels/images").rglob("*.png")):
        if link.is_symlink():  # the image has boxes too
            link.unlink()
            (tmp_path / "data/pixels/masks" / link.parent.name / link.name).unlink()
    run = _train(tmp_path / "run", **_sources(tmp_path / "data"), mask_share=0.5, batch_size=4)
    (record,) = _metrics(run)
    assert (record["images_with_boxes"], record["images_with_masks"]) == (8, 8)
    assert record["detection"] > 0
    assert record["segmentation"] > 0
    whole = evaluate(effdense.load(run / "best.safetensors"), _boxes(tmp_path / "data"), _masks(tmp_path / "data"))
    assert whole.score == record["score"]


# --- freezing


def _shaken(model: nn.Module) -> None:
    """Give a model statistics and class scores as of one that was trained, so that it finds something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif ("classes" in name and name.endswith("pointwise.weight")) or name == "head.0.weight":
                value.mul_(30)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = create_efficientdet("d0", 2, backbone=BACKBONE, **NETWORK)
    model.backbone.set_statistics((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    _shaken(model)
    path = tmp_path_factory.mktemp("models") / "detector.safetensors"
    Detector(model, OBJECTS, image_size=64, category_ids=(5, 7)).save(path)
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = create_segmentation_model("linknet", 3, backbone=BACKBONE)
    _shaken(model)
    path = tmp_path_factory.mktemp("models") / "segmenter.safetensors"
    Segmenter(model, PIXELS, image_size=64).save(path)
    return path


@pytest.fixture(scope="module")
def images(labelled: Path) -> list[Any]:
    """Two that the models know nothing of, and one of the data."""
    noise = np.random.default_rng(3).integers(0, 256, (100, 60, 3), np.uint8)
    return [noise, cv2.resize(noise, (64, 64)), next((labelled / "boxes/val").iterdir())]


def _same_detections(one: Detections, other: Detections) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes_xyxy", "scores", "labels"))


def _same_pixels(one: Segmentation, other: Segmentation) -> bool:
    assert one.probabilities is not None
    assert other.probabilities is not None
    return np.array_equal(one.mask, other.mask) and np.array_equal(one.probabilities, other.probabilities)


FROZEN = [
    pytest.param(("backbone", "detection"), "detector", "seg_data", {"segmentation"}, id="detector-gets-masks"),
    pytest.param(("backbone", "segmentation"), "segmenter", "det_data", {"detection"}, id="segmenter-gets-boxes"),
    pytest.param(("backbone",), "detector", None, {"detection", "segmentation"}, id="backbone-alone"),
    pytest.param(("detection",), "detector", None, {"backbone", "segmentation"}, id="detection-alone"),
    pytest.param(("segmentation",), "segmenter", None, {"backbone", "detection"}, id="segmentation-alone"),
]


@pytest.mark.parametrize(("freeze", "file", "source", "learns"), FROZEN)
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(
    freeze: tuple[str, ...],
    file: str,
    source: str | None,
    learns: set[str],
    labelled: Path,
    images: list[Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: Path = request.getfixturevalue(file)
    at_first: dict[str, torch.Tensor] = {}
    original = loop.start

    def noting(*args: Any, **kwargs: Any) -> loop.Run:
        run = original(*args, **kwargs)
        at_first.update({name: value.clone() for name, value in run.learner.model.state_dict().items()})
        return run

    monkeypatch.setattr(loop, "start", noting)
    data = {name: value for name, value in _sources(labelled).items() if source in (None, name)}
    run = _train(tmp_path / "run", freeze=freeze, weights=str(begun), lr=0.05, **data)
    for name in ("best.safetensors", "last.safetensors"):
        at_last = read_tensors(run / name)
        assert at_first.keys() == at_last.keys()
        changed = {name for name in at_first if not torch.equal(at_first[name], at_last[name])}
        assert {name.partition(".")[0] for name in changed} == learns
    before, after = effdense.load(begun), effdense.load(run / "last.safetensors")
    own = {"detector": "detection", "segmenter": "segmentation"}[file]
    kept = getattr(after, file).model.state_dict()
    for name, value in before.model.state_dict().items():
        part = "backbone" if name.startswith("backbone.") else own
        assert part in learns or torch.equal(value, kept[name]), name
    if {"backbone", own} & learns:
        return
    assert own not in _metrics(run)[-1]
    assert read_header(run / "last.safetensors")["scores"][own] is None
    for image in images:
        found = after.predict(image, probabilities=True)
        if file == "detector":
            assert after.detector.category_ids == before.category_ids == (5, 7)
            assert _same_detections(before.predict(image), found.detections)
            assert len(found.detections.scores) > 20
        else:
            assert _same_pixels(before.predict(image, probabilities=True), found.segmentation)
            assert np.ptp(found.segmentation.probabilities[0]) > 0.05


def test_a_frozen_head_is_scored_where_its_labels_are_given(labelled: Path, detector: Path, tmp_path: Path) -> None:
    freeze = {"freeze": ("backbone", "detection"), "weights": str(detector)}
    (record,) = _metrics(_train(tmp_path / "run", **freeze, **_sources(labelled)))
    expected = detection.evaluate(effdense.load(detector), _boxes(labelled), batch_size=4).coco.metrics
    assert {name: record[name] for name in expected} == jsonable(expected)
    assert (record["images_with_boxes"], record["images_with_masks"]) == (0, 4)


def test_two_heads_trained_apart_on_one_frozen_backbone_join(labelled: Path, images: list[Any], tmp_path: Path) -> None:
    save_file(create_backbone(BACKBONE).state_dict(), tmp_path / "backbone.safetensors")
    shared = SMALL | {"weights": str(tmp_path / "backbone.safetensors"), "freeze_stages": 7, "lr": 0.05}
    boxes = DetectionConfig(
        dataset="coco", data_root=labelled / "boxes", arch="d0", out=tmp_path / "det", **shared, **SMALL_HEAD
    )
    masks = SegmentationConfig(
        dataset="folder", data_root=labelled / "pixels", arch="linknet", out=tmp_path / "seg", **shared
    )
    detector = effdense.load(begin_detection(Parsed(boxes, frozenset())))
    segmenter = effdense.load(begin_segmentation(Parsed(masks, frozenset())))
    join(detector, segmenter).save(tmp_path / "both.safetensors")
    both = effdense.load(tmp_path / "both.safetensors")
    for image in images:
        found = both.predict(image, probabilities=True)
        assert _same_detections(detector.predict(image), found.detections)
        assert _same_pixels(segmenter.predict(image, probabilities=True), found.segmentation)
    further = _train(tmp_path / "further", weights=str(tmp_path / "both.safetensors"), **_sources(labelled))
    assert "score" in _metrics(further)[-1]


# --- settings


def test_settings_reach_what_they_set(labelled: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"class_weighting": "median", "seg_loss": "ce+0.5*dice", "auxiliary_weight": 0.4}
    changes |= {"det_focal_gamma": 2.5, "score_threshold": 0.3, "label_smoothing": 0.1, "box_weight": 7.0}
    config = resolve(_config(tmp_path / "none", image_size=96, mask_share=0.25, **changes, **_sources(labelled)))
    data = open_data(config)
    both = build_multitask(config, data)
    loss = build_loss(config, data)
    batch = next(iter(training_loader(config, data, both)))
    assert (both.class_names, both.seg_class_names, both.image_size) == (OBJECTS, PIXELS, 96)
    assert both.detector.category_ids == (5, 7)
    assert both.detector.selection.score_threshold == 0.3
    assert batch.images.shape[-2:] == (96, 96)
    assert (int(batch.with_masks[:1].sum()), int(batch.with_boxes[1:].sum())) == (1, 3)
    assert "auxiliary" in both.model.segmentation
    assert loss.box_weight == 7.0
    assert loss.detection is not None
    assert loss.segmentation is not None
    assert loss.segmentation.terms == {"ce": 1.0, "dice": 0.5}
    assert loss.segmentation.class_weights is not None


def _built(config: MultitaskConfig) -> Any:
    """Return data, model and loader of a run."""
    config = resolve(config)
    data = open_data(config)
    both = build_multitask(config, data)
    return data, both, training_loader(config, data, both)


def test_a_share_of_masks_that_nothing_is_drawn_by_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _built(_config(tmp_path / "run", mask_share=0.25))  # the demo's images have both labels
    assert "--mask-share has no effect" in caplog.text
    caplog.clear()
    _built(_config(tmp_path / "run"))
    assert "--mask-share" not in caplog.text


def test_one_mask_in_a_batch_is_enough_for_a_head_on_a_shared_bifpn(labelled: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"arch": "bifpn", "batch_size": 3, "mask_share": 0.34, "gradients_every": 0}
    _train(tmp_path / "run", **_sources(labelled), **changes)


@pytest.mark.parametrize(
    ("frozen", "warned"), [({}, True), ({"freeze": ("backbone",)}, False), ({"freeze_stages": 8}, False)]
)
def test_an_image_seen_for_one_task_and_scored_for_the_other_is_warned_of_where_the_backbone_learns(
    frozen: dict[str, Any], warned: bool, labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swapped = tmp_path / "pixels"
    shutil.copytree(labelled / "pixels", swapped, symlinks=True)
    for part in ("images", "masks"):
        (swapped / part / "val").rename(swapped / part / "kept")
        (swapped / part / "train").rename(swapped / part / "val")
        (swapped / part / "kept").rename(swapped / part / "train")
    changes = {"weights": "auto"} | frozen | {"det_data": f"coco:{labelled / 'boxes'}", "seg_data": f"folder:{swapped}"}
    open_data(resolve(_config(tmp_path / "run", **changes)))
    assert ("the shared backbone has seen them" in caplog.text) == warned


def test_a_frozen_detector_with_its_own_constants_images_and_selection_finds_the_same(
    labelled: Path, images: list[Any], tmp_path: Path
) -> None:
    model = create_efficientdet("d0", 2, backbone=BACKBONE, anchor_scale=2.0, act="relu6", **NETWORK)
    _shaken(model)
    before = Detector(model, OBJECTS, image_size=96, selection=Selection(0.05, "soft", 0.5, 20))
    before.save(tmp_path / "d.safetensors")
    config = MultitaskConfig(
        weights=str(tmp_path / "d.safetensors"), freeze=("backbone", "detection"), epochs=1, arch="linknet",
        batch_size=4, seg_data=_sources(labelled)["seg_data"], out=tmp_path / "run",
    )  # fmt: skip
    begin(Parsed(config, frozenset()))
    before = effdense.load(tmp_path / "d.safetensors")
    after = effdense.load(tmp_path / "run/best.safetensors")
    assert (after.image_size, after.detector.selection) == (96, before.selection)
    for image in images:
        assert _same_detections(before.predict(image), after.predict(image).detections)
    assert len(before.predict(images[0]).scores) == 20


def test_one_image_of_a_label_in_a_batch_is_refused_before_anything_is_written(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch-size"):
        _train(tmp_path / "run", batch_size=2, **_sources(labelled))
    assert not (tmp_path / "run").exists()
