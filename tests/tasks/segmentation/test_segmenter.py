"""Segmenter: one path for every kind of input, in original pixels, whole or through a window, in one view or many."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import effdense
from effdense.datasets.collate import batches
from effdense.datasets.image_inputs import as_sample
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.segmentation import label_maps, memory
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.training.checkpoint import save_model
from effdense.types import Segmentation, UInt8

CLASSES = ("background", "cat", "dog", "bird")


class Stub(nn.Module):
    """What a Segmenter asks of a model: normalisation, and logits of the images' size that depend on the place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Module()
        self.backbone.mean, self.backbone.std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)  # type: ignore[assignment]
        self.first = nn.Conv2d(3, 8, 5, padding=2)
        self.second = nn.Conv2d(8, len(CLASSES), 5, padding=2)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.shapes.append(tuple(images.shape))
        return self.second(self.first(images.float() / 128 - 1).relu()) * 6


def _segmenter(image_size: int = 64, **inference: Any) -> Segmenter:
    return Segmenter(Stub(), CLASSES, image_size=image_size, inference=Inference(**inference))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(60, 100), (100, 60), (64, 64), (33, 47), (1, 150), (130, 128)]):
        blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
        picture = np.repeat(np.repeat(blocks, 8, 0), 8, 1)[:height, :width]
        paths.append(folder / f"p{number}.png")
        cv2.imwrite(str(paths[-1]), picture)
    return paths


def _rgb(path: Path) -> UInt8:
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), np.uint8)


def _assert_same(first: Segmentation, second: Segmentation, atol: float = 1e-5) -> None:
    assert first.probabilities is not None
    assert second.probabilities is not None
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=atol)
    certain = np.sort(first.probabilities, 0)[-1] - np.sort(first.probabilities, 0)[-2] > 2 * atol
    np.testing.assert_array_equal(first.mask[certain], second.mask[certain])
    assert certain.mean() > 0.99


WAYS = [
    pytest.param({}, id="whole"),
    pytest.param({"window": 32, "stride": 20}, id="window"),
    pytest.param({"window": 32, "scene_size": 90}, id="window-on-a-fitted-scene"),
    pytest.param({"tta": ("hflip", "vflip")}, id="flips"),
    pytest.param({"tta": ("hflip", "0.75", "1.25")}, id="flip-and-scales"),
    pytest.param({"window": 32, "tta": ("vflip", "1.5")}, id="window-flip-and-scale"),
]


@pytest.mark.parametrize("way", WAYS)
def test_labels_and_probabilities_are_in_pixels_of_the_original(way: dict[str, Any], pictures: list[Path]) -> None:
    segmenter = _segmenter(**way)
    for path, found in zip(pictures, segmenter.predict(pictures, probabilities=True), strict=True):
        size_hw = cv2.imread(str(path)).shape[:2]
        assert found.mask.shape == size_hw
        assert found.mask.dtype == np.uint8
        assert found.probabilities.shape == (len(CLASSES), *size_hw)
        assert found.probabilities.dtype == np.float32
        np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
        np.testing.assert_array_equal(found.mask, found.probabilities.argmax(0))
        assert found.class_names == CLASSES


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_gives_what_single_images_give(way: dict[str, Any], batch_size: int, pictures: list[Path]) -> None:
    segmenter = _segmenter(**way)
    together = segmenter.predict(pictures, batch_size=batch_size, probabilities=True)
    assert len(together) == len(pictures)
    for path, found in zip(pictures, together, strict=True):
        _assert_same(found, segmenter.predict(path, batch_size=1, probabilities=True))


@pytest.mark.parametrize("way", WAYS)
def test_labels_alone_are_the_labels_with_probabilities(way: dict[str, Any], pictures: list[Path]) -> None:
    segmenter = _segmenter(**way)
    for path in pictures:
        alone = segmenter.predict(path)
        assert alone.probabilities is None
        np.testing.assert_array_equal(alone.mask, segmenter.predict(path, probabilities=True).mask)


def test_a_path_an_array_and_a_pil_image_give_the_same(pictures: list[Path]) -> None:
    segmenter = _segmenter()
    by_path = segmenter.predict(pictures[0], probabilities=True)
    for image in (str(pictures[0]), _rgb(pictures[0]), Image.open(pictures[0])):
        _assert_same(by_path, segmenter.predict(image, probabilities=True))


def test_an_empty_list_gives_an_empty_list() -> None:
    assert _segmenter().predict([]) == []


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(UserError, match="uint8"):
        _segmenter().predict(np.zeros((4, 4), np.uint8))


def test_the_whole_image_goes_the_plain_way(pictures: list[Path]) -> None:
    segmenter = _segmenter()
    image = _rgb(pictures[0])  # 60 x 100
    fitted = cv2.resize(image, (64, 38), interpolation=cv2.INTER_AREA)
    square = np.empty((64, 64, 3), np.uint8)
    square[:] = np.array([128, 102, 76])
    square[:38] = fitted
    with torch.inference_mode():
        logits = segmenter.model(torch.from_numpy(square).permute(2, 0, 1)[None])
        large = F.interpolate(logits[..., :38, :64], size=(60, 100), mode="bilinear", align_corners=False)
    found = segmenter.predict(image, probabilities=True)
    np.testing.assert_allclose(found.probabilities, large[0].softmax(0).numpy(), atol=1e-5)


def test_a_window_that_covers_the_image_is_the_whole_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 40, 3), np.uint8)
    windowed = _segmenter(window=64).predict(image, probabilities=True)
    _assert_same(_segmenter().predict(image, probabilities=True), windowed)


def test_a_window_looks_at_the_scene_size_and_not_at_the_image_size(pictures: list[Path]) -> None:
    segmenter = _segmenter(image_size=999, window=32, stride=16, scene_size=48)
    segmenter.predict(pictures[0], batch_size=2)  # 60 x 100 becomes 28 x 48
    assert set(segmenter.model.shapes) <= {(1, 3, 32, 32), (2, 3, 32, 32)}
    assert (2, 3, 32, 32) in segmenter.model.shapes


FLIPS = list(itertools.product([("hflip", 1), ("vflip", 0)], [{}, {"window": 32, "stride": 20}]))


@pytest.mark.parametrize(("flip", "way"), FLIPS, ids=["hflip", "hflip-window", "vflip", "vflip-window"])
def test_a_mirrored_image_gives_the_mirrored_result(flip: tuple[str, int], way: dict[str, Any]) -> None:
    word, axis = flip
    image = np.random.default_rng(0).integers(0, 256, (64, 50, 3), np.uint8)
    segmenter = _segmenter(tta=(word,), **way)
    plain, mirrored = (
        segmenter.predict(np.ascontiguousarray(one), probabilities=True) for one in (image, np.flip(image, axis))
    )
    turned = Segmentation(np.flip(mirrored.mask, axis), np.flip(mirrored.probabilities, axis + 1), CLASSES)
    _assert_same(plain, turned)
    without = _segmenter(**way).predict(image, probabilities=True)
    assert np.abs(without.probabilities - plain.probabilities).max() > 0.01, "the flip had no effect"


def test_views_are_averaged_over_every_scale_and_flip(pictures: list[Path]) -> None:
    image = _rgb(pictures[3])
    views = []
    for size, flip in itertools.product((64, 48, 80), (False, True)):
        shown = np.ascontiguousarray(image[:, ::-1]) if flip else image
        found = _segmenter(size).predict(shown, probabilities=True).probabilities
        views.append(found[:, :, ::-1] if flip else found)
    together = _segmenter(tta=("hflip", "0.75", "1.25")).predict(image, probabilities=True)
    np.testing.assert_allclose(together.probabilities, np.mean(views, 0), atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_segmenting_batches_is_predicting(way: dict[str, Any], pictures: list[Path]) -> None:
    segmenter = _segmenter(**way)
    samples = [as_sample(path) for path in pictures]
    size = segmenter.images_per_batch(4)
    assert size == (1 if {"window", "tta"} & way.keys() and way != {"tta": ("hflip", "vflip")} else 4)
    found = [one for batch in batches(samples, segmenter.transform, size) for one in segmenter.segment(batch)]
    for one, path in zip(found, pictures, strict=True):
        np.testing.assert_array_equal(one.mask, segmenter.predict(path).mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("way", WAYS)
def test_a_gpu_gives_what_the_cpu_gives(way: dict[str, Any], pictures: list[Path]) -> None:
    for path in pictures:
        on_cpu = _segmenter(**way).predict(path, probabilities=True)
        _assert_same(on_cpu, _segmenter(**way).to("cuda").predict(path, probabilities=True), atol=2e-2)


def test_changed_copies_leave_the_original_alone() -> None:
    segmenter = _segmenter(window=64, stride=40, scene_size=100)
    assert segmenter.with_inference(window=32).inference == Inference(window=32, scene_size=100)
    assert segmenter.with_inference(tta=("hflip",)).inference == Inference(64, 40, 100, ("hflip",))
    assert segmenter.with_inference(window=0).inference.resizes_itself is False
    assert segmenter.with_inference(stride=20).inference == Inference(64, 20, 100)
    assert segmenter.with_inference(window=0).with_image_size(32).image_size == 32
    other = Stub().train()
    assert segmenter.with_model(other).model is other  # type: ignore[arg-type, comparison-overlap]
    assert not other.training
    assert segmenter.inference == Inference(64, 40, 100)
    assert segmenter.device == torch.device("cpu")


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(UserError, match="image_size 32 has no effect on a window of 64 pixels"):
        _segmenter(window=64).with_image_size(32)
    for changes in ({"stride": 20}, {"scene_size": 90}, {"window": 0, "stride": 20}):
        with pytest.raises(UserError, match=r"(stride 20|scene_size 90) has no effect on whole images"):
            _segmenter(scene_size=64).with_inference(**changes)


@pytest.mark.parametrize(
    ("way", "says"),
    [
        pytest.param(
            {}, r"1 image of 64x64 pixels would need about .* 0 MB is free: use a smaller --image-size$", id="whole"
        ),
        pytest.param(
            {"window": 48, "stride": 20},
            r"3 windows of 48x48 pixels .* 0 MB is free: use a smaller --window or --batch-size$",
            id="window",
        ),
    ],
)
def test_what_is_larger_than_memory_is_refused_before_it_runs(
    way: dict[str, Any], says: str, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 100 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    segmenter = _segmenter(**way)
    with pytest.raises(UserError, match=says):
        segmenter.predict(pictures[0], batch_size=3)
    assert {shape[0] for shape in segmenter.model.shapes} == {1}, "more than the probe ran"


def test_memory_that_runs_out_on_the_way_is_explained(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = _segmenter()
    segmenter.predict(pictures[0])

    def fail(images: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(segmenter.model, "forward", fail)
    with pytest.raises(UserError, match=r"1 image of 64x64 .* 9 bytes.*: use a smaller --image-size"):
        segmenter.predict(pictures[0])


def test_a_wider_scene_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    segmenter = _segmenter(window=32)
    segmenter.predict(np.zeros((40, 64, 3), np.uint8), batch_size=1)
    with pytest.raises(UserError, match="would need about"):
        segmenter.predict(np.zeros((40, 6400, 3), np.uint8), batch_size=1)
    (tmp_path / "meminfo").write_text("MemAvailable: 1 kB\n")  # what was freed may still count as taken
    segmenter.predict(np.zeros((40, 64, 3), np.uint8), batch_size=1)


OUT_OF_MEMORY = [
    pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory"), id="torch"),
    pytest.param(MemoryError("Unable to allocate 9 GiB"), id="numpy"),
    pytest.param(MemoryError(), id="without-words"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize(
    ("way", "advice"), [({}, "--image-size"), ({"window": 32}, "--window")], ids=["whole", "window"]
)
def test_memory_that_runs_out_in_the_label_map_is_explained(
    way: dict[str, Any], advice: str, error: Exception, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr(label_maps, "resized_rows", fail)
    with pytest.raises(UserError, match=rf"label map of 4 classes .* 100x60 pixels does not fit .*{advice}"):
        _segmenter(**way).predict(pictures[0])


@pytest.mark.parametrize("way", WAYS)
def test_confidence_is_the_greatest_probability_and_holds_no_others(
    way: dict[str, Any], pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = _segmenter(**way)
    every = segmenter.predict(pictures, probabilities=True)
    samples = [as_sample(path) for path in pictures]
    found = [
        one
        for batch in batches(samples, segmenter.transform, segmenter.images_per_batch(8))
        for one in segmenter.stream(batch, confidence=True)
    ]
    for one, whole in zip(found, every, strict=True):
        assert one.probabilities is None
        assert whole.confidence is None
        assert one.confidence is not None
        np.testing.assert_array_equal(one.confidence, whole.probabilities.max(0))


# --- files


@pytest.fixture(scope="module")
def real() -> Segmenter:
    torch.manual_seed(0)
    model = create_segmentation_model("fpn", len(CLASSES), backbone="lite0", auxiliary=True)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    model.backbone.set_statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    inference = Inference(window=48, stride=40, scene_size=80, tta=("hflip",))
    return Segmenter(model, CLASSES, image_size=64, inference=inference, header={"scores": {"mIoU": 0.5}})


def test_a_saved_segmenter_loads_whole_and_predicts_the_same(
    real: Segmenter, pictures: list[Path], tmp_path: Path
) -> None:
    real.save(tmp_path / "s.safetensors")
    loaded = effdense.load(tmp_path / "s.safetensors")
    assert isinstance(loaded, Segmenter)
    assert loaded.class_names == CLASSES
    assert loaded.image_size == 64
    assert loaded.inference == real.inference
    assert loaded.header["scores"] == {"mIoU": 0.5}
    assert loaded.model.backbone.mean == (0.5, 0.4, 0.3)
    for way in ({}, {"window": 0, "tta": ()}):
        one, other = (
            segmenter.with_inference(**way).predict(pictures[0], probabilities=True) for segmenter in (real, loaded)
        )
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    loaded.save(tmp_path / "again.safetensors")
    assert read_header(tmp_path / "again.safetensors") == read_header(tmp_path / "s.safetensors")


def _without(*keys: str) -> Any:
    def change(header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(_without("preprocessing"), "'preprocessing' is missing", id="preprocessing"),
        pytest.param(_without("preprocessing", "mean"), "'mean' is missing", id="mean"),
        pytest.param(_without("model"), "'model' is missing", id="model"),
        pytest.param(_without("model", "arch"), "arch", id="architecture"),
        pytest.param(_without("class_names"), "'class_names' is missing", id="classes"),
        pytest.param(_without("inference"), "'inference' is missing", id="inference"),
        pytest.param(lambda header: header.update(model=[1]), "", id="list-for-model"),
        pytest.param(lambda header: header.update(model="unet"), "", id="text-for-model"),
        pytest.param(lambda header: header["model"].update(arch="unett"), "unett", id="unknown-architecture"),
        pytest.param(lambda header: header["model"].update(later=1), "later", id="model-of-a-later-version"),
        pytest.param(lambda header: header["inference"].update(later=1), "later", id="inference-of-a-later-version"),
        pytest.param(lambda header: header["inference"].update(window=3), "window is 3", id="window"),
        pytest.param(lambda header: header["inference"].update(window="big"), "", id="text-for-window"),
        pytest.param(lambda header: header.update(class_names=None), "", id="null-for-classes"),
        pytest.param(lambda header: header.update(class_names=[]), "1 to 255", id="no-class"),
        pytest.param(lambda header: header["preprocessing"].update(image_size="big"), "big", id="text-for-size"),
        pytest.param(lambda header: header["preprocessing"].update(mean=["a", "b", "c"]), "", id="text-for-mean"),
    ],
)
def test_a_damaged_or_foreign_header_is_an_error_that_names_the_file(
    change: Any, says: str, real: Segmenter, tmp_path: Path
) -> None:
    real.save(tmp_path / "whole.safetensors")
    header = read_header(tmp_path / "whole.safetensors")
    change(header)
    save_model(tmp_path / "m.safetensors", real.model, header)
    with pytest.raises(UserError, match=rf"header of .*m\.safetensors is damaged or of another version.*{says}"):
        effdense.load(tmp_path / "m.safetensors")


def test_weights_that_do_not_fit_the_header_are_refused(real: Segmenter, tmp_path: Path) -> None:
    real.save(tmp_path / "whole.safetensors")
    header = read_header(tmp_path / "whole.safetensors")
    header["class_names"] = [*CLASSES, "one more"]
    save_model(tmp_path / "m.safetensors", real.model, header)
    with pytest.raises(UserError, match=r"m\.safetensors"):
        effdense.load(tmp_path / "m.safetensors")
