"""Pascal VOC: layouts, corners, classes, splits, and what is wrong with files."""

from __future__ import annotations

from pathlib import Path

import pytest

from effdense.datasets import voc
from effdense.datasets.voc import VOC_CLASSES, open_voc, voc_splits
from effdense.errors import UserError

BOX = (11, 6, 20, 15)


def _rewrite(root: Path, stem: str, old: str, new: str) -> None:
    path = root / "Annotations" / f"{stem}.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("where", ["", "VOC2007", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_folder_itself_or_the_kit_around_it_will_do(where: str, tmp_path: Path, write_voc) -> None:
    write_voc({"x": [("cat", BOX)]}, {"train": ["x"]}, root=tmp_path / where)
    index = open_voc(tmp_path, "train")
    assert index.sample(0).boxes_xyxy.tolist() == [[10, 5, 20, 15]]
    assert index.source == tmp_path / where / "Annotations"


@pytest.mark.parametrize("folders", ["beside", "by-split"])
def test_xml_beside_images_will_do(folders: str, tmp_path: Path, write_voc) -> None:
    root = write_voc({"x": [("cat", BOX)], "y": []}, root=tmp_path / "source")
    for stem, split in (("x", "train"), ("y", "valid")):
        target = tmp_path / "flat" / (split if folders == "by-split" else "")
        target.mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").rename(target / f"{stem}.xml")
        (root / "JPEGImages" / f"{stem}.jpg").rename(target / f"{stem}.jpg")
    if folders == "beside":
        index = open_voc(tmp_path / "flat", "trainval")
        assert index.image_names == ["x", "y"]
    else:
        index = open_voc(tmp_path / "flat", "val")
        assert index.image_names == ["valid/y"]
        assert voc_splits(tmp_path / "flat") == ["train", "val"]
    assert index.sample(0).image.shape == (40, 60, 3)


@pytest.mark.parametrize("litter", ["._x.xml", ".ipynb_checkpoints/x.xml", "__MACOSX/x.xml", "__MACOSX/sub/._x.xml"])
@pytest.mark.parametrize("split", ["train", "trainval"])
def test_what_tools_leave_behind_is_no_annotation(litter: str, split: str, tmp_path: Path, write_voc) -> None:
    write_voc({"x": [("cat", BOX)]}, {"train": ["x"]} if split == "train" else None)
    path = tmp_path / "Annotations" / litter
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x00\x05\x16\x07 Mac OS X")
    assert open_voc(tmp_path, split).image_names == ["x"]


def test_nothing_but_what_tools_leave_behind_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "._x.xml").write_bytes(b"\x00\x05\x16\x07")
    with pytest.raises(UserError, match="does not look like Pascal VOC"):
        open_voc(tmp_path, "train")


def test_a_root_inside_a_hidden_folder_is_read(tmp_path: Path, write_voc) -> None:
    root = write_voc({"x": [("cat", BOX)]}, {"train": ["x"]}, root=tmp_path / ".cache" / "voc")
    assert open_voc(root, "train").image_names == ["x"]


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        pytest.param((1, 1, 60, 40), [0, 0, 60, 40], id="whole-image"),
        pytest.param((11, 6, 20, 15), [10, 5, 20, 15], id="inside"),
        pytest.param((" 11.25", "6.5\n", 20.75, 15), [10.25, 5.5, 20.75, 15], id="float"),
        pytest.param((20, 6, 20, 15), [19, 5, 19, 15], id="no-width"),
        pytest.param((20, 15, 20, 15), [19, 14, 19, 14], id="a-click"),
        pytest.param((20.5, 6, 20, 15), [19.5, 5, 20, 15], id="half-a-pixel-wide"),
        pytest.param((0, 6, 61, 15), [-1, 5, 61, 15], id="a-stray-zero-among-ones"),
    ],
)
def test_corners_count_from_one_and_include_the_last_pixel(corners, expected: list[float], write_voc) -> None:
    files = {"x": [("cat", corners), ("cat", (1, 1, 5, 5)), ("cat", (1, 1, 5, 5))]}
    index = open_voc(write_voc(files, {"train": ["x"]}), "train")
    assert index.boxes_xyxy[0].tolist() == expected
    x1, y1, x2, y2 = expected
    assert index.boxes_written_xywh[0].tolist() == [x1, y1, x2 - x1, y2 - y1]
    assert index.areas[0] == (x2 - x1) * (y2 - y1)
    assert index.notes == ()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_set_that_counts_from_zero_is_recognised_over_all_its_files(split: str, write_voc) -> None:
    root = write_voc({"x": [("cat", (0, 3, 5, 6))], "y": [("cat", BOX)]}, {"train": ["x"], "val": ["y"]})
    index = open_voc(root, split)
    assert index.boxes_xyxy.tolist() == [[0, 3, 5, 6] if split == "train" else [11, 6, 20, 15]]
    assert "counted from 0" in index.notes[0]


@pytest.mark.parametrize(
    ("classes_txt", "found", "expected"),
    [
        pytest.param(None, ["zebra", "ant"], ("ant", "zebra"), id="sorted"),
        pytest.param(None, ["train", "aeroplane"], VOC_CLASSES, id="twenty"),
        pytest.param(None, ["aeroplane", "ant"], ("aeroplane", "ant"), id="not-the-twenty"),
        pytest.param("b\na\n\n", ["a"], ("b", "a"), id="names"),
        pytest.param("0 background\n1 b\n2 a thing\n", ["b"], ("b", "a thing"), id="numbered"),
        pytest.param("2 a\n1 b\n", ["b"], ("b", "a"), id="numbered-in-any-order"),
        pytest.param("background\nb\n", ["b"], ("b",), id="background"),
        pytest.param("\ufeffb\n", ["b"], ("b",), id="byte-order-mark"),
    ],
)
def test_classes_come_in_a_stable_order(classes_txt, found: list[str], expected, tmp_path: Path, write_voc) -> None:
    write_voc({name: [(name, BOX)] for name in found}, {"train": found[:1], "val": found[1:]})
    if classes_txt is not None:
        (tmp_path / "classes.txt").write_text(classes_txt, encoding="utf-8")
    for split in ("train", "val"):
        index = open_voc(tmp_path, split)
        assert index.class_names == expected
        assert index.category_ids == tuple(range(1, len(expected) + 1))
        assert [index.class_names[label] for label in index.labels] == (found[:1] if split == "train" else found[1:])


def test_a_class_named_twice_is_an_error(tmp_path: Path, write_voc) -> None:
    write_voc({"x": []}, {"train": ["x"]})
    (tmp_path / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match=r"classes\.txt names a class twice: a"):
        open_voc(tmp_path, "train")


def test_a_name_that_is_no_class_is_kept_for_the_doctor_with_its_line(tmp_path: Path, write_voc) -> None:
    write_voc({"x": [("cat", BOX), ("cta", BOX)]}, {"train": ["x"]})
    (tmp_path / "classes.txt").write_text("cat\n")
    index = open_voc(tmp_path, "train")
    assert index.labels.tolist() == [0, -1]
    assert index.unknown_names == ("cta",)
    assert index.where(1) == f"{tmp_path}/Annotations/x.xml:5"


def test_difficult_is_read_and_parts_are_passed_over(write_voc) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>"
    objects = [("cat", BOX, f"<difficult>1</difficult>{part}"), ("dog", BOX, "<difficult>0</difficult>")]
    index = open_voc(write_voc({"x": objects}, {"train": ["x"]}), "train")
    assert index.difficult.tolist() == [True, False]
    assert [index.class_names[label] for label in index.labels] == ["cat", "dog"]
    assert index.boxes_xyxy.tolist() == [[10, 5, 20, 15]] * 2
    annotations = index.to_coco()["annotations"]
    assert [annotation.get("ignore", 0) for annotation in annotations] == [1, 0]


def test_ids_count_from_one_in_the_order_of_the_list(write_voc) -> None:
    root = write_voc({"a": [("cat", BOX)], "b": [], "c": [("cat", BOX)]}, {"train": ["c", "b", "a"]})
    index = open_voc(root, "train")
    assert index.image_ids.tolist() == [1, 2, 3]
    assert index.annotation_ids.tolist() == [1, 2]
    assert index.image_names == ["c", "b", "a"]
    assert index.sample(1).boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("line", ["x y.z", "x y.z\r", "  x y.z  ", "x y.z.jpg", "q 1", "q  -1"])
def test_lines_of_a_list_may_carry_blanks_extensions_or_flags(line: str, write_voc) -> None:
    root = write_voc({"x y.z": [], "q": []}, {"train": [line, ""]})
    assert open_voc(root, "train").image_names == ["q" if line.startswith("q") else "x y.z"]


def test_trainval_is_joined_where_it_has_no_list(write_voc) -> None:
    root = write_voc({"a": [], "b": [], "c": []}, {"train": ["b"], "val": ["a"], "test": ["c"], "cat_train": ["a"]})
    assert open_voc(root, "trainval").image_names == ["b", "a"]
    assert voc_splits(root) == ["train", "val", "test"]


@pytest.mark.parametrize("folder", ["ImageSets/Segmentation", "ImageSets"])
def test_lists_may_lie_elsewhere_in_imagesets(folder: str, tmp_path: Path, write_voc) -> None:
    write_voc({"a": [], "b": []})
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "valid.txt").write_text("b\n")
    assert open_voc(tmp_path, "val").image_names == ["b"]


def test_without_lists_the_split_hangs_on_names_alone_and_is_said(write_voc) -> None:
    root = write_voc({f"{i:03d}": [] for i in range(60)})
    train, val = (open_voc(root, split) for split in ("train", "val"))
    assert sorted(train.image_names + val.image_names) == [f"{i:03d}" for i in range(60)]
    assert 6 <= len(val) <= 18
    assert f"{len(train)} images are train and {len(val)} val" in train.notes[-1]
    assert len(open_voc(root, "trainval")) == 60
    before = set(val.image_names)
    write_voc({"100": []})
    assert set(open_voc(root, "val").image_names) - {"100"} == before


@pytest.mark.parametrize(
    ("splits", "asked", "message"),
    [
        pytest.param(
            {"train": ["x"], "test": ["x"]},
            "tset",
            r"no split 'tset', only test, train; did you mean 'test'",
            id="typo",
        ),
        pytest.param({"train": ["x"]}, "val", r"no split 'val', only train", id="no-val"),
        pytest.param({}, "test", r"no split 'test', only train, val, trainval", id="no-lists"),
        pytest.param(
            {"train": ["x", "", "nope"]}, "train", r"train\.txt:3: 'nope' has no annotation file nope\.xml", id="line"
        ),
    ],
)
def test_a_split_that_is_not_there_is_an_error(splits, asked: str, message: str, write_voc) -> None:
    root = write_voc({"x": []}, splits)
    with pytest.raises(UserError, match=message):
        open_voc(root, asked)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("</object>", "</objekt>", r"x\.xml:4: not valid XML \(mismatched tag\)", id="tag"),
        pytest.param("\n</annotation>", "", r"x\.xml:4: not valid XML \(no element found\)", id="cut"),
        pytest.param(
            "<xmin>11</xmin>", "<xmin>left</xmin>", r"x\.xml:4: <xmin> must be a number, got 'left'", id="text"
        ),
        pytest.param("<xmin>11</xmin>", "<xmin>nan</xmin>", r"x\.xml:4: <xmin> must be a number", id="nan"),
        pytest.param("<xmin>11</xmin>", "", r"x\.xml:4: object 'cat' has no <bndbox> with xmin", id="corner"),
        pytest.param("<name>cat</name>", "", r"x\.xml:4: an object without a <name>", id="name"),
        pytest.param("<annotation>", "<html>", r"x\.xml:1: expected <annotation>, got <html>", id="other"),
        pytest.param(
            "<annotation>", '\n<!DOCTYPE a [<!ENTITY b "c">]><annotation>', r"x\.xml:2: a document type", id="entities"
        ),
    ],
)
def test_a_broken_annotation_is_an_error_with_file_and_line(old: str, new: str, message: str, write_voc) -> None:
    root = write_voc({"x": [("cat", BOX)]}, {"train": ["x"]})
    open_voc(root, "train")
    _rewrite(root, "x", old, new)
    with pytest.raises(UserError, match=message) as caught:
        open_voc(root, "train")
    assert "encoding" not in str(caught.value)


def test_an_empty_annotation_file_is_an_error_with_its_line(write_voc) -> None:
    root = write_voc({"x": []}, {"train": ["x"]})
    (root / "Annotations/x.xml").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.xml:1: not valid XML"):
        open_voc(root, "train")


@pytest.mark.parametrize("encoding", ["GB2312", "big5", "nonsense", "hex", "idna", "punycode", "utf-16"])
def test_an_encoding_that_cannot_be_read_is_an_error_with_file_and_line(encoding: str, write_voc) -> None:
    root = write_voc({"x": [("cat", BOX)]}, {"train": ["x"]})
    _rewrite(root, "x", "<annotation>", f'<?xml version="1.0" encoding="{encoding}"?><annotation>')
    with pytest.raises(UserError, match=r"x\.xml:1: .*encoding"):
        open_voc(root, "train")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "windows-1252"])
def test_an_encoding_of_single_bytes_is_read_as_declared(encoding: str, write_voc) -> None:
    root = write_voc({"x": [("kitten", BOX)]}, {"train": ["x"]})
    path = root / "Annotations/x.xml"
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + path.read_text().replace("kitten", "kätzchen")
    path.write_bytes(text.encode(encoding))
    assert open_voc(root, "train").class_names == ("kätzchen",)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("x\nkätzchen\n".encode("latin-1"), id="latin-1"),
        pytest.param("x\r\nkätzchen\r\n".encode("latin-1"), id="carriage-returns"),
        pytest.param(b"\xef\xbb\xbf" + "x\nkätzchen\n".encode("latin-1"), id="after-a-mark"),
    ],
)
@pytest.mark.parametrize("name", ["classes.txt", "ImageSets/Main/train.txt"])
def test_a_list_that_is_not_utf_8_is_an_error_with_file_and_line(name: str, content: bytes, write_voc) -> None:
    root = write_voc({"x": []}, {"train": ["x"]})
    (root / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}:2: the text is not UTF-8"):
        open_voc(root, "train")


def test_all_broken_annotations_are_named_at_once(write_voc) -> None:
    root = write_voc({f"x{i:02d}": [("cat", BOX)] for i in range(12)}, {"train": ["x00"]})
    for i in range(12):
        _rewrite(root, f"x{i:02d}", "</object>", "")
    with pytest.raises(UserError, match=r"(?s)x00\.xml:5.*x09\.xml:5.*and 2 more"):
        open_voc(root, "train")


def test_a_size_that_is_missing_comes_from_the_image(write_voc) -> None:
    root = write_voc({"x": [("cat", BOX)]}, {"train": ["x"]})
    _rewrite(root, "x", "<size><width>60</width><height>40</height><depth>3</depth></size>", "")
    index = open_voc(root, "train")
    assert index.size_hw(0) == (40, 60)
    assert index.sample(0).original_size_hw == (40, 60)


@pytest.mark.parametrize(
    ("on_disk", "stated", "chosen"),
    [
        pytest.param(["x.png"], "x.jpg", "x.png", id="stale-extension"),
        pytest.param(["x.JPG"], "", "x.JPG", id="capitals"),
        pytest.param(["x.jpg", "x.png"], "x.png", "x.png", id="stated-of-two"),
        pytest.param(["x.png", "x.jpg"], "other", "x.jpg", id="common-of-two"),
        pytest.param(["y.png"], "C:\\pictures\\y.png", "y.png", id="stated-only"),
        pytest.param(["x.jpg", "y.jpg"], "y.jpg", "x.jpg", id="stale-name"),
        pytest.param([], "y.jpg", "y.jpg", id="missing"),
        pytest.param([], "", "x.jpg", id="missing-unstated"),
    ],
)
def test_the_image_is_found_by_stem_or_else_by_its_stated_name(
    on_disk: list[str], stated: str, chosen: str, write_voc, write_image
) -> None:
    root = write_voc({"x": []}, {"train": ["x"]})
    (root / "JPEGImages/x.jpg").unlink()
    for name in on_disk:
        write_image(root / "JPEGImages" / name)
    _rewrite(root, "x", "<filename>x.jpg</filename>", f"<filename>{stated}</filename>")
    assert open_voc(root, "train").path(0) == root / "JPEGImages" / chosen


def test_two_splits_of_one_root_are_parsed_once_but_changes_are_seen(write_voc, monkeypatch) -> None:
    root = write_voc({"x": [("cat", BOX)], "y": [("dog", BOX)]}, {"train": ["x"], "val": ["y"]})
    calls: list[Path] = []
    parse = voc.parse_voc
    monkeypatch.setattr(voc, "parse_voc", lambda path: calls.append(path) or parse(path))
    open_voc(root, "train")
    open_voc(root, "val")
    assert len(calls) == 2
    _rewrite(root, "x", "cat", "a-much-longer-name")
    assert open_voc(root, "train").class_names == ("a-much-longer-name", "dog")


@pytest.mark.parametrize("holds", [[], ["train2017/", "annotations/"]])
def test_a_folder_that_is_no_voc_says_what_was_looked_for_and_found(holds: list[str], tmp_path: Path) -> None:
    for name in holds:
        (tmp_path / name).mkdir()
    found = ", ".join(sorted(holds)) or "nothing"
    with pytest.raises(UserError, match=rf"looked for Annotations/\*\.xml.*Found there: {found}\."):
        open_voc(tmp_path, "train")
