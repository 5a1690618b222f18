"""What `effdense.load` returns for an .onnx file: predicts and is evaluated as the checkpoint that it was made of."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_export import SIDE, Exported, photo

import effdense
from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import as_sample
from effdense.datasets.opening import match_classes, open_dataset
from effdense.datasets.segmentation_opening import open_segmentation
from effdense.errors import UserError
from effdense.runtime.onnx_header import read_onnx_header
from effdense.tasks.detection import evaluate as detection
from effdense.tasks.detection.exported import ExportedDetector, load_exported_detector
from effdense.tasks.multitask import evaluate as multitask
from effdense.tasks.multitask.exported import ExportedMultitask
from effdense.tasks.segmentation import evaluate as segmentation
from effdense.tasks.segmentation.exported import ExportedSegmenter, load_exported_segmenter
from effdense.types import Detections

SIZES = [
    pytest.param((64, 64), id="as-large-as-the-square"),
    pytest.param((40, 60), id="smaller"),
    pytest.param((1, 1), id="one-pixel"),
    pytest.param((3, 900), id="very-wide"),
    pytest.param((333, 200), id="larger"),
]
RUNTIMES = ["onnxruntime", "openvino"]


@functools.cache
def opened(path: Path, runtime: str = "auto") -> Any:
    return effdense.load(path, runtime=runtime)


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(found) == len(expected) > 0
    assert found.class_names == expected.class_names
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)
    apart = np.flatnonzero(np.diff(expected.scores, prepend=2, append=-1)[:-1] < -1e-4)  # ties may change places
    apart = np.intersect1d(apart, np.flatnonzero(np.diff(expected.scores, append=-1) < -1e-4))
    np.testing.assert_array_equal(found.labels[apart], expected.labels[apart])
    np.testing.assert_allclose(found.boxes_xyxy[apart], expected.boxes_xyxy[apart], atol=2e-2)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("size_hw", SIZES)
def test_an_exported_detector_finds_what_its_checkpoint_finds(
    size_hw: tuple[int, int], runtime: str, exported: Exported
) -> None:
    detector = opened(exported.files["detection"], runtime)
    assert isinstance(detector, ExportedDetector)
    assert_same(detector.predict(photo(7, size_hw)), exported.model.detector.predict(photo(7, size_hw)))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("size_hw", SIZES)
def test_an_exported_segmenter_labels_as_its_checkpoint_does(
    size_hw: tuple[int, int], runtime: str, exported: Exported
) -> None:
    segmenter = opened(exported.files["segmentation"], runtime)
    assert isinstance(segmenter, ExportedSegmenter)
    found = segmenter.predict(photo(7, size_hw))
    expected = exported.model.segmenter.predict(photo(7, size_hw))
    assert found.mask.shape == size_hw
    assert found.mask.dtype == np.uint8
    assert np.mean(found.mask == expected.mask) > 0.999  # where two classes are equal to rounding
    assert (found.probabilities, found.confidence, found.class_names) == (None, None, expected.class_names)


def test_an_exported_model_of_both_tasks_gives_both_and_is_either(exported: Exported) -> None:
    both = opened(exported.files["multitask"])
    assert isinstance(both, ExportedMultitask)
    image = photo(7, (SIDE, SIDE))
    result, expected = both.predict(image), exported.model.predict(image)
    for found in (result.detections, both.detector.predict(image)):
        assert_same(found, expected.detections)
    for found in (result.segmentation, both.segmenter.predict(image)):
        np.testing.assert_array_equal(found.mask, expected.segmentation.mask)
    assert both.detector.header["selection"] == exported.model.detector.header.get(
        "selection", both.detector.header["selection"]
    )
    assert (both.detector.header["task"], both.segmenter.header["task"]) == ("detection", "segmentation")


def test_the_file_of_both_tasks_is_opened_as_either(exported: Exported) -> None:
    image, file = photo(7, (40, 60)), exported.files["multitask"]
    assert_same(load_exported_detector(file).predict(image), exported.model.detector.predict(image))
    assert load_exported_segmenter(file).predict(image).mask.shape == (40, 60)


@pytest.mark.parametrize("task", ["detection", "segmentation", "multitask"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("aided", [True, False], ids=["fitted", "as-they-are"])
def test_images_of_several_sizes_in_a_list_are_as_one_by_one(
    aided: bool, task: str, batch_size: int, exported: Exported
) -> None:
    model = opened(exported.files[task])
    model = model if aided else model.unaided()
    images = [photo(number, size_hw) for number, size_hw in enumerate([(40, 60), (64, 64), (1, 1), (40, 60), (9, 300)])]
    together, alone = model.predict(images, batch_size=batch_size), [model.predict(image) for image in images]
    assert len(together) == len(images)
    for one, other in zip(together, alone, strict=True):
        if task != "segmentation":
            boxes = [found if task == "detection" else found.detections for found in (one, other)]
            assert_same(*boxes)
        if task != "detection":
            masks = [found if task == "segmentation" else found.segmentation for found in (one, other)]
            np.testing.assert_array_equal(masks[0].mask, masks[1].mask)


@pytest.mark.parametrize("task", ["detection", "segmentation", "multitask"])
def test_no_image_gives_no_result(task: str, exported: Exported) -> None:
    assert opened(exported.files[task]).predict([]) == []


@pytest.mark.parametrize("kind", ["path", "array", "list", "tuple"])
def test_images_come_as_they_do_for_a_checkpoint(kind: str, exported: Exported) -> None:
    file = exported.data / "boxes/val/2.png"
    pixels = as_sample(file).image
    given: Any = {"path": file, "array": pixels, "list": [file], "tuple": (pixels,)}[kind]
    found = opened(exported.files["detection"]).predict(given)
    found = found[0] if kind in ("list", "tuple") else found
    assert_same(found, exported.model.detector.predict(file))


def test_a_detector_sees_exactly_the_pixels_of_its_checkpoint(exported: Exported) -> None:
    """The square of the checkpoint's own transform goes in, with what part of it is image; nothing is resized again."""
    detector = effdense.load(exported.files["detection"])
    seen: dict[str, Any] = {}

    class Watched:
        name, precision, inputs, outputs = "watched", "float32", detector.session.inputs, detector.session.outputs

        def run(self, images: Any, contents_hw: Any = None) -> Any:
            seen.update(images=images, contents_hw=contents_hw)
            return session.run(images, contents_hw)

    session, detector.session = detector.session, Watched()
    samples = [as_sample(photo(number, size_hw)) for number, size_hw in enumerate([(50, 70), (64, 64), (77, 41)])]
    (batch,) = batches(samples, exported.model.detector.transform, 8)
    detector.predict([sample.image for sample in samples])
    np.testing.assert_array_equal(seen["images"], batch.images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(seen["contents_hw"], batch.resized_sizes_hw.numpy())


@pytest.mark.parametrize("task", ["segmentation", "multitask"])
def test_a_file_that_labels_pixels_sees_exactly_those_of_its_checkpoint(task: str, exported: Exported) -> None:
    """What the checkpoint's own transform makes of an image goes in without its padding, which the file adds."""
    model = effdense.load(exported.files[task])
    seen: list[Any] = []

    class Watched:
        name, precision, inputs, outputs = "watched", "float32", model.session.inputs, model.session.outputs

        def run(self, images: Any, contents_hw: Any = None, original_hw: Any = None) -> Any:
            seen.append((images, contents_hw, original_hw.tolist()))
            return session.run(images, contents_hw, original_hw)

    session, model.session = model.session, Watched()
    samples = [as_sample(photo(number, size_hw)) for number, size_hw in enumerate([(50, 70), (64, 64), (77, 41)])]
    (batch,) = batches(samples, exported.model.segmenter.transform, 8)
    model.predict([sample.image for sample in samples])
    assert len(seen) == len(samples)
    for position, (images, contents_hw, original_hw) in enumerate(seen):
        height, width = batch.resized_sizes_hw[position]
        wanted = batch.images[position, :, :height, :width].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(images, wanted[None])
        assert contents_hw is None
        assert original_hw == list(samples[position].image.shape[:2])


@pytest.mark.parametrize("task", ["segmentation", "multitask"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_gives_what_its_images_give_alone(runtime: str, task: str, exported: Exported) -> None:
    model = opened(exported.files[task], runtime)
    samples = [as_sample(photo(number, size_hw)) for number, size_hw in enumerate([(40, 60), (90, 30), (64, 64)])]
    (batch,) = batches(samples, model.transform, 8)
    found = list(model.stream(batch) if task == "segmentation" else model.run(batch))
    for one, sample in zip(found, samples, strict=True):
        alone, pixels = model.predict(sample.image), one if task == "segmentation" else one.segmentation
        mask = alone.mask if task == "segmentation" else alone.segmentation.mask
        np.testing.assert_array_equal(pixels.mask, mask)
        if task == "multitask":
            assert_same(one.detections, alone.detections)


@pytest.mark.parametrize("task", ["detection", "segmentation", "multitask"])
def test_a_file_that_is_given_images_as_they_are_fits_them_itself(task: str, exported: Exported) -> None:
    model, image = opened(exported.files[task]), photo(7, (100, 70))
    unaided = model.unaided()
    (batch,) = batches([as_sample(image)], unaided.transform, 8)
    assert batch.images.shape[2:] == image.shape[:2]
    raw = model.session.run(image[None])
    run = {"detection": "detect", "segmentation": "stream", "multitask": "run"}[task]
    (found,) = getattr(unaided, run)(batch)
    if task != "detection":
        pixels = found if task == "segmentation" else found.segmentation
        np.testing.assert_array_equal(pixels.mask, raw["label_map"][0])
    if task != "segmentation":
        boxes = found if task == "detection" else found.detections
        np.testing.assert_array_equal(boxes.boxes_xyxy, raw["boxes"][0, : len(boxes)])


@pytest.mark.parametrize("task", ["detection", "multitask"])
def test_a_stricter_selection_leaves_who_fits_images_as_it_is(task: str, exported: Exported) -> None:
    model, sample = opened(exported.files[task]), as_sample(photo(7, (100, 70)))
    for one, side in ((model.unaided(), 100), (model, SIDE)):
        (batch,) = batches([sample], one.with_selection(max_detections=3).transform, 8)
        assert batch.images.shape[2] == side


def test_evaluations_of_the_file_and_of_the_checkpoint_agree(exported: Exported) -> None:
    boxes = match_classes(open_dataset("coco", exported.data / "boxes", "val"), ("ant", "bee"), "x")
    masks = open_segmentation("folder", exported.data / "pixels", "val")
    model, file = exported.model, opened(exported.files["multitask"])
    scores = [detection.evaluate(one, boxes).map for one in (model.detector, file.detector)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[0] > 0.2
    for one in (model.segmenter, file.segmenter):
        assert segmentation.evaluate(one, masks).miou == pytest.approx(1.0, abs=0.01)
    together = multitask.evaluate(file, boxes, masks, batch_size=4)
    assert together.detection is not None
    assert together.segmentation is not None
    assert together.detection.map == pytest.approx(scores[0], abs=0.05)
    assert together.segmentation.miou == pytest.approx(1.0, abs=0.01)


def test_a_file_without_probabilities_has_no_calibration_error(exported: Exported) -> None:
    masks = open_segmentation("folder", exported.data / "pixels", "val")
    file = opened(exported.files["multitask"])
    assert segmentation.evaluate(file.segmenter, masks, calibration=True).calibration is None
    both = multitask.evaluate(file, None, masks, calibration=True).segmentation
    assert both is not None
    assert both.calibration is None
    assert segmentation.evaluate(exported.model.segmenter, masks, calibration=True).calibration is not None


def test_a_stricter_selection_is_applied_to_what_the_file_gives(exported: Exported) -> None:
    image, file = photo(7, (SIDE, SIDE)), opened(exported.files["multitask"])
    for changes in ({"max_detections": 3}, {"score_threshold": 0.02}, {"score_threshold": 0.02, "max_detections": 9}):
        expected = exported.model.with_selection(**changes)
        changed = file.with_selection(**changes)
        assert_same(changed.detector.predict(image), expected.detector.predict(image))
        assert_same(changed.predict(image).detections, expected.predict(image).detections)
    assert len(file.detector.predict(image)) == 100  # it was not changed itself
    assert len(file.with_selection(score_threshold=1.0).predict(image).detections) == 0


REFUSED = [
    pytest.param("detection", lambda m: m.with_selection(nms="soft"), "nms soft cannot be had of", id="nms"),
    pytest.param("detection", lambda m: m.with_selection(nms_iou=0.3), "nms_iou 0.3 cannot be had", id="nms-iou"),
    pytest.param("detection", lambda m: m.with_selection(score_threshold=1e-4), "exported with 0.001", id="score"),
    pytest.param("detection", lambda m: m.with_selection(max_detections=101), "exported with 100", id="count"),
    pytest.param("multitask", lambda m: m.with_selection(nms="soft"), "export the checkpoint again", id="nms-of-both"),
    pytest.param("detection", lambda m: m.with_image_size(32), "again with --image-size 32", id="size"),
    pytest.param("segmentation", lambda m: m.with_image_size(32), "fitted into 64 pixels", id="size-of-masks"),
    pytest.param("multitask", lambda m: m.with_image_size(96), "fitted into 64 pixels", id="size-of-both"),
    pytest.param("segmentation", lambda m: m.with_inference(window=32), "for window use the checkpoint", id="window"),
    pytest.param("segmentation", lambda m: m.with_inference(tta=("hflip",)), "for tta use the check", id="tta"),
    pytest.param("segmentation", lambda m: m.predict(photo(0, (8, 8)), probabilities=True), "labels alone", id="probs"),
    pytest.param(
        "multitask", lambda m: m.predict(photo(0, (8, 8)), probabilities=True), "labels alone", id="probs-both"
    ),
    pytest.param("detection", lambda m: m.to("cuda"), "runs on the CPU, not on cuda", id="gpu"),
    pytest.param("segmentation", lambda m: m.to(torch.device("cuda", 0)), "not on cuda:0", id="gpu-0"),
    pytest.param("multitask", lambda m: m.to("cuda"), "use the checkpoint there", id="gpu-of-both"),
    pytest.param("detection", lambda m: m.segmenter, "it has no segmentation head", id="segmenter"),
    pytest.param("segmentation", lambda m: m.detector, "it has no detection head", id="detector"),
    pytest.param("detection", lambda m: m.with_selection(score_threshold=2), "score_threshold is 2", id="range"),
    pytest.param("multitask", lambda m: m.with_selection(score_threshold=2), "score_threshold is 2", id="range-both"),
    pytest.param("detection", lambda m: m.predict(photo(0, (8, 8)), 0), "batch_size is 0", id="batch"),
    pytest.param("segmentation", lambda m: m.predict([], 0), "batch_size is 0", id="batch-of-masks"),
    pytest.param("multitask", lambda m: m.predict(photo(0, (8, 8)), 0), "batch_size is 0", id="batch-of-both"),
    pytest.param("detection", lambda m: m.predict("no.jpg"), "no.jpg", id="missing-image"),
    pytest.param("detection", lambda m: m.predict(np.zeros((4, 4), np.uint8)), "not uint8 (4, 4)", id="grey"),
]


@pytest.mark.parametrize(("task", "ask", "says"), REFUSED)
def test_what_a_file_cannot_do_is_refused_with_what_to_do(task: str, ask: Any, says: str, exported: Exported) -> None:
    with pytest.raises(UserError) as refused:
        ask(opened(exported.files[task]))
    assert says in str(refused.value)


WRONG = [
    pytest.param(lambda m: m.with_selection(score_threshold=2), "score_threshold is 2, expected", id="score"),
    pytest.param(lambda m: m.with_selection(nms_iou=-0.1), "nms_iou is -0.1, expected", id="nms-iou"),
    pytest.param(lambda m: m.with_selection(nms="sotf"), "nms is 'sotf', expected hard or soft", id="nms"),
    pytest.param(lambda m: m.with_selection(max_detections=0), "max_detections is 0, expected 1", id="count"),
    pytest.param(lambda m: m.predict(photo(0, (8, 8)), batch_size=0), "batch_size is 0, expected 1", id="batch"),
    pytest.param(lambda m: m.to("cuda:99"), "device is 'cuda:99', but", id="gpu"),
    pytest.param(lambda m: m.to("gpu"), "device is 'gpu', expected auto, cpu", id="device"),
]


@pytest.mark.parametrize("task", ["detection", "segmentation", "multitask"])
@pytest.mark.parametrize(("ask", "says"), WRONG)
def test_a_checkpoint_refuses_in_python_what_the_command_line_does(
    task: str, ask: Any, says: str, exported: Exported
) -> None:
    model = {"detection": exported.model.detector, "segmentation": exported.model.segmenter}.get(task, exported.model)
    if not hasattr(model, "with_selection") and says.startswith(("score", "nms", "max")):
        return  # a segmenter selects no boxes
    with pytest.raises(UserError) as refused:
        ask(model)
    assert says in str(refused.value)


@pytest.mark.parametrize("task", ["detection", "segmentation", "multitask"])
def test_what_changes_nothing_is_no_change(task: str, exported: Exported) -> None:
    model = opened(exported.files[task]).to("cpu").with_image_size(SIDE)
    if task == "segmentation":
        assert model.with_inference(window=None, tta=None) is model
    assert model.image_size == SIDE
    assert str(model.device) == "cpu"
    assert not hasattr(model, "save")
    assert model.header == {**read_onnx_header(exported.files[task])}


@pytest.mark.parametrize(
    ("task", "load", "says"),
    [
        pytest.param("segmentation", load_exported_detector, "is a segmenter; it has no detection head", id="masks"),
        pytest.param("detection", load_exported_segmenter, "is a detector; it has no segmentation head", id="boxes"),
    ],
)
def test_a_file_of_the_other_task_is_refused(task: str, load: Any, says: str, exported: Exported) -> None:
    with pytest.raises(UserError, match=says):
        load(exported.files[task])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param({"runtime": "openvino"}, "runtime openvino has no effect", id="runtime"),
        pytest.param({"threads": 2}, "threads 2 has no effect", id="threads"),
    ],
)
def test_a_checkpoint_has_no_choice_of_runtime(arguments: dict[str, Any], says: str, exported: Exported) -> None:
    with pytest.raises(UserError, match=says):
        effdense.load(exported.checkpoint, **arguments)


def test_a_damaged_header_names_the_file(exported: Exported, tmp_path: Path) -> None:
    import onnx

    from effdense.runtime.onnx_header import write_header

    for task, gone in (("detection", "category_ids"), ("segmentation", "inference"), ("multitask", "preprocessing")):
        file = onnx.load(exported.files[task])
        header = read_onnx_header(exported.files[task])
        del header[gone]
        write_header(file, header)
        onnx.save(file, tmp_path / "x.onnx")
        with pytest.raises(UserError, match=rf"x\.onnx is damaged or of another version.*'{gone}' is missing"):
            effdense.load(tmp_path / "x.onnx")
