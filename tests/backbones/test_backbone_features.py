import copy
import io
from contextlib import redirect_stderr, redirect_stdout
from math import ceil

import pytest
import torch

from effdense.backbones.registry import create_backbone
from effdense.errors import UserError


@pytest.fixture(scope="module")
def lite0():
    torch.manual_seed(0)
    return create_backbone("lite0").eval()


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 64), (5, 200), (31, 2)], ids=str)
def test_feature_size_is_the_ceiling_of_size_over_stride(lite0, size):
    with torch.no_grad():
        features = lite0(images(1, 3, *size))
    assert [tuple(map.shape[2:]) for map in features] == [
        tuple(ceil(side / stride) for side in size) for stride in lite0.strides
    ]
    assert tuple(map.shape[1] for map in features) == lite0.channels


@pytest.mark.parametrize("strides", [(2,), (32,), (8, 16, 32), (16, 4), (4, 4)], ids=str)
def test_subset_is_the_same_as_in_the_full_set(lite0, strides):
    subset = create_backbone("lite0", out_strides=strides).eval()
    assert subset.strides == tuple(sorted(set(strides)))
    subset.load_state_dict({name: lite0.state_dict()[name] for name in subset.state_dict()})
    full = dict(zip(lite0.strides, lite0(images(1, 3, 40, 40)), strict=True))
    for stride, found in zip(subset.strides, subset(images(1, 3, 40, 40)), strict=True):
        assert torch.equal(found, full[stride])


def test_blocks_beyond_the_deepest_stride_are_dropped():
    names = create_backbone("b0", out_strides=(4,)).state_dict()
    assert {name.split(".")[1] for name in names if name.startswith("blocks")} == {"0", "1"}
    assert not any(name.startswith(("conv_head", "bn2", "classifier")) for name in names)


@pytest.mark.parametrize("strides", [(2,), (32,), (8, 16, 32), (16, 4), (4, 8)], ids=str)
def test_another_view_of_a_backbone_yields_what_one_made_for_its_levels_would(lite0, strides):
    backbone = create_backbone("lite0", out_strides=(8, 32)).eval()
    view = backbone.yielding(strides)
    alone = create_backbone("lite0", out_strides=strides).eval()
    assert (view.strides, view.channels, view.name) == (alone.strides, alone.channels, alone.name)
    assert view.state_dict().keys() == alone.state_dict().keys()
    alone.load_state_dict(view.state_dict())
    for found, wanted in zip(view(images(1, 3, 40, 40)), alone(images(1, 3, 40, 40)), strict=True):
        assert torch.equal(found, wanted)
    own = {value.data_ptr() for value in backbone.state_dict().values()}
    assert {value.data_ptr() for value in view.state_dict().values()} <= own
    assert backbone.strides == (8, 32)
    assert len(backbone.blocks) == 7


def test_views_of_a_backbone_agree_on_normalisation_source_and_frozen_stages():
    backbone = create_backbone("lite0")
    backbone.freeze_stages(3)
    view = backbone.yielding((4, 8))
    view.set_statistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    view.weights_source = "a file"
    for one in (backbone, view, view.yielding((4,))):
        assert (one.mean, one.std, one.weights_source) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "a file")
        assert torch.equal(one.pixel_mean, backbone.pixel_mean)
        assert one.frozen_stages == 3
        one.train()
        assert not backbone.bn1.training
        assert backbone.blocks[2].training
    view.double()
    assert backbone.pixel_std.dtype == torch.float64


def test_a_view_changes_no_mode():
    backbone = create_backbone("lite0").train()
    backbone.freeze_stages(2)
    modes = [module.training for module in backbone.modules()]
    assert backbone.yielding((32,)).training
    assert [module.training for module in backbone.modules()] == modes
    assert not any(module.training for module in backbone.eval().yielding((32,)).modules())


@pytest.mark.parametrize(("made", "asked"), [((4, 8), (32,)), ((4, 8), ()), ((32,), (64,)), ((32,), (1,))], ids=str)
def test_a_view_of_levels_that_are_not_there_is_refused(made, asked):
    with pytest.raises(UserError, match=r"out_strides is .*; backbone 'lite0' yields strides 2, 4, 8"):
        create_backbone("lite0", out_strides=made).yielding(asked)


def test_a_view_keeps_the_dilation():
    backbone = create_backbone("lite0", output_stride=16).eval()
    view = backbone.yielding((8, 32))
    assert view.strides == (8, 16)
    for found, wanted in zip(view(images(1, 3, 40, 40)), backbone(images(1, 3, 40, 40))[2::2], strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("output_stride", [8, 16], ids=str)
def test_dilation_publishes_the_true_strides(output_stride):
    backbone = create_backbone("lite0", output_stride=output_stride).eval()
    assert backbone.strides == tuple(min(stride, output_stride) for stride in (2, 4, 8, 16, 32))
    with torch.no_grad():
        sizes = [map.shape[2] for map in backbone(images(1, 3, 50, 50))]
    assert sizes == [ceil(50 / stride) for stride in backbone.strides]


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((127 / 255,) * 3, (128 / 255,) * 3)], ids=["any", "lite"]
)
def test_images_are_normalised_first(mean, std):
    backbone = create_backbone("lite0", mean=mean, std=std, out_strides=(2, 4)).eval()
    batch = images(2, 3, 20, 20)
    expected = (batch.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(backbone.normalise(batch), expected.float(), rtol=1e-5, atol=1e-5)
    for given in (batch, batch.float()):
        for found, wanted in zip(backbone(given), backbone.features(backbone.normalise(batch)), strict=True):
            assert torch.equal(found, wanted)
    assert (backbone.mean, backbone.std) == (mean, std)


def test_normalisation_is_no_part_of_the_state(lite0):
    assert not any("pixel" in name for name in lite0.state_dict())


def test_batched_equals_single(lite0):
    batch = images(3, 3, 48, 32)
    with torch.no_grad():
        together = lite0(batch)
        for index in range(3):
            for found, alone in zip(together, lite0(batch[index : index + 1]), strict=True):
                torch.testing.assert_close(found[index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_no_image_gives_no_features(lite0):
    assert [tuple(map.shape) for map in lite0(images(0, 3, 32, 32))][-1] == (0, 320, 1, 1)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3)], ids=str)
def test_images_of_another_layout_are_refused(lite0, shape):
    with pytest.raises(ValueError, match=r"a backbone takes \(B, 3, H, W\)"):
        lite0(torch.zeros(shape))


def test_creation_says_nothing(recwarn):
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        create_backbone("v2_b0", weights="none")
    assert out.getvalue() == ""
    assert [str(warning.message) for warning in recwarn] == []


def trainable(backbone):
    return {name.split(".")[0] + "." + name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("n", range(8))
def test_freezing_keeps_weights_and_statistics_of_the_first_stages(n):
    torch.manual_seed(0)
    backbone = create_backbone("lite0", drop_path_rate=0.2)
    backbone.freeze_stages(n)
    backbone.train()
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(map.float().square().mean() for map in backbone(images(2, 3, 32, 32))).backward()
    optimizer.step()
    frozen = [*(["conv_stem.", "bn1."] if n else []), *(f"blocks.{stage}." for stage in range(n - 1))]
    for name, value in backbone.state_dict().items():
        if name.startswith(tuple(frozen)):
            assert torch.equal(value, before[name]), name
        elif name.endswith(("running_mean", "num_batches_tracked", "conv_dw.weight")):
            assert not torch.equal(value, before[name]), name
    assert all((p.grad is None) == name.startswith(tuple(frozen)) for name, p in backbone.named_parameters())


def test_frozen_part_builds_no_backward_graph():
    backbone = create_backbone("lite0")
    backbone.freeze_stages(3)
    features = backbone(images(2, 3, 32, 32))
    assert [map.requires_grad for map in features] == [False, False, True, True, True]
    with torch.no_grad():
        assert not any(map.requires_grad for map in backbone(images(2, 3, 32, 32)))


def test_freezing_none_thaws_what_was_frozen():
    backbone = create_backbone("lite0")
    backbone.freeze_stages(7)
    assert trainable(backbone) == {"blocks.6"}
    backbone.freeze_stages(8)
    assert trainable(backbone) == set()
    backbone.freeze_stages(2)
    assert trainable(backbone) == {f"blocks.{stage}" for stage in range(1, 7)}
    backbone.freeze_stages(0)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())


def test_freezing_in_evaluation_mode_stays_in_it():
    backbone = create_backbone("lite0").eval()
    backbone.freeze_stages(2)
    backbone.freeze_stages(0)
    assert not any(module.training for module in backbone.modules())


def test_network_with_fewer_stages_is_frozen_whole():
    backbone = create_backbone("v2_b0", out_strides=(2, 4))
    backbone.freeze_stages(7)
    assert trainable(backbone) == set()


@pytest.mark.parametrize("n", [-1, 9], ids=str)
def test_freezing_out_of_range_is_a_user_error(lite0, n):
    with pytest.raises(UserError, match=f"freeze_stages is {n}"):
        lite0.freeze_stages(n)


def test_backbone_compiles_to_an_exported_program_without_its_python(lite0):
    program = torch.export.export(lite0, (images(1, 3, 64, 64),))
    for found, wanted in zip(
        program.module()(images(1, 3, 64, 64, seed=1)), lite0(images(1, 3, 64, 64, seed=1)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
