from __future__ import annotations

import pytest

from effdense.errors import UserError
from effdense.tasks.detection.specs import SPECS, get_spec, spec_for_backbone

# arXiv 1911.09070, Table 1: input size, backbone, BiFPN channels, BiFPN layers, head layers
TABLE_1 = {
    "d0": (512, "b0", 64, 3, 3),
    "d1": (640, "b1", 88, 4, 3),
    "d2": (768, "b2", 112, 5, 3),
    "d3": (896, "b3", 160, 6, 4),
    "d4": (1024, "b4", 224, 7, 4),
    "d5": (1280, "b5", 288, 7, 4),
    "d6": (1280, "b6", 384, 8, 5),
    "d7": (1536, "b6", 384, 8, 5),
    "d7x": (1536, "b7", 384, 8, 5),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_the_table_is_the_papers(name: str) -> None:
    spec = SPECS[name]
    assert (spec.image_size, spec.backbone, spec.channels, spec.bifpn_repeats, spec.head_repeats) == TABLE_1[name]
    assert spec.num_levels == (6 if name == "d7x" else 5)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("b0", "d0"),
        ("b2", "d2"),
        ("b6", "d6"),
        ("b7", "d7x"),
        ("b8", "d7x"),
        ("l2", "d7x"),
        ("lite0", "lite0"),
        ("lite3", "lite3"),
        ("v2_b0", "d1"),
        ("v2_s", "d4"),
        ("v2_m", "d6"),
        ("v2_xl", "d7x"),
        ("edge_s", "d0"),
        ("efficientnet_b3", "d3"),
        ("tf_efficientnet_b4.ns_jft_in1k", "d4"),
        ("tf_efficientnet_lite2", "lite2"),
    ],
)
def test_a_backbone_takes_its_own_row_or_the_nearest_by_parameters(backbone: str, expected: str) -> None:
    spec = spec_for_backbone(backbone)
    assert (spec.name, spec.backbone) == (expected, backbone)


def test_each_constant_can_be_replaced() -> None:
    spec = spec_for_backbone("b2", image_size=320, channels=48, anchor_scale=3.0, act=None)
    assert (spec.image_size, spec.channels, spec.anchor_scale, spec.act) == (320, 48, 3.0, "silu")
    assert SPECS["d2"].image_size == 768


@pytest.mark.parametrize("name", ["d0", "tf_efficientdet_d0", "efficientdet-d0", "D0"])
def test_names_of_other_projects_are_understood(name: str) -> None:
    assert get_spec(name) is SPECS["d0"]


def test_an_unknown_name_gets_the_near_ones() -> None:
    with pytest.raises(UserError, match=r"'lite9' is unknown; did you mean 'lite\d'"):
        get_spec("lite9")
    with pytest.raises(UserError, match=r"no constant 'imagesize'; did you mean 'image_size'"):
        get_spec("d0", imagesize=3)
    with pytest.raises(UserError, match="b22"):
        spec_for_backbone("b22")
