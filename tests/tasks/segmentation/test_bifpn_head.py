from __future__ import annotations

import pytest
import torch

from effdense.necks.bifpn import BiFPN
from effdense.tasks.segmentation.bifpn_head import BiFPNDecoder, BiFPNHead
from effdense.tasks.segmentation.model import create_segmentation_model


def features(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = (8, 12, 16, 24)[-len(sizes) :]
    return [torch.randn(2, width, size, size, generator=generator) for width, size in zip(channels, sizes, strict=True)]


def test_with_b4_and_vocs_21_classes_it_has_the_papers_17_million_parameters() -> None:
    with torch.device("meta"):
        model = create_segmentation_model("bifpn", 21, backbone="b4")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions < 20
    assert millions == pytest.approx(17, abs=1)


def test_the_papers_numbers_are_the_defaults() -> None:
    with torch.device("meta"):
        model = create_segmentation_model("bifpn", 21, backbone="b4")
    assert isinstance(model.decoder, BiFPNDecoder)
    assert isinstance(model.head, BiFPNHead)
    pyramid = model.decoder.pyramid
    assert (pyramid.strides, pyramid.channels, pyramid.num_inputs) == ((4,), (128,), 4)
    assert len(pyramid.cells) == len(model.head.convs) == 3
    assert [len(cell.down) + 1 for cell in pyramid.cells] == [6, 6, 6]  # P2 to P7
    assert {conv.pointwise.out_channels for conv in model.head.convs} == {256}


def test_p2_is_what_a_whole_bifpn_yields_for_its_finest_level() -> None:
    decoder = BiFPNDecoder((8, 12, 16, 24), (4, 8, 16, 32), channels=10).eval()
    whole = BiFPN((8, 12, 16, 24), (4, 8, 16, 32), num_levels=6, channels=10).eval()
    state = whole.state_dict()
    assert state.keys() > decoder.pyramid.state_dict().keys()
    decoder.pyramid.load_state_dict({name: state[name] for name in decoder.pyramid.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(decoder(features(24, 12, 6, 3)), whole(features(24, 12, 6, 3))[0])


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (33, 17, 9, 5)], ids=["one-cell", "odd"])
def test_maps_of_any_size_do(sizes: tuple[int, ...]) -> None:
    decoder = BiFPNDecoder((8, 12, 16, 24), (4, 8, 16, 32), channels=10).eval()
    assert decoder(features(*sizes)).shape == (2, 10, sizes[0], sizes[0])


def test_maps_finer_than_p2_are_left_aside() -> None:
    decoder = BiFPNDecoder((8, 12, 16, 24), (4, 8, 16, 32), channels=10).eval()
    maps = features(16, 8, 4, 2)
    assert torch.equal(decoder([torch.zeros(2, 3, 64, 64), None, *maps]), decoder(maps))  # type: ignore[list-item]


@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_the_head_enlarges_logits_to_the_image(repeats: int) -> None:
    head = BiFPNHead(10, 5, channels=12, repeats=repeats, upsampling=4).eval()
    assert head(torch.randn(1, 10, 3, 7)).shape == (1, 5, 12, 28)


def test_an_untrained_head_gives_all_classes_nearly_the_same_probability() -> None:
    torch.manual_seed(0)
    head = BiFPNHead(128, 21).eval()
    with torch.no_grad():
        probabilities = head(torch.randn(4, 128, 8, 8)).softmax(1)
    assert probabilities.min() > 0.5 / 21
    assert probabilities.max() < 2 / 21
