"""effdense join: two files in, one out, or one sentence and nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import effdense
from effdense.backbones.registry import create_backbone
from effdense.backbones.weights import save_backbone
from effdense.model_header import read_header
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tools.join import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with d, a detector, and s, a segmenter on the same backbone."""
    folder = tmp_path_factory.mktemp("models")
    save_backbone(create_backbone("lite0"), folder / "b.safetensors")
    given = {"backbone": "lite0", "weights": str(folder / "b.safetensors")}
    network = create_efficientdet("auto", 2, channels=16, bifpn_repeats=1, head_repeats=1, **given)
    Detector(network, ["cat", "dog"], image_size=64).save(folder / "d.safetensors")
    decoder = create_segmentation_model("fpn", 3, **given)  # type: ignore[arg-type]
    Segmenter(decoder, ["sky", "sea", "land"], image_size=64).save(folder / "s.safetensors")
    (folder / "b.safetensors").unlink()
    return folder


def test_the_file_gives_what_the_two_give(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(models / "d.safetensors"), str(models / "s.safetensors")]
    out = tmp_path / "new" / "both.safetensors"
    assert main([*paths, "--out", str(out)]) == 0
    assert f"{out}: 2 classes of objects and 3 of pixels on one lite0, 64 px" in capsys.readouterr().out
    joined, (boxes, pixels) = effdense.load(out), (effdense.load(path) for path in paths)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    found = joined.predict(image)
    np.testing.assert_array_equal(found.segmentation.mask, pixels.predict(image).mask)
    np.testing.assert_array_equal(found.detections.scores, boxes.predict(image).scores)
    assert joined.header["joined"] == {"detection": paths[0], "segmentation": paths[1]}


def test_parts_of_joined_models_can_be_joined_again(models: Path, tmp_path: Path) -> None:
    paths = [str(models / "d.safetensors"), str(models / "s.safetensors")]
    assert main([*paths, "--out", str(tmp_path / "1.safetensors"), "--image-size", "96"]) == 0
    once = str(tmp_path / "1.safetensors")
    assert main([once, once, "--out", str(tmp_path / "2.safetensors")]) == 0
    first, second = (read_header(tmp_path / f"{number}.safetensors") for number in (1, 2))
    assert first["preprocessing"]["image_size"] == second["preprocessing"]["image_size"] == 96
    assert second["detection"] == first["detection"]


BOTH = ["d.safetensors", "s.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], "DETECTOR, SEGMENTER, --out must be given", id="nothing"),
        pytest.param(BOTH, "--out must be given", id="no-out"),
        pytest.param([*BOTH[:1], "--out", "o.safetensors"], "SEGMENTER must be given", id="one-model"),
        pytest.param([*BOTH, "--out", "x.pt"], "--out is x.pt, expected a file that ends in .safetensors", id="suffix"),
        pytest.param([*BOTH, "--out", "d.safetensors"], "d.safetensors is one of the two files", id="onto-itself"),
        pytest.param([BOTH[0], "no.safetensors", "--out", "o.safetensors"], "there is no model file no", id="missing"),
        pytest.param([*BOTH[::-1], "--out", "o.safetensors"], "s.safetensors is a segmenter; it has no", id="swapped"),
        pytest.param([*BOTH, "--out", "o.safetensors", "--image-size", "0"], "image_size is 0", id="no-size"),
        pytest.param([*BOTH, "--out", "o.safetensors", "--image-size", "70"], "such as 64 x 64", id="odd-size"),
        pytest.param([*BOTH, "--out", "o.safetensors", "--imagesize", "70"], "--image-size", id="mistyped"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    arguments: list[str],
    says: str,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    before = {path: path.stat().st_mtime_ns for path in models.iterdir()}
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in models.iterdir()} == before
