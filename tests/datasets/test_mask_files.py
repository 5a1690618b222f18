"""Mask files: an index is an index, whatever the mode of the image it comes in."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from effdense.datasets.index import pack_names
from effdense.datasets.mask_files import MaskFiles, read_values
from effdense.datasets.segmentation_index import LabelError
from effdense.errors import UserError
from effdense.palette import voc_palette

INDICES = np.array([[0, 1, 15, 20], [255, 2, 15, 0], [3, 3, 3, 3]], np.uint8)
FEW = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 1, 1]], np.uint8)
TWO = np.array([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]], np.uint8)


def _palette(bits: int, colors: np.ndarray | None = None) -> Callable[[np.ndarray, Path], None]:
    def save(values: np.ndarray, path: Path) -> None:
        image = Image.fromarray(values)
        image.putpalette((voc_palette() if colors is None else colors)[: 2**bits].tobytes())
        image.save(path, bits=bits)

    return save


def _grey_png(bits: int) -> Callable[[np.ndarray, Path], None]:
    """A grey PNG of few bits, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def save(values: np.ndarray, path: Path) -> None:
        height, width = values.shape
        digits = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(height, width * bits)
        lines = b"".join(b"\0" + line.tobytes() for line in np.packbits(digits, axis=1))
        header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
        chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)

    return save


def _mode(mode: str) -> Callable[[np.ndarray, Path], None]:
    def save(values: np.ndarray, path: Path) -> None:
        if mode == "I;16":
            Image.fromarray(values.astype(np.uint16)).save(path)
        elif mode == "I":
            Image.fromarray(values.astype(np.int32)).save(path)
        elif mode == "1":
            Image.fromarray(values.astype(bool)).save(path)
        elif mode == "LA":
            Image.fromarray(np.stack([values, 255 - values], axis=-1)).save(path)
        else:
            Image.fromarray(values).save(path)

    return save


def _colors(alpha: int | None = None) -> Callable[[np.ndarray, Path], None]:
    def save(values: np.ndarray, path: Path) -> None:
        pixels = voc_palette()[values]
        if alpha is not None:
            pixels = np.concatenate([pixels, np.full((*values.shape, 1), alpha, np.uint8)], axis=-1)
        Image.fromarray(pixels).save(path)

    return save


def _grey_as_rgb(values: np.ndarray, path: Path) -> None:
    Image.fromarray(np.repeat(values[..., None], 3, axis=2)).save(path)


GREY_COLORS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


@pytest.mark.parametrize(
    ("values", "save", "name"),
    [
        pytest.param(INDICES, _palette(8), "a.png", id="palette"),
        pytest.param(INDICES, _palette(8, GREY_COLORS[::-1].copy()), "a.png", id="palette-of-negative-greys"),
        pytest.param(INDICES % 16, _palette(4), "a.png", id="palette-of-4-bits"),
        pytest.param(FEW, _palette(2), "a.png", id="palette-of-2-bits"),
        pytest.param(TWO, _palette(1), "a.png", id="palette-of-1-bit"),
        pytest.param(INDICES, _mode("L"), "a.png", id="grey"),
        pytest.param(INDICES % 16, _grey_png(4), "a.png", id="grey-of-4-bits"),
        pytest.param(FEW, _grey_png(2), "a.png", id="grey-of-2-bits"),
        pytest.param(TWO, _grey_png(1), "a.png", id="grey-of-1-bit"),
        pytest.param(INDICES, _grey_png(8), "a.png", id="grey-of-8-bits-by-hand"),
        pytest.param(TWO, _mode("1"), "a.png", id="black-and-white"),
        pytest.param(INDICES, _mode("LA"), "a.png", id="grey-with-alpha"),
        pytest.param(INDICES, _mode("I;16"), "a.png", id="16-bit"),
        pytest.param(INDICES, _mode("I;16"), "a.tif", id="16-bit-tiff"),
        pytest.param(INDICES, _mode("I"), "a.tif", id="32-bit-tiff"),
        pytest.param(INDICES, _colors(), "a.png", id="colours-of-voc"),
        pytest.param(INDICES, _colors(255), "a.png", id="colours-of-voc-with-alpha"),
        pytest.param(INDICES, _colors(0), "a.png", id="colours-of-voc-transparent"),
        pytest.param(INDICES, _grey_as_rgb, "a.png", id="grey-in-three-channels"),
        pytest.param(TWO * 255, _grey_as_rgb, "a.png", id="black-and-white-in-three-channels"),
        pytest.param(INDICES, _mode("L"), "a.bmp", id="bmp"),
        pytest.param(INDICES, _palette(8), "a.bmp", id="palette-bmp"),
        pytest.param(INDICES, _mode("L"), "a.tif", id="tiff"),
        pytest.param(INDICES, _mode("L"), "a.pgm", id="pgm"),
        pytest.param(INDICES[:1, :1], _palette(8), "a.png", id="single-pixel"),
        pytest.param(INDICES[:, :1].copy(), _colors(), "a.png", id="single-column"),
    ],
)
def test_an_index_is_read_as_it_is_in_every_mode(values: np.ndarray, save, name: str, tmp_path: Path) -> None:
    save(values, tmp_path / name)
    read = read_values(tmp_path / name)
    assert read.dtype == np.uint8
    assert read.tolist() == values.tolist()
    assert read.flags.c_contiguous
    assert read.flags.writeable


def test_class_15_is_15_and_never_the_147_of_its_colour_as_grey(tmp_path: Path) -> None:
    _palette(8)(np.full((2, 2), 15, np.uint8), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.unique(np.asarray(image.convert("L"))).tolist() == [147]
    assert _files(tmp_path, 21).read(0).tolist() == [[15, 15], [15, 15]]


def _files(folder: Path, num_classes: int, *, binary: bool = False, values: tuple[int, ...] | None = None) -> MaskFiles:
    names = tuple(f"c{label}" for label in range(num_classes))
    own = (0, 255) if binary else tuple(range(num_classes))
    return MaskFiles(folder, pack_names(["a.png"]), names, values or own, binary)


@pytest.mark.parametrize(
    ("num_classes", "values", "written", "labels"),
    [
        pytest.param(21, None, [0, 20, 255], [0, 20, 255], id="as-they-are"),
        pytest.param(1, None, [0, 0], [0, 0], id="a-single-class"),
        pytest.param(255, None, [0, 254, 255], [0, 254, 255], id="as-many-as-there-can-be"),
        pytest.param(2, (3, 7), [3, 7, 255], [0, 1, 255], id="numbers-with-gaps"),
        pytest.param(2, (7, 0), [0, 7], [1, 0], id="in-another-order"),
    ],
)
def test_values_become_labels_and_255_stays_void(num_classes, values, written, labels, tmp_path: Path) -> None:
    _mode("L")(np.array([written], np.uint8), tmp_path / "a.png")
    assert _files(tmp_path, num_classes, values=values).read(0).tolist() == [labels]


@pytest.mark.parametrize("one_bit", [False, True], ids=["bytes", "bits"])
def test_in_binary_masks_255_is_class_1(one_bit: bool, tmp_path: Path) -> None:
    _mode("1" if one_bit else "L")(TWO if one_bit else TWO * 255, tmp_path / "a.png")
    assert _files(tmp_path, 2, binary=True).read(0).tolist() == TWO.tolist()


@pytest.mark.parametrize(
    ("written", "options", "message"),
    [
        pytest.param(
            [[0, 1], [3, 5]],
            {"num_classes": 3},
            r"mask .*a\.png: value 3 at x 0, y 1 is no class \(nor is 5\); the classes are 0 c0, 1 c1, 2 c2, "
            r"and 255 is void\. Correct the masks, or name all classes",
            id="two-strays",
        ),
        pytest.param([[0, 0, 254]], {"num_classes": 3}, r"value 254 at x 2, y 0 is no class; the", id="one-stray"),
        pytest.param([[30]], {"num_classes": 21}, r"11 c11 and 9 more, and 255 is void", id="many-classes"),
        pytest.param([[0]], {"num_classes": 1, "values": (1,)}, r"value 0 at .*the classes are 1 c0,", id="numbered"),
        pytest.param(
            [[0, 255, 128]],
            {"num_classes": 2, "binary": True},
            r"value 128 at x 2, y 0 is no class; the classes are 0 c0, 255 c1\. Binary masks hold 0 and 255 alone",
            id="binary-smoothed",
        ),
        pytest.param([[0, 1]], {"num_classes": 2, "binary": True}, r"value 1 .*leave out --binary", id="binary-index"),
    ],
)
def test_a_value_that_is_no_class_is_named_with_file_and_place(written, options, message, tmp_path: Path) -> None:
    _mode("L")(np.array(written, np.uint8), tmp_path / "a.png")
    with pytest.raises(LabelError, match=message):
        _files(tmp_path, **options).read(0)


def test_a_jpeg_whose_values_are_blurred_is_refused_and_png_advised(tmp_path: Path) -> None:
    grid = np.kron(TWO * 255, np.ones((5, 5), np.uint8))
    Image.fromarray(grid).save(tmp_path / "a.jpg", quality=80)
    files = MaskFiles(tmp_path, pack_names(["a.jpg"]), ("no", "yes"), (0, 255), True)
    with pytest.raises(LabelError, match=r"a\.jpg: value \d+ at x \d+, y \d+ is no class.*make the masks anew as PNG"):
        files.read(0)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        pytest.param(np.array([[0, 256]], np.uint16), r"a\.png: value 256 at x 1, y 0 is no class index", id="256"),
        pytest.param(np.array([[0], [26001]], np.uint16), r"value 26001 at x 0, y 1 .*write the class", id="packed"),
        pytest.param(
            np.array([[[0, 0, 0], [128, 0, 1]]], np.uint8),
            r"a\.png: the colour \(128, 0, 1\) at x 1, y 0 is none of Pascal VOC's",
            id="colour",
        ),
        pytest.param(
            np.array([[[0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8), r"the colour \(255, 0, 0\) at x 1", id="rgba"
        ),
    ],
)
def test_what_cannot_be_an_index_is_refused(pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(LabelError, match=message):
        read_values(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["F", "CMYK"])
def test_an_image_of_another_kind_is_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "a.tif")
    with pytest.raises(LabelError, match=rf"a\.tif is an image of kind '{mode}'; a mask is a PNG"):
        read_values(tmp_path / "a.tif")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(Path.unlink, r"mask .*a\.png does not exist", id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), r"mask .*a\.png cannot be read", id="empty"),
        pytest.param(lambda path: path.write_text("no"), r"mask .*a\.png cannot be read \(not an image\)", id="text"),
        pytest.param(_cut, r"mask .*a\.png cannot be read", id="cut"),
    ],
)
def test_a_broken_file_is_named_and_is_no_fault_of_its_labels(spoil, message: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 21, (64, 64), np.uint8)
    _palette(8)(noise, tmp_path / "a.png")
    spoil(tmp_path / "a.png")
    with pytest.raises(UserError, match=message) as caught:
        _files(tmp_path, 21).read(0)
    assert not isinstance(caught.value, LabelError)


def test_masks_survive_the_way_to_a_worker_and_can_be_selected(tmp_path: Path) -> None:
    for value in range(3):
        _mode("L")(np.full((1, 1), value, np.uint8), tmp_path / f"{value}.png")
    files = MaskFiles(tmp_path, pack_names([f"{value}.png" for value in range(3)]), ("x", "y", "z"), (0, 1, 2))
    files.read(0)
    again = pickle.loads(pickle.dumps(files.select(np.array([2, 0]))))
    assert [again.read(position).tolist() for position in range(2)] == [[[2]], [[0]]]
    assert again.where(0) == f"mask {tmp_path / '2.png'}"
    assert len(pickle.dumps(files.select(np.zeros(10_000, np.int64)))) < 20 * 10_000


def _deep_png(pixels: np.ndarray, path: Path, kind: int) -> None:
    """A PNG with several channels of 16 bits; ``kind`` is 2 RGB, 4 grey with alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


DEEP = {"rgb": (2, 3, False), "grey-with-alpha": (4, 1, True), "rgb-with-alpha": (6, 3, True)}


@pytest.mark.parametrize("case", DEEP)
def test_several_channels_of_16_bits_keep_their_lower_half(case: str, tmp_path: Path) -> None:
    kind, channels, has_alpha = DEEP[case]
    values = np.repeat(INDICES[..., None].astype(np.uint16), channels, axis=2)
    alpha = [np.full((*INDICES.shape, 1), 65535, np.uint16)] if has_alpha else []
    _deep_png(np.concatenate([values, *alpha], axis=2), tmp_path / "a.png", kind)
    assert read_values(tmp_path / "a.png").tolist() == INDICES.tolist()
    _deep_png(np.concatenate([values + 300, *alpha], axis=2), tmp_path / "a.png", kind)
    with pytest.raises(LabelError, match=r"a\.png: value 300 at x 0, y 0 is no class index"):
        read_values(tmp_path / "a.png")


def test_a_tiff_of_three_channels_of_16_bits_keeps_its_lower_half(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.tif"), np.repeat(INDICES[..., None].astype(np.uint16), 3, axis=2))
    assert read_values(tmp_path / "a.tif").tolist() == INDICES.tolist()


@pytest.mark.parametrize(("grey", "index"), [(64, 56), (128, 7), (192, 63)])
def test_greys_that_are_colours_of_voc_are_never_guessed_at(grey: int, index: int, tmp_path: Path) -> None:
    _grey_as_rgb(np.array([[0, grey]], np.uint8), tmp_path / "a.png")
    message = rf"grey {grey} in three channels, at x 1, y 0, could be index {grey} or the colour of index {index} .*PNG"
    with pytest.raises(LabelError, match=message):
        read_values(tmp_path / "a.png")
    _mode("L")(np.array([[0, grey]], np.uint8), tmp_path / "a.png")
    assert read_values(tmp_path / "a.png").tolist() == [[0, grey]]
    for sure in ([[0, 1, grey]], [[0, 255]], [[0, 0]]):
        _grey_as_rgb(np.array(sure, np.uint8), tmp_path / "a.png")
        assert read_values(tmp_path / "a.png").tolist() == sure


def test_numbers_that_mean_void_become_255(tmp_path: Path) -> None:
    _mode("L")(np.array([[0, 1, 2, 3, 255]], np.uint8), tmp_path / "a.png")
    files = MaskFiles(tmp_path, pack_names(["a.png"]), ("x", "y"), (1, 3), void_values=(0, 2))
    assert files.read(0).tolist() == [[255, 0, 255, 1, 255]]
