"""What predict leaves of a segmenter: index PNGs that are the label map, and pictures with a legend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from effdense.datasets import prediction_files
from effdense.datasets.image_inputs import as_sample
from effdense.drawing import mask_color
from effdense.errors import UserError
from effdense.palette import voc_palette
from effdense.pictures import write_index_png
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.predict import Segmenter
from effdense.tasks.segmentation.predict_config import PredictConfig, ignored_settings
from effdense.tasks.segmentation.predict_files import background_of, legend_of, predict_files
from effdense.types import Sample, UInt8

CLASSES = ("background", "red", "green", "blue")


class ByColour(nn.Module):
    """Says background where a pixel is dark, else its strongest channel."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.mean = (0.0, 0.0, 0.0)  # type: ignore[assignment]
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = torch.full_like(images[:, :1], 90).float()
        return torch.cat([dark, images.float()], 1) / 4


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(ByColour(), CLASSES, image_size=64)  # type: ignore[arg-type]


def _picture(height: int, width: int) -> UInt8:
    """Red at the left, green at the right, black below."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height * 3 // 4, : width // 2] = (255, 0, 0)
    image[: height * 3 // 4, width // 2 :] = (0, 255, 0)
    return image


def _save(path: Path, image: UInt8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    sizes = [(64, 64), (40, 100), (100, 40), (1, 1)]
    return [_save(tmp_path / f"photos/p{number}.png", _picture(*size)) for number, size in enumerate(sizes)]


def test_index_pngs_read_back_are_exactly_the_label_maps(
    segmenter: Segmenter, photos: list[Path], tmp_path: Path
) -> None:
    result = predict_files(segmenter, photos, tmp_path / "out")
    assert result.masks == tmp_path / "out" / "masks"
    for path, found in zip(photos, segmenter.predict(photos), strict=True):
        image = Image.open(result.masks / path.name)
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), found.mask)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[found.mask])
    assert np.unique(np.asarray(Image.open(result.masks / "p0.png"))).tolist() == [0, 1, 2]
    assert (tmp_path / "out" / "classes.txt").read_text() == "background\nred\ngreen\nblue\n"


def test_every_index_survives_an_index_png(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    for number, layout in enumerate((mask, mask[:, ::-1], mask.T)):  # in any order of memory
        write_index_png(tmp_path / f"{number}.png", layout)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{number}.png")), layout)


def test_pictures_show_the_colours_of_the_palette_and_leave_the_background(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    path = _save(tmp_path / "a.png", _picture(64, 64))
    for opacity, red, green in ((1.0, mask_color(1), mask_color(2)), (0.5, (192, 0, 0), (0, 192, 0))):
        result = predict_files(segmenter, [path], tmp_path / "out", opacity=opacity)
        drawn = cv2.cvtColor(cv2.imread(str(result.drawn[0])), cv2.COLOR_BGR2RGB).astype(int)  # type: ignore[arg-type]
        for (row, column), color in {(20, 10): red, (20, 50): green, (60, 30): (0, 0, 0)}.items():
            np.testing.assert_allclose(drawn[row, column], color, atol=6)


def test_the_picture_has_the_image_in_its_own_size_and_a_legend_below(
    segmenter: Segmenter, photos: list[Path], tmp_path: Path
) -> None:
    result = predict_files(segmenter, photos, tmp_path / "out")
    for path, drawn in zip(photos, result.drawn, strict=True):
        image, picture = np.asarray(Image.open(path)), np.asarray(Image.open(drawn))
        assert picture.shape[0] > image.shape[0]
        assert picture.shape[1] >= image.shape[1]
        assert (picture[image.shape[0] :] < 100).any(), "nothing is written in the legend"
    assert (tmp_path / "out" / "overview.jpg").exists()


@pytest.mark.parametrize(
    ("counts", "texts"),
    [
        pytest.param([0, 0, 0, 0], [], id="nothing"),
        pytest.param([100, 0, 0, 0], ["background 100%"], id="background-alone"),
        pytest.param([30, 10, 60, 0], ["green 60%", "background 30%", "red 10%"], id="by-area"),
        pytest.param([5, 5, 990, 0], ["green 99%", "background <1%", "red <1%"], id="little"),
    ],
)
def test_a_legend_names_what_is_there_by_area(counts: list[int], texts: list[str]) -> None:
    entries = legend_of(np.array(counts), CLASSES)
    assert [text for text, _ in entries] == texts
    for text, color in entries:
        name = text.split()[0]
        assert color == ((255, 255, 255) if name == "background" else mask_color(CLASSES.index(name)))


@pytest.mark.parametrize(
    ("names", "background"),
    [
        pytest.param(("background", "cat"), 0, id="first"),
        pytest.param(("cat", "Background"), 1, id="last"),
        pytest.param(("_background_", "cat"), 0, id="labelme"),
        pytest.param(("sky", "wall"), None, id="none"),
        pytest.param((), None, id="empty"),
    ],
)
def test_background_is_known_by_its_name(names: tuple[str, ...], background: int | None) -> None:
    assert background_of(names) == background


def test_without_a_background_every_class_is_coloured(tmp_path: Path) -> None:
    every = Segmenter(ByColour(), ("wall", "red", "green", "blue"), image_size=64)  # type: ignore[arg-type]
    path = _save(tmp_path / "a.png", np.full((64, 64, 3), 80, np.uint8))
    result = predict_files(every, [path], tmp_path / "out", opacity=1.0)
    np.testing.assert_allclose(np.asarray(Image.open(result.drawn[0]))[20, 20], mask_color(0), atol=3)


def test_probabilities_are_written_on_request(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    predict_files(segmenter, photos, tmp_path / "out")
    assert not (tmp_path / "out" / "probabilities").exists()
    predict_files(segmenter, photos, tmp_path / "out", save_probabilities=True)
    for path, found in zip(photos, segmenter.predict(photos, probabilities=True), strict=True):
        with np.load(tmp_path / "out" / "probabilities" / f"{path.stem}.npz") as stored:
            assert stored["probabilities"].dtype == np.float16
            np.testing.assert_allclose(stored["probabilities"], found.probabilities, atol=1e-3)


@pytest.mark.parametrize("way", [{}, {"window": 32, "tta": ("hflip",)}], ids=["whole", "window"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_files_get_what_predict_returns(
    way: dict[str, Any], batch_size: int, segmenter: Segmenter, photos: list[Path], tmp_path: Path
) -> None:
    chosen = segmenter.with_inference(**way)
    result = predict_files(chosen, photos, tmp_path / "out", batch_size=batch_size)
    for path in photos:
        mask = np.asarray(Image.open(result.masks / path.name))
        np.testing.assert_array_equal(mask, chosen.predict(path).mask)


def test_a_data_set_is_predicted_on_by_its_own_reading(segmenter: Segmenter, tmp_path: Path) -> None:
    class Index:
        def __len__(self) -> int:
            return 2

        def path(self, position: int) -> Path:
            return tmp_path / f"{position}.png"

        def sample(self, position: int) -> Sample:
            sample = as_sample(self.path(position))
            return sample.replace(mask=np.full(sample.image.shape[:2], 255, np.uint8))

    for number in range(2):
        _save(tmp_path / f"{number}.png", _picture(30, 40 + number))
    result = predict_files(segmenter, Index(), tmp_path / "out")
    assert [path.name for path in result.drawn] == ["0.jpg", "1.jpg"]
    assert np.asarray(Image.open(result.masks / "1.png")).shape == (30, 41)


def test_no_image_leaves_no_picture(segmenter: Segmenter, tmp_path: Path) -> None:
    result = predict_files(segmenter, [], tmp_path / "out")
    assert result.drawn == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["classes.txt"]


def test_images_of_one_name_do_not_share_files(segmenter: Segmenter, tmp_path: Path) -> None:
    paths = [_save(tmp_path / folder / "x.png", _picture(20, width)) for folder, width in (("a", 20), ("b", 30))]
    result = predict_files(segmenter, paths, tmp_path / "out", save_probabilities=True)
    assert [path.name for path in result.drawn] == ["x.jpg", "x-2.jpg"]
    for name, width in (("x", 20), ("x-2", 30)):
        assert np.asarray(Image.open(result.masks / f"{name}.png")).shape == (20, width)
        assert (tmp_path / "out" / "probabilities" / f"{name}.npz").exists()


@pytest.mark.parametrize("folder", ["", "masks"], ids=["picture", "mask"])
def test_an_image_is_never_overwritten(folder: str, segmenter: Segmenter, tmp_path: Path) -> None:
    path = _save(tmp_path / folder / ("a.png" if folder else "a.jpg"), _picture(20, 20))
    before = path.read_bytes()
    with pytest.raises(UserError, match="overwrite"):
        predict_files(segmenter, [path], tmp_path)
    assert path.read_bytes() == before


DATA_SETS = [
    pytest.param("masks/p0.png", "mask that no earlier", id="mask"),
    pytest.param("classes.txt", "names the classes", id="classes"),
    pytest.param("images/x.png", "images of a data set", id="images"),
    pytest.param("JPEGImages/x.jpg", "images of a data set", id="voc"),
]


@pytest.mark.parametrize(("file", "says"), DATA_SETS)
def test_a_data_set_is_never_written_into(
    file: str, says: str, segmenter: Segmenter, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "data"
    (out / file).parent.mkdir(parents=True)
    (out / file).write_bytes(b"by hand")
    with pytest.raises(UserError, match=rf"{says}.*--out"):
        predict_files(segmenter, photos, out)
    assert [path for path in out.rglob("*") if path.is_file()] == [out / file]
    assert (out / file).read_bytes() == b"by hand"


def test_an_earlier_prediction_is_written_over_by_other_classes_too(
    segmenter: Segmenter, photos: list[Path], tmp_path: Path
) -> None:
    other = Segmenter(ByColour(), ("a", "b", "c", "d"), image_size=64)  # type: ignore[arg-type]
    predict_files(segmenter, [], tmp_path / "out")
    for one, paths in ((segmenter, photos[:2]), (other, photos), (segmenter, photos)):
        predict_files(one, paths, tmp_path / "out")
        assert (tmp_path / "out" / "classes.txt").read_text().split() == list(one.class_names)


def test_a_broken_image_stops_or_is_counted_as_asked(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff junk")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        predict_files(segmenter, [photos[0], broken], tmp_path / "out")
    result = predict_files(segmenter, [photos[0], broken, photos[1]], tmp_path / "out", skip_broken=True)
    assert result.broken == [broken]
    assert [path.name for path in result.drawn] == ["p0.jpg", "p1.jpg"]


def test_the_overview_holds_no_picture_in_its_full_size(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[int, ...]] = []
    sheet = prediction_files.contact_sheet
    monkeypatch.setattr(
        prediction_files, "contact_sheet", lambda images: held.extend(one.shape for one in images) or sheet(images)
    )
    predict_files(segmenter, [_save(tmp_path / "large.png", _picture(700, 1400))], tmp_path / "out")
    assert held == [(128, 256, 3)]


# --- settings


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({}, "either images", id="nothing"),
        pytest.param({"images": (Path("a"),), "dataset": "voc"}, "not both", id="both"),
        pytest.param({"images": (Path("a"),), "data_root": Path("d")}, "--data-root has no effect", id="root"),
        pytest.param({"images": (Path("a"),), "opacity": 1.5}, "opacity is 1.5", id="opacity"),
        pytest.param({"images": (Path("a"),), "batch_size": 0}, "batch_size is 0", id="batch"),
        pytest.param({"images": (Path("a"),), "image_size": 0}, "image_size is 0", id="size"),
        pytest.param({"images": (Path("a"),), "window": 8}, "window is 8, expected 32", id="window"),
        pytest.param({"images": (Path("a"),), "window": 64, "stride": 65}, "stride is 65", id="stride"),
        pytest.param({"images": (Path("a"),), "scene_size": -1}, "scene_size is -1", id="scene"),
        pytest.param({"images": (Path("a"),), "tta": ("hflop",)}, "did you mean 'hflip'", id="tta"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PredictConfig(model=Path("m"), **values)


def test_a_split_without_a_data_set_would_be_ignored() -> None:
    assert "split" in ignored_settings(PredictConfig(Path("m"), (Path("a"),)))
    assert "split" not in ignored_settings(PredictConfig(Path("m"), dataset="demo"))


def test_inference_of_the_model_is_the_default() -> None:
    own = Inference(window=64, stride=40, scene_size=100, tta=("hflip",))
    config = PredictConfig(Path("m"), (Path("a"),))
    assert own.changed(window=config.window, stride=config.stride, scene_size=config.scene_size, tta=config.tta) == own
