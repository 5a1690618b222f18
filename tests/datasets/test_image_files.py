"""Reading image files."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from effdense.datasets import images
from effdense.datasets.images import read_header, read_rgb, read_upright
from effdense.errors import UserError

ORIENTATION = 0x0112


def _sideways(path: Path, orientation: int = 6) -> np.ndarray:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = (255, 0, 0)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return pixels


def _modes() -> dict[str, Image.Image]:
    grey = np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
    colour = Image.fromarray(np.stack([grey, grey[:, ::-1], grey // 2], axis=-1))
    return {
        "grey.png": Image.fromarray(grey),
        "grey.jpg": Image.fromarray(grey),
        "grey16.png": Image.fromarray(grey.astype(np.uint16) * 256),
        "palette.png": colour.quantize(16),
        "palette.gif": colour.quantize(16),
        "rgba.png": colour.convert("RGBA"),
        "bits.png": Image.fromarray(grey > 99),
        "cmyk.jpg": colour.convert("CMYK"),
        "rgb.bmp": colour,
        "rgb.webp": colour,
        "rgb.tif": colour,
        "one_pixel.png": colour.crop((0, 0, 1, 1)),
    }


@pytest.mark.parametrize("name", _modes())
def test_every_kind_of_image_becomes_rgb(name: str, tmp_path: Path) -> None:
    picture = _modes()[name]
    picture.save(tmp_path / name)
    image = read_rgb(tmp_path / name)
    assert image.dtype == np.uint8
    assert image.shape == (picture.height, picture.width, 3)
    assert read_header(tmp_path / name).size_hw == image.shape[:2]
    if name.startswith("grey"):
        assert np.array_equal(image[..., 0], image[..., 2])
        assert np.abs(image[20, :, 0].astype(int) - np.arange(60) * 4).max() <= 2


def test_channels_come_in_the_order_red_green_blue(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((2, 3, 3), (0, 0, 255), np.uint8))
    assert read_rgb(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_names_beyond_ascii_can_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "häuser ü 図.png")
    assert read_rgb(tmp_path / "häuser ü 図.png").shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("stated", "orientation", "shape", "turned"),
    [
        pytest.param((60, 40), 6, (60, 40), True, id="turned-when-that-fits"),
        pytest.param((60, 40), 8, (60, 40), True, id="turned-the-other-way"),
        pytest.param((40, 60), 6, (40, 60), False, id="left-when-it-fits-as-stored"),
        pytest.param(None, 6, (40, 60), False, id="left-when-no-size-is-stated"),
        pytest.param((40, 60), 3, (40, 60), False, id="upside-down-fits-as-stored"),
    ],
)
def test_exif_rotation_is_applied_only_when_the_size_then_matches(
    stated: tuple[int, int] | None, orientation: int, shape: tuple[int, int], turned: bool, tmp_path: Path
) -> None:
    pixels = _sideways(tmp_path / "x.jpg", orientation)
    image = read_rgb(tmp_path / "x.jpg", stated)
    assert image.shape[:2] == shape
    expected = np.rot90(pixels, 3 if orientation == 6 else 1) if turned else pixels
    assert np.abs(image.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_size_that_no_rotation_explains_is_an_error_with_both_sizes(orientation: int, tmp_path: Path) -> None:
    _sideways(tmp_path / "x.jpg", orientation)
    with pytest.raises(UserError, match=r"x\.jpg is 60x40 pixels, but its annotation states 61x40"):
        read_rgb(tmp_path / "x.jpg", (40, 61))


def _break(path: Path, how: str) -> None:
    data = path.read_bytes()
    contents = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "cut-late": data[:-200],
        "text": b"hello",
        "zeros": bytes(100),
        "header": data[:30],
    }
    path.write_bytes(contents[how])


@pytest.mark.parametrize("how", ["empty", "cut", "cut-late", "text", "zeros", "header"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_broken_image_is_an_error_that_names_it(suffix: str, how: str, tmp_path: Path, write_image) -> None:
    path = write_image(tmp_path / f"broken.{suffix}")
    _break(path, how)
    with pytest.raises(UserError, match=f"broken.{suffix} cannot be read"):
        read_header(path)
    with pytest.raises(UserError, match=f"broken.{suffix} cannot be read"):
        read_rgb(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_image_is_refused_even_by_an_opencv_that_fills_the_rest_with_grey(
    suffix: str, tmp_path: Path, write_image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(tmp_path / f"broken.{suffix}")
    _break(path, "cut-late")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((40, 60, 3), 128, np.uint8))
    with pytest.raises(UserError, match=f"broken.{suffix} cannot be read"):
        read_rgb(path)


def test_a_missing_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    for read in (read_header, read_rgb):
        with pytest.raises(UserError, match=r"none\.jpg does not exist"):
            read(tmp_path / "none.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_data_behind_a_sound_image_does_no_harm(suffix: str, tmp_path: Path, write_image) -> None:
    path = write_image(tmp_path / f"motion.{suffix}")
    before = read_rgb(path)
    path.write_bytes(path.read_bytes() + bytes(20_000))
    assert read_header(path).size_hw == (40, 60)
    assert np.array_equal(read_rgb(path), before)


def _with_exif(path: Path, exif: bytes) -> None:
    """Put a tag block right behind the start of a JPEG."""
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])


_DAMAGED_EXIF = {
    "cut": b"Exif\0\0MM",
    "no-offset": b"Exif\0\0MM\0*",
    "empty": b"Exif\0\0",
    "garbage": b"Exif\0\0" + bytes(range(256)),
    "offset-beyond-the-end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "entries-cut": b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03",
    "orientation-is-text": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02A\0\0\0\0\0\0\0",
    "orientation-nine": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
}


@pytest.mark.parametrize("dpi", [(0, 0), (72, 72)], ids=["pillow-tries-on-opening", "pillow-tries-on-asking"])
@pytest.mark.parametrize("name", _DAMAGED_EXIF)
def test_damaged_exif_makes_no_sound_image_fatal_and_says_nothing(
    name: str, dpi: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path, dpi=dpi)
    before = read_rgb(path)
    _with_exif(path, _DAMAGED_EXIF[name])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert (read_header(path).size_hw, read_header(path).orientation) == ((40, 60), 1)
        assert np.array_equal(read_rgb(path, (40, 60)), before)
        assert np.array_equal(read_upright(path), before)
        with pytest.raises(UserError, match="60x40 pixels, but its annotation states 40x60"):
            read_rgb(path, (60, 40))
    assert said == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_every_orientation_is_turned_as_pillow_turns_it(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    _sideways(path, orientation)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    turned = read_upright(path)
    assert turned.shape == expected.shape
    assert np.abs(turned.astype(int) - expected).max() <= 3


def _claim(path: Path, width: int, height: int) -> Path:
    """Write a PNG whose header claims a size, without its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def test_the_header_of_a_very_large_image_is_read_without_a_word(tmp_path: Path) -> None:
    path = _claim(tmp_path / "large.png", 32_768, 32_768)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(path).size_hw == (32_768, 32_768)


@pytest.mark.parametrize("read", [read_header, read_rgb, read_upright])
def test_more_pixels_than_opencv_reads_are_an_error_that_names_the_limit(read, tmp_path: Path) -> None:
    path = _claim(tmp_path / "huge.png", 32_768, 32_769)
    with pytest.raises(
        UserError, match=r"huge\.png .*32768x32769 pixels are more than the limit of 2\*\*30 = 1073741824"
    ):
        read(path)


def test_pillow_keeps_the_limit_that_its_user_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (60, 40)).save(tmp_path / "x.gif")
    (tmp_path / "no.gif").write_bytes(b"GIF89a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(tmp_path / "x.gif").size_hw == read_rgb(tmp_path / "x.gif").shape[:2] == (40, 60)
        with pytest.raises(UserError, match=r"no\.gif cannot be read"):
            read_header(tmp_path / "no.gif")
    assert Image.MAX_IMAGE_PIXELS == 10


JPEGS = {
    "plain": {},
    "fine-chroma": {"subsampling": 0, "quality": 97},
    "half-chroma": {"subsampling": 1},
    "progressive": {"progressive": True},
    "coarse": {"quality": 20, "optimize": True},
    "restarts": {"restart_marker_blocks": 4},
    "rgb-inside": {"keep_rgb": True},
}


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 8), (97, 133), (64, 48)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("case", JPEGS)
def test_a_jpeg_has_the_pixels_that_opencv_makes_of_it(case: str, mode: str, size_hw, tmp_path: Path) -> None:
    if mode != "RGB" and {"subsampling", "keep_rgb"} & set(JPEGS[case]):
        pytest.skip("of colour alone")
    pixels = np.random.default_rng(1).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.jpg", **JPEGS[case])
    image = read_rgb(tmp_path / "a.jpg")
    expected = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[:, :, ::-1]
    assert np.array_equal(image, expected)
    assert image.flags.c_contiguous
    assert image.flags.writeable


def test_a_jpeg_is_read_alike_by_an_opencv_that_knows_bgr_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    before = read_rgb(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "_COLOR_RGB", None)
    assert np.array_equal(read_rgb(tmp_path / "a.jpg"), before)
