from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from effdense.errors import UserError
from effdense.tasks.segmentation.bifpn_head import DetectorPyramidDecoder
from effdense.tasks.segmentation.model import model_from_spec
from effdense.tasks.segmentation.specs import ARCHITECTURES, choose_spec, get_architecture, spec_from_dict

GOOD = {"arch": "pan", "backbone": "lite0", "output_stride": 32, "auxiliary": True, "drop_path_rate": 0.1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_row_holds_together(name: str) -> None:
    arch = ARCHITECTURES[name]
    assert arch.name == name
    assert "arXiv" in arch.paper or "doi" in arch.paper
    assert arch.output_stride in arch.output_strides
    assert arch.depth == (3 if name == "pspnet" else 5)
    assert arch.strides[-1] == 2**arch.depth


@pytest.mark.parametrize(
    ("asked", "name"), [("unet", "unet"), ("UNet++", "unetplusplus"), ("DeepLabV3+", "deeplabv3plus"), ("FPN", "fpn")]
)
def test_an_architecture_is_known_by_the_names_that_people_use(asked: str, name: str) -> None:
    assert get_architecture(asked).name == name


@pytest.mark.parametrize("name", ["", "segnet", "linnet"])
def test_an_unknown_architecture_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' is unknown.*known are unet, .*bifpn"):
        get_architecture(name)


@pytest.mark.parametrize(("arch", "stride"), [("deeplabv3", 8), ("deeplabv3plus", 16), ("pan", 16), ("fpn", 32)])
def test_the_output_stride_is_the_architectures_own_by_default(arch: str, stride: int) -> None:
    assert choose_spec(arch, "b0").output_stride == stride


def test_constants_come_back_from_json_and_make_the_same_model() -> None:
    spec = spec_from_dict(GOOD)
    assert spec_from_dict(json.loads(json.dumps(asdict(spec)))) == spec
    model = model_from_spec(spec, 2)
    assert model.spec == spec
    assert model.auxiliary is not None
    assert model.backbone.strides[-1] == 32


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arch": "pam"}, "did you mean 'pan'"),
        ({"arch": 3}, "arch of a segmentation model is 3; it must be of type str"),
        ({"output_stride": 8}, "output_stride is 8; pan takes 16 or 32"),
        ({"output_stride": True}, "must be of type int"),
        ({"auxiliary": 1}, "must be of type bool"),
        ({"drop_path_rate": "0.1"}, "must be a number"),
        ({"encoder": "b0"}, "no constant 'encoder'"),
        ({"backbone": None}, "must be of type str"),
    ],
    ids=str,
)
def test_constants_that_no_model_has_are_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec_from_dict({**GOOD, **change})


PYRAMID = {"channels": 24, "repeats": 2, "levels": 5, "fusion": "sum", "act": "relu6"}
BELOW = {**GOOD, "arch": "bifpn", "pyramid": PYRAMID}


def test_a_model_below_a_detectors_pyramid_comes_back_from_json() -> None:
    spec = spec_from_dict(BELOW)
    assert spec.pyramid is not None
    assert spec_from_dict(json.loads(json.dumps(asdict(spec)))) == spec
    model = model_from_spec(spec, 2)
    assert model.spec == spec
    assert model.norm_stride == spec.pyramid.norm_stride == 128
    assert isinstance(model.decoder, DetectorPyramidDecoder)
    assert model.decoder.pyramid.channels == (24,) * 5
    assert model.decoder.pyramid.strides == (8, 16, 32, 64, 128)
    assert len(model.decoder.pyramid.cells) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arch": "fpn"}, "fpn reads no detector's pyramid; bifpn does"),
        ({"pyramid": 3}, "pyramid of a segmentation model is 3; it must give channels, repeats, levels"),
        ({"pyramid": {**PYRAMID, "width": 3}}, "it must give channels, repeats, levels"),
        ({"pyramid": {"channels": 24}}, "it must give channels, repeats, levels"),
        ({"pyramid": {**PYRAMID, "levels": "5"}}, "levels of a pyramid is '5'; it must be of type int"),
    ],
    ids=str,
)
def test_a_pyramid_that_no_model_has_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec_from_dict({**BELOW, **change})


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [12, 24, 36]), (32, [3, 6, 9])])
def test_deeplabs_rates_are_smps_and_a_quarter_where_nothing_is_dilated(
    name: str, stride: int, rates: list[int]
) -> None:
    model = model_from_spec(choose_spec(name, "lite0", output_stride=stride), 2)
    convs = [module for module in model.decoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [conv.dilation[0] for conv in convs if conv.dilation[0] > 1] == rates
    if name == "deeplabv3plus":
        assert model.decoder.up.scale_factor == stride / 4


@pytest.mark.parametrize("name", ["arch", "backbone", "output_stride", "auxiliary"])
def test_constants_that_lack_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"lack '{name}'"):
        spec_from_dict({key: value for key, value in GOOD.items() if key != name})


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, effdense.tasks.segmentation.specs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
