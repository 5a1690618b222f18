import json
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from effdense.backbones.naming import from_lukemelas, to_timm
from effdense.backbones.registry import create_backbone
from effdense.backbones.weights import load_complete, read_state
from effdense.errors import UserError


def random_state(name="lite0", **arguments):
    torch.manual_seed(1)
    backbone = create_backbone(name, **arguments)
    with torch.no_grad():
        for value in backbone.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    return backbone.state_dict()


def lukemelas_names(network):
    """lukemelas' names of a timm network, in timm's order: both define the layers of a block in the same order."""
    names = []
    block = -1
    last = None
    for name in network.state_dict():
        if not name.startswith("blocks."):
            outer, _, inner = name.partition(".")
            known = {
                "conv_stem": "_conv_stem",
                "bn1": "_bn0",
                "conv_head": "_conv_head",
                "bn2": "_bn1",
                "classifier": "_fc",
            }
            names.append(f"{known[outer]}.{inner}")
            continue
        _, stage, index, leaf = name.split(".", 3)
        if (stage, index) != last:
            last, block = (stage, index), block + 1
        layer, _, inner = leaf.rpartition(".")
        expanded = hasattr(network.blocks[int(stage)][int(index)], "conv_pwl")
        known = (
            "conv_pw:_expand_conv bn1:_bn0 conv_dw:_depthwise_conv bn2:_bn1 conv_pwl:_project_conv bn3:_bn2"
            if expanded
            else "conv_dw:_depthwise_conv bn1:_bn1 conv_pw:_project_conv bn2:_bn2"
        ) + " se.conv_reduce:_se_reduce se.conv_expand:_se_expand"
        names.append(f"_blocks.{block}.{dict(pair.split(':') for pair in known.split())[layer]}.{inner}")
    return names


@pytest.mark.parametrize("number", range(8))
def test_lukemelas_names_map_onto_timms_one_to_one(number):
    with torch.device("meta"):
        network = timm.create_model(f"tf_efficientnet_b{number}")
    expected = list(network.state_dict())
    state = {name: torch.tensor(place) for place, name in enumerate(lukemelas_names(network))}
    assert len(state) == len(expected)
    renamed = from_lukemelas(state, [len(stage) for stage in network.blocks])
    assert {name: expected[int(place)] for name, place in renamed.items()} == {name: name for name in expected}


@pytest.mark.parametrize("prefix", ["", "backbone.", "encoder.", "encoder.model.", "model.", "module.", "_orig_mod."])
@pytest.mark.parametrize("naming", ["timm", "lukemelas"])
def test_naming_and_holder_are_recognised_by_the_keys(prefix, naming, tmp_path):
    network = timm.create_model("tf_efficientnet_lite0")
    state = network.state_dict()
    if naming == "lukemelas":
        state = dict(zip(lukemelas_names(network), state.values(), strict=True))
    held = {f"{prefix}{name}": value.clone() for name, value in state.items()}
    if prefix in ("backbone.", "encoder."):
        held |= {"class_net.predict.weight": torch.zeros(2), "decoder.weight": torch.zeros(1)}
    save_file(held, tmp_path / "weights.safetensors")
    backbone = create_backbone("lite0", weights=str(tmp_path / "weights.safetensors"))
    whole = network.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in backbone.state_dict().items())
    assert backbone.weights_source == f"file {tmp_path / 'weights.safetensors'} ({naming} names)"


def test_lite_weights_in_lukemelas_naming_bring_their_input(tmp_path):
    network = timm.create_model("tf_efficientnet_lite0")
    state = dict(zip(lukemelas_names(network), network.state_dict().values(), strict=True))
    torch.save(state, tmp_path / "lite.pth")
    backbone = create_backbone("lite0", weights=str(tmp_path / "lite.pth"))
    assert backbone.mean == pytest.approx((127 / 255,) * 3)
    assert backbone.std == pytest.approx((128 / 255,) * 3)
    given = create_backbone("lite0", weights=str(tmp_path / "lite.pth"), mean=(0.1, 0.2, 0.3))
    assert given.mean == (0.1, 0.2, 0.3)
    assert given.std == backbone.std


@pytest.mark.parametrize("place", ["top", "preprocessing", "backbone"])
def test_effdense_file_brings_its_mean_and_std(place, tmp_path):
    numbers = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    header = numbers if place == "top" else {place: numbers}
    state = {f"backbone.{name}": value for name, value in random_state().items()}
    save_file(state, tmp_path / "best.safetensors", metadata={"effdense": json.dumps(header)})
    backbone = create_backbone("lite0", weights=str(tmp_path / "best.safetensors"))
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert read_state(tmp_path / "best.safetensors")[1] == header


@pytest.mark.parametrize("strides", [(2,), (4, 16)], ids=str)
def test_cut_backbone_takes_its_part_of_a_whole_file(strides, tmp_path):
    state = random_state()
    save_file(state, tmp_path / "whole.safetensors")
    backbone = create_backbone("lite0", weights=str(tmp_path / "whole.safetensors"), out_strides=strides)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_missing_batch_counts_are_no_fault(tmp_path):
    state = {name: value for name, value in random_state().items() if not name.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    backbone = create_backbone("lite0", weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(backbone.conv_stem.weight, state["conv_stem.weight"])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda state: state.pop("bn1.weight"), "1 missing: bn1.weight"),
        (lambda state: state.update({"blocks.9.0.x.weight": torch.zeros(1)}), "1 unexpected: blocks.9.0.x.weight"),
        (
            lambda state: state.update({"bn1.bias": torch.zeros(5)}),
            r"1 of another shape: bn1.bias \(5,\) where the model has \(32,\)",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if "bn2" in name],
            r"\d+ missing: (blocks[\w.]+, ){9}blocks[\w.]+ and \d+ more",
        ),
    ],
    ids=["missing", "unexpected", "shape", "many"],
)
def test_weights_that_do_not_fit_are_listed(spoil, told, tmp_path):
    state = dict(random_state())
    spoil(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=told) as caught:
        create_backbone("lite0", weights=str(tmp_path / "w.safetensors"))
    assert str(tmp_path / "w.safetensors") in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(random_state("lite1"), tmp_path / "lite1.safetensors")
    with pytest.raises(UserError, match="unexpected"):
        create_backbone("lite0", weights=str(tmp_path / "lite1.safetensors"))
    network = timm.create_model("tf_efficientnet_lite1")
    state = dict(zip(lukemelas_names(network), network.state_dict().values(), strict=True))
    torch.save(state, tmp_path / "lite1.pth")
    with pytest.raises(UserError, match="do not fit"):
        create_backbone("lite0", weights=str(tmp_path / "lite1.pth"))


def test_weights_of_no_efficientnet_are_refused():
    with pytest.raises(UserError, match=r"no EfficientNet's.*layer1.weight, fc.bias"):
        to_timm({"layer1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, [1], "x.pth")
    with pytest.raises(UserError, match="no EfficientNet's"):
        to_timm({}, [1], "x.pth")


class Dangerous:
    def __reduce__(self):
        return print, ("this must never run",)


def damaged(path, kind):
    state = {"a": torch.arange(1000.0)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"a": Dangerous()}))
    elif kind == "torch with an object":
        torch.save({"a": Dangerous()}, path)
    elif kind == "old torch with an object":
        torch.save({"a": Dangerous()}, path, _use_new_zipfile_serialization=False)
    elif kind == "cut torch":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "cut old torch":
        torch.save(state, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "cut old header":
        torch.save(state, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "cut safetensors":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-8])
    elif kind == "cut safetensors header":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404: Not Found</html>")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    elif kind == "no tensors in safetensors":
        save_file({}, path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("pickle", "could run any code"),
        ("torch with an object", "could run any code"),
        ("old torch with an object", "could run any code"),
        ("cut torch", "damaged torch file"),
        ("cut old torch", "damaged torch file"),
        ("cut old header", "damaged torch file"),
        ("cut safetensors", "damaged safetensors file"),
        ("cut safetensors header", "damaged safetensors file"),
        ("empty", "is empty"),
        ("text", "neither a safetensors nor a torch file"),
        ("list", "holds a list"),
        ("no tensors", "holds no weights; its keys are epoch"),
        ("no tensors in safetensors", "holds no weights"),
        ("folder", "is a folder"),
        ("missing", "No such file"),
    ],
    ids=lambda value: value,
)
def test_unusable_file_is_named_with_the_reason(kind, told, tmp_path, capsys, recwarn):
    path = damaged(tmp_path / "weights.pth", kind)
    with pytest.raises(UserError, match=told) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert [str(warning.message) for warning in recwarn] == []


def test_an_exported_model_is_no_file_of_weights(tmp_path):
    path = tmp_path / "best.onnx"
    path.write_bytes(b"\x08\x0a\x12\x07effdense")
    with pytest.raises(UserError, match=r"no weights to go on from; give the \.safetensors file"):
        read_state(path)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema", None])
@pytest.mark.parametrize("old", [True, False], ids=["old format", "zip"])
def test_torch_file_is_read_wherever_it_keeps_the_weights(key, old, tmp_path):
    state = {"a.weight": torch.arange(3.0)}
    content = state if key is None else {key: state, "epoch": 7, "state_dict": state, "model": state}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    read, header = read_state(tmp_path / "w.pth")
    assert read.keys() == state.keys()
    assert torch.equal(read["a.weight"], state["a.weight"])
    assert header.get("epoch") == (None if key is None else 7)


def test_averaged_weights_come_first(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    assert float(read_state(tmp_path / "w.pth")[0]["a"]) == 1


def test_head_of_another_class_count_is_replaced_only_by_name():
    module = nn.ModuleDict({"trunk": nn.Linear(2, 2), "head": nn.Linear(2, 5)})
    state = nn.ModuleDict({"trunk": nn.Linear(2, 2), "head": nn.Linear(2, 3)}).state_dict()
    own = module.head.weight.clone()
    before = module.trunk.weight.clone()
    with pytest.raises(UserError, match=r"2 of another shape: head\.weight"):
        load_complete(module, state, source="x")
    assert torch.equal(module.trunk.weight, before)
    assert load_complete(module, state, source="x", replace=("head.",)) == ["head.weight", "head.bias"]
    assert torch.equal(module.head.weight, own)
    assert torch.equal(module.trunk.weight, state["trunk.weight"])
    same = nn.ModuleDict({"trunk": nn.Linear(2, 2), "head": nn.Linear(2, 5)}).state_dict()
    assert load_complete(module, same, source="x", replace=("head.",)) == []
    assert torch.equal(module.head.weight, same["head.weight"])


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("imagnet", "expected auto, imagenet, none or a file; did you mean 'imagenet'"),
        ("folder/none.pth", "cannot read weights from folder/none.pth: No such file"),
    ],
    ids=["spelling", "no file"],
)
def test_weights_that_are_nothing_known_are_told(weights, told):
    with pytest.raises(UserError, match=told):
        create_backbone("lite0", weights=weights)
