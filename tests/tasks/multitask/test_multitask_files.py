"""A multitask file: whole it predicts what was saved, and whatever reads one task's file reads its part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import effdense
from effdense.backbones.registry import create_backbone
from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import as_sample
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector, Selection, load_detector
from effdense.tasks.multitask.model import MultitaskModel, create_multitask
from effdense.tasks.multitask.predict import Multitask, load_multitask
from effdense.tasks.segmentation import memory
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter, load_segmenter
from effdense.training.checkpoint import save_model
from effdense.types import Detections, MultitaskResult, Segmentation

OBJECTS = ("cat", "dog")
PIXELS = ("sky", "sea", "land")
SIZE = 64
SMALL = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

ARCHS = [
    pytest.param({"arch": "fpn", "auxiliary": True}, id="fpn"),
    pytest.param({"arch": "pspnet"}, id="pspnet-whose-backbone-ends-early"),
    pytest.param({"arch": "bifpn"}, id="bifpn-shared"),
    pytest.param({"arch": "bifpn", "share_bifpn": False}, id="bifpn-of-its-own"),
    pytest.param({"arch": "unet"}, id="unet"),
]


def shaken(model: nn.Module) -> None:
    """Give every number of a model its own value, as training would, and let detections be many."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif ".classes." in name and name.endswith("pointwise.weight"):
                value.mul_(30)
            elif name.endswith("num_batches_tracked"):
                value.fill_(9)


def multitask(header: dict[str, Any] | None = None, **arguments: Any) -> Multitask:
    arguments = {"class_names": OBJECTS, "seg_class_names": PIXELS, "image_size": SIZE, **arguments}
    model = create_multitask("lite0", len(OBJECTS), len(PIXELS), **arguments, **SMALL)
    shaken(model)
    model.backbone.set_statistics(MEAN, STD)
    model.to(memory_format=torch.channels_last)
    return Multitask(model, category_ids=(3, 7), selection=Selection(max_detections=9), header=header)


def image(height: int = 50, width: int = 70) -> np.ndarray[Any, Any]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


IMAGES = [image(50, 70), image(64, 64), image(1, 90), image(33, 20)]


def assert_same_detections(one: Detections, other: Detections) -> None:
    np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.class_names == other.class_names


def assert_same_pixels(one: Segmentation, other: Segmentation) -> None:
    np.testing.assert_array_equal(one.mask, other.mask)
    assert one.probabilities is not None
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert one.class_names == other.class_names


@pytest.fixture(scope="module")
def model() -> Multitask:
    return multitask({"epoch": 4, "scores": {"detection": {"mAP": 0.25}, "segmentation": {"mIoU": 0.5}}})


@pytest.fixture(scope="module")
def path(model: Multitask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("multitask") / "m.safetensors"
    model.save(file)
    return file


# --- the whole


@pytest.mark.parametrize("arguments", ARCHS)
def test_a_saved_model_loads_whole_and_predicts_the_same_to_the_bit(arguments: dict[str, Any], tmp_path: Path) -> None:
    saved = multitask(**arguments)
    saved.save(tmp_path / "m.safetensors")
    loaded = effdense.load(tmp_path / "m.safetensors")
    assert isinstance(loaded, Multitask)
    assert (loaded.class_names, loaded.seg_class_names, loaded.image_size) == (OBJECTS, PIXELS, SIZE)
    assert loaded.model.spec == saved.model.spec
    assert loaded.detector.category_ids == (3, 7)
    assert loaded.detector.selection == Selection(max_detections=9)
    assert (loaded.model.backbone.mean, loaded.model.backbone.std) == (MEAN, STD)
    first, second = (one.predict(IMAGES, probabilities=True) for one in (saved, loaded))
    for one, other in zip(first, second, strict=True):
        assert_same_detections(one.detections, other.detections)
        assert_same_pixels(one.segmentation, other.segmentation)
    loaded.save(tmp_path / "again.safetensors")
    assert read_header(tmp_path / "again.safetensors") == read_header(tmp_path / "m.safetensors")


@pytest.mark.parametrize("arguments", ARCHS)
def test_one_pass_gives_what_the_views_give_to_the_bit(arguments: dict[str, Any]) -> None:
    both = multitask(**arguments)
    found = both.predict(IMAGES, probabilities=True)
    boxes, pixels = both.detector.predict(IMAGES), both.segmenter.predict(IMAGES, probabilities=True)
    assert sum(len(one) for one in boxes) > 0
    assert len({int(label) for one in pixels for label in np.unique(one.mask)}) > 1
    for one, alone, labels in zip(found, boxes, pixels, strict=True):
        assert_same_detections(one.detections, alone)
        assert_same_pixels(one.segmentation, labels)


def test_results_come_one_an_image_in_pixels_of_the_original(model: Multitask) -> None:
    found = model.predict(IMAGES)
    for one, picture in zip(found, IMAGES, strict=True):
        assert isinstance(one, MultitaskResult)
        assert one.segmentation.mask.shape == picture.shape[:2]
        assert one.segmentation.probabilities is None
        height, width = picture.shape[:2]
        assert (one.detections.boxes_xyxy <= [width, height, width, height]).all()
    single = model.predict(IMAGES[0])
    assert isinstance(single, MultitaskResult)
    assert single.segmentation.class_names == PIXELS
    assert single.detections.class_names == OBJECTS
    assert model.predict([]) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_running_batches_is_predicting(model: Multitask, batch_size: int) -> None:
    samples = [as_sample(one) for one in IMAGES]
    found = [
        one for batch in batches(samples, model.transform, batch_size) for one in model.run(batch, confidence=True)
    ]
    expected = model.predict_samples(samples, batch_size=batch_size, probabilities=True)
    for one, other in zip(found, expected, strict=True):
        assert_same_detections(one.detections, other.detections)
        np.testing.assert_array_equal(one.segmentation.mask, other.segmentation.mask)
        assert other.segmentation.probabilities is not None
        np.testing.assert_array_equal(one.segmentation.confidence, other.segmentation.probabilities.max(0))


def test_the_backbone_runs_once_for_both(model: Multitask) -> None:
    calls: list[int] = []
    handle = model.model.backbone.conv_stem.register_forward_hook(lambda *_: calls.append(1))
    try:
        model.predict(IMAGES[:1])
        calls.clear()  # the first pass measures what memory a pass needs
        model.predict(IMAGES[:1])
    finally:
        handle.remove()
    assert len(calls) == 1


def test_each_tensor_is_in_the_file_once(tmp_path: Path) -> None:
    both = multitask(arch="bifpn")
    both.save(tmp_path / "m.safetensors")
    own = both.model.state_dict()
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == own.keys()
    parts = {name.partition(".")[0] for name in names}
    assert parts == {"backbone", "detection", "segmentation"}
    places = [value.data_ptr() for value in own.values() if value.numel()]
    assert len(places) == len(set(places)), "a tensor has two names"
    size = sum(value.numel() * value.element_size() for value in own.values())
    assert (tmp_path / "m.safetensors").stat().st_size < size * 1.1 + 200_000


def test_changed_copies_leave_the_original_alone(model: Multitask) -> None:
    fewer = model.with_selection(max_detections=1)
    assert all(len(one.detections) <= 1 for one in fewer.predict(IMAGES))
    assert model.detector.selection.max_detections == 9
    assert fewer.header == model.header
    other = multitask().model.train()
    assert model.with_model(other).model is other
    assert not other.training
    assert model.device == torch.device("cpu")
    assert model.to("cpu") is model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_views_move_with_the_whole() -> None:
    moved = multitask().to("cuda")
    found, labels = moved.predict(IMAGES[0]), moved.segmenter.predict(IMAGES[0])
    assert (found.segmentation.mask == labels.mask).mean() > 0.99
    assert len(moved.detector.predict(IMAGES[0])) == len(found.detections)


def test_what_is_larger_than_memory_is_refused_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 100 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    with pytest.raises(UserError, match=r"2 images of 64x64 pixels would need about .* --image-size or --batch-size"):
        multitask().predict(IMAGES, batch_size=2)


def test_pan_is_measured_on_an_image_that_it_takes() -> None:
    both = multitask(arch="pan", image_size=256)
    assert both.predict(IMAGES[0]).segmentation.mask.shape == (50, 70)


# --- one part of it


@pytest.mark.parametrize("arguments", ARCHS)
def test_a_view_saved_alone_loads_as_a_model_of_its_task_with_the_same_results(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    both = multitask({"epoch": 2, "scores": {"detection": {"mAP": 0.25}, "segmentation": {"mIoU": 0.5}}}, **arguments)
    both.detector.save(tmp_path / "det.safetensors")
    both.segmenter.save(tmp_path / "seg.safetensors")
    detector, segmenter = effdense.load(tmp_path / "det.safetensors"), effdense.load(tmp_path / "seg.safetensors")
    assert isinstance(detector, Detector)
    assert isinstance(segmenter, Segmenter)
    for one, boxes, labels in zip(
        both.predict(IMAGES, probabilities=True),
        detector.predict(IMAGES),
        segmenter.predict(IMAGES, probabilities=True),
        strict=True,
    ):
        assert_same_detections(one.detections, boxes)
        assert_same_pixels(one.segmentation, labels)
    assert detector.header["scores"] == {"mAP": 0.25}
    assert segmenter.header["scores"] == {"mIoU": 0.5}
    assert detector.header["epoch"] == segmenter.header["epoch"] == 2


@pytest.mark.parametrize("arguments", ARCHS)
def test_a_part_read_from_the_whole_file_is_the_view_saved_alone(arguments: dict[str, Any], tmp_path: Path) -> None:
    both = multitask(**arguments)
    whole = tmp_path / "m.safetensors"
    both.save(whole)
    loaders: list[tuple[Callable[[Path], Any], Any]] = [
        (load_detector, both.detector),
        (load_segmenter, both.segmenter),
    ]
    for number, (load, view) in enumerate(loaders):
        view.save(tmp_path / f"{number}.safetensors")
        load(whole).save(tmp_path / f"{number}-again.safetensors")
        first, second = (read(tmp_path / f"{number}{suffix}.safetensors") for suffix in ("", "-again"))
        assert first[0] == second[0]
        assert first[1].keys() == second[1].keys()
        assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())
        assert "backbone_stages" not in first[0]


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["effdense"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict


def test_a_pspnets_part_has_the_stages_that_it_reads(tmp_path: Path) -> None:
    both = multitask(arch="pspnet")
    both.save(tmp_path / "m.safetensors")
    assert len(load_segmenter(tmp_path / "m.safetensors").model.backbone.blocks) < 7
    assert len(load_detector(tmp_path / "m.safetensors").model.backbone.blocks) == 7


def test_the_pyramid_that_both_read_is_the_detectors_in_either_part(tmp_path: Path) -> None:
    both = multitask(arch="bifpn")
    both.save(tmp_path / "m.safetensors")
    neck = both.model.detection["neck"].state_dict()
    pyramid = load_segmenter(tmp_path / "m.safetensors").model.decoder.get_submodule("pyramid").state_dict()
    assert neck.keys() == pyramid.keys()
    assert all(torch.equal(value, pyramid[name]) for name, value in neck.items())


@pytest.mark.parametrize("arguments", ARCHS)
def test_single_tasks_start_from_their_part_by_weights(arguments: dict[str, Any], tmp_path: Path) -> None:
    both = multitask(**arguments)
    file = str(tmp_path / "m.safetensors")
    both.save(Path(file))
    detector = create_efficientdet("auto", 2, backbone="lite0", weights=file, class_names=OBJECTS, **SMALL)
    assert equal(detector, both.detector.model)
    backbone = create_backbone("lite0", weights=file)
    assert equal(backbone, both.model.backbone)
    assert (detector.backbone.mean, backbone.mean) == (MEAN, MEAN)
    arch, auxiliary = arguments["arch"], arguments.get("auxiliary", False)
    segmenter = create_segmentation_model(
        arch, 3, backbone="lite0", weights=file, auxiliary=auxiliary, class_names=PIXELS
    )
    assert equal(segmenter.backbone, both.segmenter.model.backbone)
    on_pyramid = both.model.spec.shares_bifpn  # there is no detector whose pyramid it could read
    assert equal(segmenter, both.segmenter.model) is not on_pyramid


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_another_backbone_names_that_of_the_file(path: Path) -> None:
    with pytest.raises(UserError, match="the file is for backbone 'lite0', not 'b0'"):
        create_backbone("b0", weights=str(path))


# --- a second head on a detector that is in use


@pytest.mark.parametrize("arch", ["fpn", "bifpn", "pspnet"])
def test_adding_a_segmentation_head_leaves_the_detections_of_a_file_as_they_were(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = create_efficientdet("auto", 2, backbone="lite0", image_size=SIZE, **SMALL)
    shaken(network)
    Detector(network, OBJECTS, image_size=SIZE).save(tmp_path / "det.safetensors")
    before = effdense.load(tmp_path / "det.safetensors").predict(IMAGES)
    model = create_multitask(
        "lite0", 2, 3, arch, weights=str(tmp_path / "det.safetensors"), class_names=OBJECTS, image_size=SIZE, **SMALL
    )
    model.freeze(["backbone", "detection"])
    train_a_step(model)
    after = Multitask(model.to(memory_format=torch.channels_last))
    after.save(tmp_path / "both.safetensors")
    loaded = effdense.load(tmp_path / "both.safetensors")
    ways = [
        [one.detections for one in after.predict(IMAGES)],
        after.detector.predict(IMAGES),
        [one.detections for one in loaded.predict(IMAGES)],
        loaded.detector.predict(IMAGES),
        load_detector(tmp_path / "both.safetensors").predict(IMAGES),
    ]
    assert sum(len(one) for one in before) > 0
    for way in ways:
        for first, second in zip(before, way, strict=True):
            assert_same_detections(first, second)


def train_a_step(model: MultitaskModel) -> None:
    model.train()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = model.training_outputs(torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8))
    assert outputs.masks is not None
    outputs.masks["logits"].square().mean().backward()
    optimizer.step()
    moved = {name.partition(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"segmentation"}


# --- bad input


def test_a_view_asked_of_a_single_task_model_names_the_file_and_the_way(model: Multitask, tmp_path: Path) -> None:
    model.detector.save(tmp_path / "det.safetensors")
    model.segmenter.save(tmp_path / "seg.safetensors")
    detector, segmenter = effdense.load(tmp_path / "det.safetensors"), effdense.load(tmp_path / "seg.safetensors")
    assert detector.detector is detector
    assert segmenter.segmenter is segmenter
    with pytest.raises(UserError, match=r"det\.safetensors is a detector; it has no segmentation head.*train-multi"):
        detector.segmenter  # noqa: B018 - asking is what is refused
    with pytest.raises(UserError, match=r"seg\.safetensors is a segmenter; it has no detection head.*train-multi"):
        segmenter.detector  # noqa: B018
    with pytest.raises(UserError, match="this model is a detector"):
        Detector(detector.model, OBJECTS, image_size=SIZE).segmenter  # noqa: B018
    with pytest.raises(UserError, match="this model is a segmenter"):
        Segmenter(segmenter.model, PIXELS, image_size=SIZE).detector  # noqa: B018


def test_a_loader_of_one_task_refuses_the_file_of_the_other(model: Multitask, tmp_path: Path) -> None:
    model.detector.save(tmp_path / "det.safetensors")
    model.segmenter.save(tmp_path / "seg.safetensors")
    with pytest.raises(UserError, match=r"det\.safetensors is a detector; it has no segmentation head"):
        load_segmenter(tmp_path / "det.safetensors")
    with pytest.raises(UserError, match=r"seg\.safetensors is a segmenter; it has no detection head"):
        load_detector(tmp_path / "seg.safetensors")
    with pytest.raises(UserError, match=r"det\.safetensors is a detector; it has no segmentation head"):
        load_multitask(tmp_path / "det.safetensors")


def _without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


DAMAGES = [
    pytest.param(_without("preprocessing"), "'preprocessing' is missing", id="preprocessing"),
    pytest.param(_without("preprocessing", "image_size"), "'image_size' is missing", id="image-size"),
    pytest.param(_without("detection"), "'detection' is missing", id="detection"),
    pytest.param(_without("segmentation"), "'segmentation' is missing", id="segmentation"),
    pytest.param(_without("detection", "model"), "'model' is missing", id="detector-model"),
    pytest.param(_without("detection", "category_ids"), "'category_ids' is missing", id="category-ids"),
    pytest.param(_without("detection", "selection"), "'selection' is missing", id="selection"),
    pytest.param(_without("segmentation", "class_names"), "'class_names' is missing", id="classes"),
    pytest.param(_without("segmentation", "model", "arch"), "arch", id="architecture"),
    pytest.param(lambda header: header.update(detection=[1]), "", id="list-for-detection"),
    pytest.param(lambda header: header.update(segmentation="fpn"), "", id="text-for-segmentation"),
    pytest.param(lambda header: header["detection"].update(model="d0"), "", id="text-for-model"),
    pytest.param(lambda header: header["detection"]["model"].update(later=1), "later", id="detector-of-later-version"),
    pytest.param(lambda header: header["segmentation"]["model"].update(later=1), "later", id="later-version"),
    pytest.param(lambda header: header["segmentation"]["model"].update(backbone="b0"), "'b0'", id="two-backbones"),
    pytest.param(lambda header: header["segmentation"]["model"].update(output_stride=8), "8", id="dilated"),
    pytest.param(lambda header: header["segmentation"].update(class_names=[]), "1 to 255", id="no-class"),
    pytest.param(lambda header: header["detection"].update(class_names=None), "", id="null-for-classes"),
    pytest.param(lambda header: header["preprocessing"].update(image_size="big"), "big", id="text-for-size"),
    pytest.param(lambda header: header["preprocessing"].update(image_size=65), "65", id="size-no-shared-pass-takes"),
    pytest.param(lambda header: header["preprocessing"].update(mean=["a"]), "", id="text-for-mean"),
]


@pytest.mark.parametrize(("change", "says"), DAMAGES)
def test_a_damaged_or_foreign_header_is_an_error_that_names_the_file(
    change: Callable[[dict[str, Any]], None], says: str, model: Multitask, path: Path, tmp_path: Path
) -> None:
    header = read_header(path)
    change(header)
    save_model(tmp_path / "x.safetensors", model.model, header)
    with pytest.raises(UserError, match=rf"header of .*x\.safetensors is damaged or of another version.*{says}"):
        effdense.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("part", ["detection", "segmentation"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda header, part: header.pop(part), id="missing"),
        pytest.param(lambda header, part: header.update({part: [1]}), id="list"),
        pytest.param(lambda header, part: header[part].pop("model"), id="no-model"),
        pytest.param(lambda header, part: header[part].pop("class_names"), id="no-classes"),
        pytest.param(lambda header, part: header[part].update(model="d0"), id="text-for-model"),
    ],
)
def test_a_damaged_part_is_an_error_that_names_the_file(
    damage: Callable[[dict[str, Any], str], Any], part: str, model: Multitask, path: Path, tmp_path: Path
) -> None:
    header = read_header(path)
    damage(header, part)
    save_model(tmp_path / "x.safetensors", model.model, header)
    load = load_detector if part == "detection" else load_segmenter
    with pytest.raises(UserError, match=r"header of .*x\.safetensors is damaged or of another version"):
        load(tmp_path / "x.safetensors")


def test_weights_that_do_not_fit_the_header_are_refused(model: Multitask, path: Path, tmp_path: Path) -> None:
    header = read_header(path)
    header["segmentation"]["class_names"] = [*PIXELS, "one more"]
    save_model(tmp_path / "x.safetensors", model.model, header)
    for load in (effdense.load, load_segmenter):
        with pytest.raises(UserError, match=r"x\.safetensors"):
            load(tmp_path / "x.safetensors")


def test_what_is_no_image_is_refused(model: Multitask, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uint8"):
        model.predict(np.zeros((4, 4), np.uint8))
    cv2.imwrite(str(tmp_path / "x.png"), IMAGES[0])
    assert isinstance(model.predict(tmp_path / "x.png"), MultitaskResult)
