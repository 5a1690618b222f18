"""Settings of training and scoring: what makes no sense is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effdense.errors import UserError
from effdense.tasks.segmentation.config import SegmentationConfig, ignored_settings
from effdense.tasks.segmentation.predict_config import PredictConfig
from effdense.tasks.segmentation.run import resolve
from effdense.tasks.segmentation.score_config import ScoreConfig

WINDOWS = [
    pytest.param({"window": 16}, "window is 16, expected 32 or more", id="too-small"),
    pytest.param({"window": -1}, "window is -1", id="negative"),
    pytest.param({"window": 64, "stride": 65}, "stride is 65, more than the window's 64", id="stride"),
    pytest.param({"window": 64, "stride": 0}, "stride is 0, expected 1 or more", id="stride-zero"),
    pytest.param({"window": 64, "scene_size": 64}, "covers the whole scene", id="scene"),
    pytest.param({"window": 64, "scene_size": -1}, "scene_size is -1", id="scene-negative"),
]


@pytest.mark.parametrize(("values", "says"), WINDOWS)
def test_every_tool_refuses_the_same_windows(values: dict[str, Any], says: str) -> None:
    for build in (
        lambda: SegmentationConfig(**values),
        lambda: ScoreConfig(model=Path("m"), **values),
        lambda: PredictConfig(Path("m"), (Path("a"),), **values),
    ):
        with pytest.raises(UserError, match=says):
            build()


def test_every_tool_takes_a_window_of_nothing_for_none() -> None:
    assert resolve(SegmentationConfig(window=0, device="cpu")).stride is None
    assert ignored_settings(SegmentationConfig(window=0))["stride"] == "no --window is given"
    ScoreConfig(model=Path("m"), window=0)
    PredictConfig(Path("m"), (Path("a"),), window=0)
    with pytest.raises(UserError, match="--scene-size 0"):
        SegmentationConfig(window=0, scene_size=0)


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        pytest.param({}, (128, 128), id="demo"),
        pytest.param({"dataset": "voc"}, (512, 512), id="voc"),
        pytest.param({"image_size": 96}, (96, 96), id="image"),
        pytest.param({"scene_size": 300}, (128, 300), id="scene"),
        pytest.param({"scene_size": 0, "window": 64}, (128, 0), id="own-pixels"),
    ],
)
def test_a_window_is_held_against_the_scene_as_it_will_be(values: dict[str, Any], sizes: tuple[int, int]) -> None:
    assert SegmentationConfig(**values).sizes == sizes
    if sizes[1]:
        SegmentationConfig(**{**values, "window": sizes[1] - 1})
        with pytest.raises(UserError, match=f"fitted into {sizes[1]} pixels"):
            SegmentationConfig(**{**values, "window": sizes[1]})


def test_views_of_no_known_name_are_refused_before_the_model_is_read() -> None:
    with pytest.raises(UserError, match="did you mean 'hflip'"):
        ScoreConfig(model=Path("nowhere"), tta=("hflp",))


@pytest.mark.parametrize(
    ("values", "cropped"),
    [
        pytest.param({}, True, id="enlarged"),
        pytest.param({"scale_max": 1.0}, False, id="never-larger"),
        pytest.param({"scale_max": 1.0, "scene_size": 129}, True, id="larger-scene"),
        pytest.param({"scale_max": 2.0, "scene_size": 64}, False, id="smaller-scene"),
        pytest.param({"scale_max": 1.0, "scene_size": 0, "window": 64}, True, id="own-pixels"),
    ],
)
def test_a_share_of_a_crop_has_no_effect_where_nothing_is_cropped(values: dict[str, Any], cropped: bool) -> None:
    assert ("max_class_share" not in ignored_settings(SegmentationConfig(**values))) == cropped
