"""Windows, views and bands: whatever is saved in memory or done in parts gives what the plain way gives."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effdense.errors import UserError
from effdense.tasks.segmentation import label_maps, memory
from effdense.tasks.segmentation.inference import Inference, View, parse_tta
from effdense.tasks.segmentation.label_maps import WholeRows, resized_rows, segmentation_of
from effdense.tasks.segmentation.memory import (
    available_bytes,
    forward_bytes,
    memory_errors_explained,
    require_memory,
)
from effdense.tasks.segmentation.windows import WindowRows, blending_weights, window_starts

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")
FILL = (124, 116, 104)


# --- settings


@pytest.mark.parametrize(
    ("words", "views"),
    [
        pytest.param((), [View()], id="none"),
        pytest.param(("hflip",), [View(), View(hflip=True)], id="hflip"),
        pytest.param(
            ("vflip", "hflip"),
            [View(), View(hflip=True), View(vflip=True), View(hflip=True, vflip=True)],
            id="both-flips",
        ),
        pytest.param(("1.25", "0.75"), [View(), View(0.75), View(1.25)], id="scales"),
        pytest.param(("1", "1.0"), [View()], id="its-own-scale"),
        pytest.param(("2", "hflip", "2.0"), [View(), View(hflip=True), View(2.0), View(2.0, hflip=True)], id="twice"),
    ],
)
def test_views_are_every_combination_with_the_plain_one_first(words: tuple[str, ...], views: list[View]) -> None:
    assert list(parse_tta(words)) == views


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"tta": ("hflp",)}, "'hflp', .* did you mean 'hflip'", id="misspelt"),
        pytest.param({"tta": ("photos/",)}, "'photos/'", id="path"),
        pytest.param({"tta": ("0",)}, "scale 0", id="scale-zero"),
        pytest.param({"tta": ("nan",)}, "scale nan", id="scale-nan"),
        pytest.param({"tta": ("-1",)}, "scale -1", id="negative-scale"),
        pytest.param({"window": 31}, "window is 31, expected 32", id="window-too-small"),
        pytest.param({"window": -5}, "window is -5", id="negative-window"),
        pytest.param({"window": 64, "stride": 65}, "stride is 65, more than the window's 64", id="stride-too-large"),
        pytest.param({"window": 64, "stride": 0}, "stride is 0", id="stride-zero"),
        pytest.param({"scene_size": -1}, "scene_size is -1", id="negative-scene"),
        pytest.param({"window": 64, "scene_size": 64}, "covers the whole scene.*--scene-size 0", id="nothing-slides"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Inference(**values)


def test_a_window_of_nothing_is_the_whole_image_and_the_stride_is_three_quarters() -> None:
    assert not Inference(window=0).resizes_itself
    assert Inference(window=0, stride=9).step == 9
    assert Inference(window=512).step == 384
    assert Inference(window=512).resizes_itself
    assert Inference(tta=("hflip",)).resizes_itself is False
    assert Inference(tta=("0.5",)).resizes_itself


# --- where windows lie and what they weigh


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        pytest.param(10, 32, 16, [0], id="smaller-than-a-window"),
        pytest.param(1, 32, 32, [0], id="one-pixel"),
        pytest.param(32, 32, 16, [0], id="exactly-a-window"),
        pytest.param(33, 32, 16, [0, 1], id="one-pixel-more"),
        pytest.param(48, 32, 16, [0, 16], id="two-that-fit"),
        pytest.param(49, 32, 16, [0, 16, 17], id="two-and-a-pixel"),
        pytest.param(64, 32, 32, [0, 32], id="side-by-side"),
        pytest.param(100, 32, 24, [0, 24, 48, 68], id="last-one-moved-in"),
    ],
)
def test_windows_cover_a_side_and_end_flush_with_it(length: int, window: int, stride: int, starts: list[int]) -> None:
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize(("length", "window", "stride"), [(1, 32, 9), (31, 32, 9), (33, 32, 32), (100, 32, 7)])
def test_weights_over_a_pixel_add_up_to_one_and_none_is_zero(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    weights = blending_weights(length, window, starts)
    total = np.zeros(length)
    for start, one in zip(starts, weights, strict=True):
        total[start : start + len(one)] += one
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (weights > 0).all()


def test_a_window_fades_out_where_another_takes_over() -> None:
    first, second = blending_weights(48, 32, [0, 16])
    assert (np.diff(first[16:]) < 0).all()
    assert (np.diff(second[:16]) > 0).all()
    assert first[-1] < 0.01
    np.testing.assert_array_equal(first[:16], 1)


# --- sliding windows


class Net(nn.Module):
    """Logits that depend on a pixel, on its neighbours and on where in the window it lies, as a padded network's do."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, classes, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        place = torch.linspace(-1, 1, images.shape[-1]) + torch.linspace(0, 2, images.shape[-2])[:, None] ** 2
        return self.layer(images.float() / 255) * 3 + place


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


def _image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8))


def _plain_sliding(net: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Sum of weighted logits over sum of weights, both in full size; one window at a time."""
    height, width = image.shape[-2:]
    padded = torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1).repeat(1, max(height, window), max(width, window))
    padded[:, :height, :width] = image
    logits: Tensor | None = None
    weights = torch.zeros(height, width, dtype=torch.float64)
    for top, left in itertools.product(*(window_starts(side, window, stride) for side in (height, width))):
        rows, columns = min(window, height), min(window, width)
        down, across = (torch.sin(torch.pi * (torch.arange(n).double() + 0.5) / n) ** 2 for n in (rows, columns))
        weight = down[:, None] * across
        found = net(padded[None, :, top : top + window, left : left + window])[0, :, :rows, :columns]
        if logits is None:
            logits = torch.zeros(found.shape[0], height, width, dtype=torch.float64)
        logits[:, top : top + rows, left : left + columns] += found * weight
        weights[top : top + rows, left : left + columns] += weight
    assert logits is not None
    return (logits / weights).float()


def _sliding(net: nn.Module, image: Tensor, window: int, stride: int, **more: Any) -> WindowRows:
    return WindowRows(net, image, window=window, stride=stride, fill=FILL, **more)


SCENES = [
    pytest.param(20, 25, 32, 16, id="smaller-than-the-window"),
    pytest.param(20, 90, 32, 24, id="flat"),
    pytest.param(1, 1, 32, 32, id="one-pixel"),
    pytest.param(32, 32, 32, 16, id="exactly-the-window"),
    pytest.param(33, 33, 32, 32, id="a-pixel-more"),
    pytest.param(96, 64, 32, 32, id="without-overlap"),
    pytest.param(150, 40, 32, 11, id="high-and-narrow"),
    pytest.param(70, 100, 48, 5, id="many-over-a-pixel"),
]


@torch.inference_mode()
@pytest.mark.parametrize("band", [1, 7, 1000])
@pytest.mark.parametrize(("height", "width", "window", "stride"), SCENES)
def test_rows_on_the_way_are_those_of_a_full_accumulator(
    height: int, width: int, window: int, stride: int, band: int, net: Net
) -> None:
    image = _image(height, width)
    windows = _sliding(net, image, window, stride, batch_size=3)
    found = [windows.rows(first, min(first + band, height)).clone() for first in range(0, height, band)]
    torch.testing.assert_close(torch.cat(found, 1), _plain_sliding(net, image, window, stride), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_rows_that_are_skipped_or_asked_for_again_change_nothing(net: Net) -> None:
    image = _image(200, 40)
    whole = _plain_sliding(net, image, 32, 24)
    windows = _sliding(net, image, 32, 24)
    for first, last in [(3, 9), (8, 12), (90, 91), (90, 97), (199, 200)]:
        torch.testing.assert_close(windows.rows(first, last), whole[:, first:last], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_buffer_holds_a_window_and_a_band_however_high_the_image(net: Net) -> None:
    window, band, height = 32, 6, 1500
    windows = _sliding(net, _image(height, 40), window, 24)
    held = []
    for first in range(0, height, band):
        windows.rows(first, min(first + band, height))
        assert windows._buffer is not None
        held.append(windows._buffer.untyped_storage().nbytes())
    assert max(held) <= 4 * 3 * (window + band) * 40


@torch.inference_mode()
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_windows_in_a_batch_give_what_single_windows_give(batch_size: int, net: Net) -> None:
    seen: list[int] = []

    def forward(windows: Tensor) -> Tensor:
        seen.append(len(windows))
        return torch.cat([net(one[None]) for one in windows])

    image = _image(40, 150)
    rows = _sliding(forward, image, 32, 24, batch_size=batch_size)  # type: ignore[arg-type]
    torch.testing.assert_close(rows.rows(0, 40), _plain_sliding(net, image, 32, 24), rtol=1e-5, atol=1e-5)
    assert max(seen) == rows.most_at_once == min(batch_size, 6)


@torch.inference_mode()
@pytest.mark.parametrize("flipped", [(-1,), (-2,), (-2, -1)], ids=["across", "down", "both"])
@pytest.mark.parametrize(("height", "width", "window", "stride"), SCENES)
def test_a_flipped_view_is_the_plain_view_of_the_flipped_image_turned_back(
    height: int, width: int, window: int, stride: int, flipped: tuple[int, ...], net: Net
) -> None:
    image = _image(height, width)
    found = _sliding(net, image, window, stride, flipped=flipped).rows(0, height)
    plain = _sliding(net, image.flip(flipped), window, stride).rows(0, height)
    torch.testing.assert_close(found, plain.flip(flipped), rtol=1e-5, atol=1e-5)


# --- from logits to label maps


@pytest.mark.parametrize(
    ("size_hw", "new_hw"),
    [
        pytest.param((16, 16), (16, 16), id="same"),
        pytest.param((16, 12), (61, 45), id="larger"),
        pytest.param((61, 45), (16, 12), id="smaller"),
        pytest.param((16, 20), (16, 33), id="wider-only"),
        pytest.param((16, 20), (33, 20), id="higher-only"),
        pytest.param((1, 1), (9, 5), id="from-one-pixel"),
        pytest.param((9, 5), (1, 1), id="to-one-pixel"),
        pytest.param((127, 3), (1999, 3), id="thousands-of-rows"),
    ],
)
@pytest.mark.parametrize("band", [1, 5, 10_000])
def test_bands_are_what_bilinear_interpolation_makes_of_the_whole(
    size_hw: tuple[int, int], new_hw: tuple[int, int], band: int
) -> None:
    logits = torch.randn(4, *size_hw, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size=new_hw, mode="bilinear", align_corners=False)[0]
    bands = [
        resized_rows(WholeRows(logits), new_hw, first, min(first + band, new_hw[0]))
        for first in range(0, new_hw[0], band)
    ]
    torch.testing.assert_close(torch.cat(bands, 1), whole, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("elements", [1, 3 * 70 * 13, 2**20])
def test_the_label_map_is_that_of_the_whole(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_maps, "_BAND_ELEMENTS", elements)
    logits = torch.randn(3, 20, 14, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size=(100, 70), mode="bilinear", align_corners=False)[0]
    found = segmentation_of([WholeRows(logits)], (100, 70), CLASSES, probabilities=True)
    assert found.mask.dtype == np.uint8
    np.testing.assert_array_equal(found.mask, whole.argmax(0).numpy())
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, whole.softmax(0).numpy(), atol=1e-6)
    assert segmentation_of([WholeRows(logits)], (100, 70), CLASSES).probabilities is None


def test_views_of_any_size_are_averaged_as_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(3, *size_hw, generator=generator) for size_hw in ((20, 14), (40, 28), (7, 5))]
    found = segmentation_of([WholeRows(view) for view in views], (40, 28), CLASSES, probabilities=True)
    mean = sum(
        F.interpolate(view[None], size=(40, 28), mode="bilinear", align_corners=False)[0].softmax(0) for view in views
    )
    assert isinstance(mean, Tensor)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, (mean / 3).numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.mask, mean.argmax(0).numpy())


# --- memory


@pytest.fixture
def little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  8000000 kB\nMemAvailable:    2000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")


def test_too_much_is_refused_with_both_numbers_and_advice(little_memory: None) -> None:
    require_memory(2_048_000, CPU, "it", "help")
    with pytest.raises(UserError, match=r"it would need about 3\.5 GB of memory, and 2 MB is free: help"):
        require_memory(3_500_000_000, CPU, "it", "help")


def test_memory_that_this_process_keeps_is_given_back_before_anything_is_refused(
    little_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trims = []

    def trim() -> None:
        trims.append(1)
        (tmp_path / "meminfo").write_text("MemAvailable: 4000 kB\n")

    monkeypatch.setattr(memory, "trim_freed_memory", trim)
    require_memory(2_000_000, CPU, "it", "help")
    assert not trims
    require_memory(4_000_000, CPU, "it", "help")
    with pytest.raises(UserError, match="4 MB is free"):
        require_memory(5_000_000, CPU, "it", "help")
    assert len(trims) == 2


def test_probabilities_that_do_not_fit_are_refused_and_labels_alone_are_not(little_memory: None) -> None:
    views = [WholeRows(torch.zeros(3, 8, 8))]
    assert segmentation_of(views, (600, 500), CLASSES).mask.shape == (600, 500)
    with pytest.raises(UserError, match=r"probabilities of 3 classes in an image of 500x600 .* labels alone"):
        segmentation_of(views, (600, 500), CLASSES, probabilities=True)


@pytest.mark.parametrize("content", [None, "nothing of the kind"], ids=["no-file", "other-content"])
def test_where_the_system_says_nothing_all_is_allowed(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    if content is not None:
        (tmp_path / "meminfo").write_text(content)
    assert available_bytes(CPU) is None
    require_memory(10**18, CPU, "it", "help")


def test_the_estimate_grows_with_the_area_and_covers_what_is_alive_at_once() -> None:
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            x = images.float()
            return self.net(torch.cat([x, x[:, :1]], 1))

    model = Model()
    shapes = [(1, 3, 128, 128), (1, 3, 512, 256), (6, 3, 128, 128)]
    small, large, batch = (forward_bytes(model, shape, CPU) for shape in shapes)
    one_map = 4 * 4 * 128 * 128  # float32; six are made, and no more than three are alive at one time
    assert 2 * one_map <= small <= 3 * memory._WORKSPACE * one_map
    assert large == pytest.approx(8 * small)
    assert batch == pytest.approx(6 * small)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), id="gpu"),
        pytest.param(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"), id="cpu"),
    ],
)
def test_memory_that_runs_out_is_explained(error: RuntimeError) -> None:
    with (
        pytest.raises(UserError, match=r"it does not fit into memory .*allocate.*: help"),
        memory_errors_explained("it", "help"),
    ):
        raise error


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes") as caught, memory_errors_explained("it", "help"):
        raise RuntimeError("shapes differ")
    assert not isinstance(caught.value, UserError)
