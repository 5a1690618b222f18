"""One task's part of a multitask file is what a file of that task alone would hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from effdense.errors import UserError
from effdense.model_parts import DETECTION, SEGMENTATION, described, header_of_part, lacks_part, part_of

DEEPEST = 2


def _header(**segmentation: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "task": "multitask",
        "epoch": 3,
        "scores": {"detection": {"mAP": 0.4}, "segmentation": {"mIoU": 0.5}},
        "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 64},
        "detection": {"model": {"backbone": "lite0"}, "class_names": ["cat"], "category_ids": [7]},
        "segmentation": {"model": {"arch": "fpn", **segmentation}, "class_names": ["sky", "sea"]},
    }


BACKBONE = ("backbone.conv_stem.weight", "backbone.bn1.bias", *(f"backbone.blocks.{i}.0.w" for i in range(12)))
STATE = dict.fromkeys(
    (
        *BACKBONE,
        "detection.neck.cells.0.down.0.w",
        "detection.head.classes.b",
        "segmentation.decoder.p5.w",
        "segmentation.head.0.b",
        "segmentation.auxiliary.conv.w",
    ),
    1,
)


def _names(names: Iterable[str], *also: str) -> set[str]:
    return {*names, *also}


def test_the_detection_part_is_a_detectors_header_and_state() -> None:
    header, state = part_of("m", _header(), STATE, DETECTION)
    assert header == {
        "format": 1,
        "task": "detection",
        "epoch": 3,
        "scores": {"mAP": 0.4},
        "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 64},
        "model": {"backbone": "lite0"},
        "class_names": ["cat"],
        "category_ids": [7],
    }
    assert state.keys() == _names(BACKBONE, "neck.cells.0.down.0.w", "head.classes.b")


def test_the_segmentation_part_is_a_segmenters_header_and_state() -> None:
    header, state = part_of("m", _header(), STATE, SEGMENTATION)
    assert (header["task"], header["scores"], header["class_names"]) == (SEGMENTATION, {"mIoU": 0.5}, ["sky", "sea"])
    assert header["model"] == {"arch": "fpn"}
    assert state.keys() == _names(BACKBONE, "decoder.p5.w", "head.0.b", "auxiliary.conv.w")


def test_values_are_handed_on_by_name() -> None:
    state = {name: number for number, name in enumerate(STATE)}
    _, part = part_of("m", _header(), state, SEGMENTATION)
    assert part["decoder.p5.w"] == state["segmentation.decoder.p5.w"]
    assert part["backbone.blocks.11.0.w"] == state["backbone.blocks.11.0.w"]


def test_a_backbone_is_as_deep_as_the_part_reads_it() -> None:
    header = _header()
    header["segmentation"]["backbone_stages"] = DEEPEST
    found, state = part_of("m", header, STATE, SEGMENTATION)
    stages = {name for name in state if name.startswith("backbone.blocks.")}
    assert stages == {"backbone.blocks.0.0.w", "backbone.blocks.1.0.w"}
    assert {"backbone.conv_stem.weight", "backbone.bn1.bias"} <= state.keys()
    assert "backbone_stages" not in found
    _, other = part_of("m", header, STATE, DETECTION)
    assert _names(BACKBONE) <= other.keys(), "the other part reads it whole"


def test_a_segmenter_on_the_detectors_pyramid_takes_the_pyramid_with_it() -> None:
    shared = {"channels": 64}
    _, state = part_of("m", _header(pyramid=shared), STATE, SEGMENTATION)
    expected = ("decoder.pyramid.cells.0.down.0.w", "decoder.finest.p5.w", "head.0.b", "auxiliary.conv.w")
    assert state.keys() == _names(BACKBONE, *expected)
    _, detector = part_of("m", _header(pyramid=shared), STATE, DETECTION)
    assert detector.keys() == _names(BACKBONE, "neck.cells.0.down.0.w", "head.classes.b")
    _, own = part_of("m", _header(pyramid=None), STATE, SEGMENTATION)
    assert "decoder.p5.w" in own


@pytest.mark.parametrize("task", [DETECTION, SEGMENTATION])
def test_a_file_of_the_task_alone_is_returned_as_it_is(task: str) -> None:
    header, state = {"task": task, "model": {}, "detection": 1, "scores": {"x": 1}}, {"backbone.x": 1, "y": 2}
    assert part_of("m", header, state, task) == (header, state)


def test_an_empty_state_has_empty_parts() -> None:
    assert part_of("m", _header(), {}, DETECTION)[1] == {}


@pytest.mark.parametrize(
    ("header", "task", "says"),
    [
        pytest.param({"task": "detection"}, SEGMENTATION, "m.x is a detector; it has no segmentation head", id="seg"),
        pytest.param({"task": "segmentation"}, DETECTION, "m.x is a segmenter; it has no detection head", id="det"),
        pytest.param({"task": "backbone"}, DETECTION, "m.x is a model for 'backbone', not for 'detection'", id="other"),
        pytest.param({}, DETECTION, "m.x is a model for None, not for 'detection'", id="no-task"),
        pytest.param({"task": "multitask"}, DETECTION, "header of m.x is damaged .*detection part", id="no-part"),
        pytest.param({"task": "multitask", "detection": [1]}, DETECTION, "header of m.x is damaged", id="list"),
        pytest.param({"task": "multitask", "detection": {}}, DETECTION, "header of m.x is damaged", id="empty"),
        pytest.param(
            {"task": "multitask", "segmentation": {"model": "fpn"}}, SEGMENTATION, "header of m.x is", id="text"
        ),
    ],
)
def test_what_has_no_such_part_is_refused(header: dict[str, Any], task: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        part_of("m.x", header, {}, task)


def test_whoever_wants_both_is_told_which_is_missing() -> None:
    assert "is a detector; it has no segmentation head" in str(lacks_part("m", DETECTION, "multitask"))
    assert "is a segmenter; it has no detection head" in str(lacks_part("m", SEGMENTATION, "multitask"))
    assert "is a model for 'backbone', not for 'multitask'" in str(lacks_part("m", "backbone", "multitask"))


def test_a_missing_part_is_named_with_the_way_to_get_it() -> None:
    assert "to this one by train-multi --weights FILE" in str(lacks_part("this model", DETECTION, SEGMENTATION))
    exported = str(lacks_part(Path("m.onnx"), DETECTION, SEGMENTATION))
    assert "to its checkpoint by train-multi --weights FILE, and export that" in exported


def test_a_header_that_says_nothing_yet_gives_a_part_that_says_nothing() -> None:
    assert header_of_part({}, DETECTION) == {}


def test_scores_of_one_task_alone_are_none_of_the_others() -> None:
    header = _header() | {"scores": {"detection": {"mAP": 0.4}}}
    assert header_of_part(header, SEGMENTATION)["scores"] is None
    assert header_of_part(header | {"scores": None}, DETECTION)["scores"] is None


def test_a_view_on_a_multitask_file_is_not_called_by_the_name_of_the_whole() -> None:
    assert described(Path("m.x"), {"task": "detection"}) == "m.x"
    assert described(Path("m.x"), {"task": "multitask"}) == "this part of m.x"
