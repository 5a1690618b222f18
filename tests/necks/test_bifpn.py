from __future__ import annotations

import pytest
import torch

from effdense.necks.bifpn import BiFPN, FinerLevel, halve, resize_like


def maps(size_hw: tuple[int, int], channels: tuple[int, ...], strides: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, c, -(-size_hw[0] // s), -(-size_hw[1] // s), generator=generator)
        for c, s in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize("size_hw", [(128, 128), (97, 131), (64, 200), (33, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("fusion", ["fastattn", "sum"])
def test_every_level_has_the_size_of_its_stride_rounded_up(size_hw: tuple[int, int], fusion: str) -> None:
    neck = BiFPN((8, 12, 20), (8, 16, 32), num_levels=5, channels=16, repeats=2, fusion=fusion)
    pyramid = neck(maps(size_hw, (8, 12, 20), (8, 16, 32)))
    assert neck.strides == (8, 16, 32, 64, 128)
    assert [tuple(level.shape) for level in pyramid] == [
        (2, 16, -(-size_hw[0] // stride), -(-size_hw[1] // stride)) for stride in neck.strides
    ]
    assert all(level.isfinite().all() for level in pyramid)


@pytest.mark.parametrize(
    ("channels", "strides", "levels"),
    [((16, 16, 16), (8, 16, 32), 3), ((8, 16), (16, 32), 5), ((4,), (32,), 2), ((8, 8, 8, 8), (4, 8, 16, 32), 6)],
    ids=["as many levels as maps", "two maps", "one map", "four maps"],
)
def test_any_number_of_maps_and_levels(channels: tuple[int, ...], strides: tuple[int, ...], levels: int) -> None:
    neck = BiFPN(channels, strides, num_levels=levels, channels=16, repeats=1)
    assert len(neck(maps((70, 90), channels, strides))) == levels == len(neck.channels)


def test_the_callers_list_is_left_as_it_was() -> None:
    features = maps((64, 64), (8, 12, 20), (8, 16, 32))
    kept = list(features)
    BiFPN((8, 12, 20), (8, 16, 32), channels=16, repeats=2)(features)
    assert all(one is other for one, other in zip(features, kept, strict=True))


def test_finer_maps_for_another_head_are_left_aside() -> None:
    neck = BiFPN((8, 12, 20), (8, 16, 32), channels=16, repeats=1).eval()
    features = maps((64, 64), (8, 12, 20), (8, 16, 32))
    alone = neck(features)
    beside = neck([torch.full((2, 4, 16, 16), 7.0), *features])
    assert all(torch.equal(one, other) for one, other in zip(alone, beside, strict=True))


def test_negative_fusion_weights_shut_a_map_out() -> None:
    neck = BiFPN((16, 16), (8, 16), num_levels=2, channels=16, repeats=1).eval()
    with torch.no_grad():
        neck.cells[0].down[0].weights.copy_(torch.tensor([1.0, -3.0]))
    features = maps((64, 64), (16, 16), (8, 16))
    other = [features[0], features[1] + 5]
    assert torch.equal(neck(features)[0], neck(other)[0])
    assert not torch.equal(neck(features)[1], neck(other)[1])


@pytest.mark.parametrize("fusion", ["fastattn", "sum"])
@pytest.mark.parametrize("in_channels", [8, 16])
def test_a_finer_level_is_the_last_step_of_the_top_down_pass(fusion: str, in_channels: int) -> None:
    coarse, fine = maps((97, 131), (16, in_channels), (8, 4))
    whole = BiFPN((in_channels, 16), (4, 8), 2, 16, 1, fusion, finest_only=True).eval()
    level = FinerLevel(in_channels, 16, fusion).eval()
    cell = whole.cells[0]
    level.lateral.load_state_dict(cell.down_laterals[0].state_dict())  # type: ignore[union-attr,index]
    level.node.load_state_dict(cell.down[0].state_dict())  # type: ignore[union-attr,index]
    assert level.channels == 16
    assert torch.equal(level(fine, coarse), whole([fine, coarse])[0])


def test_a_batch_gives_what_its_images_give_alone() -> None:
    neck = BiFPN((8, 12, 20), (8, 16, 32), channels=16, repeats=2).eval()
    features = maps((97, 131), (8, 12, 20), (8, 16, 32))
    together = neck(features)
    for i in range(2):
        for level, alone in zip(together, neck([one[i : i + 1] for one in features]), strict=True):
            torch.testing.assert_close(level[i : i + 1], alone)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (8, 5), (2, 3), (1, 1), (1, 2)], ids=str)
def test_halving_pads_as_tensorflow_does(height: int, width: int) -> None:
    x = torch.randn(1, 3, height, width)
    out_h, out_w = -(-height // 2), -(-width // 2)
    pad_h, pad_w = max((out_h - 1) * 2 + 3 - height, 0), max((out_w - 1) * 2 + 3 - width, 0)
    padding = (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)
    padded = torch.nn.functional.pad(x, padding, value=-torch.inf)
    assert torch.equal(halve(x), torch.nn.functional.max_pool2d(padded, 3, 2))


def test_halving_exports_for_odd_and_even_sizes() -> None:
    class Halve(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return halve(x)

    dynamic = {"x": dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)}
    program = torch.export.export(Halve(), (torch.randn(1, 3, 9, 8),), dynamic_shapes=dynamic).module()
    for size_hw in ((9, 8), (8, 9), (8, 8), (9, 9)):
        x = torch.randn(1, 3, *size_hw)
        assert torch.equal(program(x), halve(x))


def test_resizing_repeats_the_nearest_cell() -> None:
    x = torch.tensor([[[[1.0, 2.0]]]])
    assert resize_like(x, torch.zeros(1, 1, 3, 3)).tolist() == [[[[1, 1, 2]] * 3]]
    assert resize_like(x, torch.zeros(1, 1, 1, 2)) is x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_strides": (8, 16)}, "one stride for each"),
        ({"in_strides": (8, 16, 64)}, "twice the one before"),
        ({"num_levels": 2}, "at least 3"),
        ({"repeats": 0}, "at least one repeat"),
        ({"fusion": "attn"}, "'attn' is unknown"),
        ({"act": "gelu"}, "'gelu' is unknown"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"in_channels": (8, 12, 20), "in_strides": (8, 16, 32), **change}
    with pytest.raises(ValueError, match=message):
        BiFPN(**values)  # type: ignore[arg-type]


def test_export_sees_no_decision_on_data() -> None:
    neck = BiFPN((8, 12), (8, 16), num_levels=3, channels=16, repeats=1).eval()
    features = maps((50, 70), (8, 12), (8, 16))
    program = torch.export.export(neck, (features,))
    for exported, plain in zip(program.module()(features), neck(features), strict=True):
        torch.testing.assert_close(exported, plain)
