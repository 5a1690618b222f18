import subprocess
import sys

import pytest
import torch

from effdense.backbones.build import build_network, published_size
from effdense.backbones.measure import count_multiply_adds, count_parameters
from effdense.backbones.registry import create_backbone, list_backbones, register_backbone, resolve_backbone
from effdense.backbones.specs import SPECS, BackboneSpec, Scaling, compound_scaling
from effdense.errors import UserError

# arXiv 1905.11946, Table 2, as printed: parameters (M), multiply-adds (B)
PRINTED = {
    "b0": ("5.3", "0.39"),
    "b1": ("7.8", "0.70"),
    "b2": ("9.2", "1.0"),
    "b3": ("12", "1.8"),
    "b4": ("19", "4.2"),
    "b5": ("30", "9.9"),
    "b6": ("43", "19"),
    "b7": ("66", "37"),
}


def half_of_last_digit(printed: str) -> float:
    return 0.5 * 10 ** -len(printed.partition(".")[2])


@pytest.mark.parametrize("name", PRINTED)
def test_built_network_has_the_size_that_the_paper_prints(name):
    spec = resolve_backbone(name)
    params, flops = PRINTED[name]
    assert (spec.params_m, spec.flops_b) == (float(params), float(flops))
    with torch.device("meta"):
        network = build_network(spec)
        multiply_adds = count_multiply_adds(network, published_size(spec))
    assert count_parameters(network) / 1e6 == pytest.approx(
        float(params), abs=max(0.01 * float(params), half_of_last_digit(params))
    )
    assert multiply_adds / 1e9 == pytest.approx(float(flops), abs=max(0.05 * float(flops), half_of_last_digit(flops)))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.params_m], ids=lambda spec: spec.name)
def test_built_network_has_the_parameters_that_its_source_gives(spec):
    with torch.device("meta"):
        measured = count_parameters(build_network(spec)) / 1e6
    half_digit = 0.05 if spec.params_m < 12 or spec.params_m % 1 else 0.5
    assert measured == pytest.approx(spec.params_m, abs=max(0.01 * spec.params_m, half_digit))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_row_says_where_its_numbers_come_from(spec):
    assert spec.source
    assert spec.timm_name in list_backbones()
    assert resolve_backbone(spec.name) is resolve_backbone(spec.timm_name) is spec


def test_multiply_adds_of_a_known_convolution():
    convolution = torch.nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, bias=False)
    assert count_multiply_adds(convolution, (4, 6)) == 6 * 2 * 3 * 9
    assert not convolution._forward_hooks


@pytest.mark.parametrize(
    ("phi", "depth", "width", "resolution"),
    [(0, 1.0, 1.0, 224), (1, 1.2, 1.1, 258), (2.5, 1.2**2.5, 1.1**2.5, 318), (0.5, 1.2**0.5, 1.1**0.5, 240)],
    ids=["none", "one", "real", "fraction"],
)
def test_compound_scaling_follows_equation_3(phi, depth, width, resolution):
    assert compound_scaling(phi) == Scaling(pytest.approx(depth), pytest.approx(width), resolution)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"phi": -1}, "phi is -1"),
        ({"phi": float("nan")}, "phi is nan"),
        ({"phi": float("inf")}, "phi is inf"),
        ({"phi": 1, "alpha": 2.0}, "alpha 2.0"),
        ({"phi": 1, "alpha": 0.5, "beta": 1.5, "gamma": 1.35}, "alpha 0.5"),
        ({"phi": 1e6}, "no finite size"),
    ],
    ids=["negative", "nan", "infinite", "product", "shrinking", "overflow"],
)
def test_compound_scaling_refuses(arguments, told):
    with pytest.raises(UserError, match=told):
        compound_scaling(**arguments)


def shapes(name, **arguments):
    with torch.device("meta"):
        return {key: value.shape for key, value in create_backbone(name, **arguments).state_dict().items()}


@pytest.mark.parametrize(
    ("base", "depth", "width", "named"),
    [
        ("b0", 1.4, 1.2, "b3"),
        ("b7", 1.0, 1.0, "b0"),
        ("v2_b0", 1.4, 1.2, "v2_b3"),
        ("lite0", 1.8, 1.4, "lite4"),
        ("edge_s", 1.4, 1.2, "edge_l"),
        ("v2_m", 1.0, 1.0, "v2_m"),
    ],
    ids=lambda value: str(value),
)
def test_scaling_replaces_the_named_factors(base, depth, width, named):
    assert shapes(base, depth=depth, width=width) == shapes(named)


@pytest.mark.parametrize(("base", "depth", "width", "named"), [("b0", 1.4, 1.2, "b3"), ("lite0", 1.2, 1.1, "lite2")])
def test_scaled_network_computes_what_the_named_one_does(base, depth, width, named):
    torch.manual_seed(0)
    scaled = create_backbone(base, depth=depth, width=width, out_strides=(2, 8)).eval()
    peer = create_backbone(named, out_strides=(2, 8)).eval()
    for module in scaled.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-3)  # so small that the norm's epsilon counts
    peer.load_state_dict(scaled.state_dict())
    images = torch.randint(0, 256, (1, 3, 33, 46), dtype=torch.uint8)
    with torch.no_grad():
        for found, wanted in zip(scaled(images), peer(images), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("arguments", [{}, {"depth": 1.5}], ids=["named", "scaled"])
def test_stochastic_depth_grows_towards_the_last_block(arguments):
    def rates(rate):
        modules = create_backbone("lite0", drop_path_rate=rate, **arguments).modules()
        return [module.drop_prob for module in modules if hasattr(module, "drop_prob")]

    assert rates(0.0) == []
    assert rates(0.2) == sorted(rates(0.2))
    assert 0.1 < max(rates(0.2)) < 0.2


def test_one_factor_keeps_the_other():
    assert shapes("b2", depth=1.1) != shapes("b1")  # width 1.1 of b2 stays
    assert shapes("b1", width=1.1, depth=1.2) == shapes("b2")
    assert shapes("v2_s", width=0.5) != shapes("v2_s")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("efficientnet-b0", "did you mean 'efficientnet_b0'"),
        ("lite_0", "did you mean 'lite0'"),
        ("b9", "known are b0, b1"),
        ("resnet50", "known are b0, b1"),
        ("", "known are b0, b1"),
        ("b0.in2k", "its tags are aa_in1k"),
        ("efficientnet_b7.in1k", "no pretrained weights"),
    ],
    ids=["spelling", "underscore", "none near", "other family", "empty", "tag", "untrained"],
)
def test_unknown_name_gets_the_near_ones(name, near):
    with pytest.raises(UserError, match=near):
        resolve_backbone(name)


def test_tag_chooses_the_pretrained_weights():
    assert resolve_backbone("b0.ap_in1k").timm_name == "tf_efficientnet_b0.ap_in1k"
    assert create_backbone("b0.ap_in1k", out_strides=(2,)).mean == (0.5, 0.5, 0.5)
    assert create_backbone("b0.in1k", out_strides=(2,)).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("taken", ["b0", "tf_efficientnet_b0"])
def test_duplicate_is_refused(taken):
    with pytest.raises(ValueError, match="registered already"):
        register_backbone(BackboneSpec(taken, f"new_{taken}"))


def test_list_matches_a_pattern():
    assert list_backbones("lite*") == ["lite0", "lite1", "lite2", "lite3", "lite4"]
    assert list_backbones("no such") == []
    names = list_backbones()
    assert len(names) == len(set(names))
    assert names[0] == "b0"
    assert "efficientnetv2_rw_t" in names


def test_registry_imports_no_torch():
    code = "import sys, effdense.backbones.registry; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"depth": 0.0}, "depth is 0.0"),
        ({"width": float("nan")}, "width is nan"),
        ({"out_strides": (2, 3)}, "yields strides 2, 4, 8, 16, 32"),
        ({"out_strides": ()}, "yields strides"),
        ({"output_stride": 4}, "must be 8, 16 or 32"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "above 0"),
    ],
    ids=["depth", "width", "stride", "no stride", "output stride", "drop path", "mean", "std"],
)
def test_argument_that_cannot_be_is_a_user_error(arguments, told):
    with pytest.raises(UserError, match=told):
        create_backbone("b0", **arguments)


def test_network_outside_the_table_is_not_scaled():
    with pytest.raises(UserError, match="cannot be scaled"):
        create_backbone("efficientnet_blur_b0", depth=2.0)
