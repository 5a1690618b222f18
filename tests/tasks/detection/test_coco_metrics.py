from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from effdense.errors import UserError
from effdense.files import write_atomically
from effdense.tasks.detection.metrics.coco_metrics import coco_metrics
from effdense.tasks.detection.metrics.ground_truth import GroundTruthTable, complete_coco
from effdense.tasks.detection.metrics.tables import DetectionTable
from effdense.types import Detections

BACKENDS = ("hotcoco", "pycocotools")
GOOD = {"image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "score": 0.9}


def truth(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "width": 100, "height": 100, "file_name": "a.jpg"}, {"id": 5}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
        ],
        **changes,
    }


def table(*entries: dict[str, Any]) -> DetectionTable:
    return DetectionTable.from_entries([{**GOOD, **entry} for entry in entries])


@pytest.mark.parametrize("backend", BACKENDS)
class TestNumbers:
    def test_a_perfect_detection_scores_one_and_an_absent_class_nothing(self, backend: str) -> None:
        result = coco_metrics(truth(), table({}), backend=backend)
        assert result.metrics["AP"] == pytest.approx(1.0)
        assert math.isnan(result.metrics["APsmall"])
        assert result.class_names == ("dog", "cat")
        assert result.category_ids == (3, 7)
        assert result.instances.tolist() == [0, 1]
        assert np.isnan(result.ap[0])
        assert result.ap[1] == pytest.approx(1.0)
        assert np.isnan(result.precision50[:, 0]).all()
        assert result.precision50.shape == (101, 2)
        assert (result.map, result.map50) == pytest.approx((1.0, 1.0))

    def test_no_detection_at_all_scores_zero(self, backend: str) -> None:
        result = coco_metrics(truth(), table(), backend=backend)
        assert result.metrics["AP"] == 0.0
        assert result.metrics["AR100"] == 0.0
        assert result.num_detections == 0

    def test_no_object_at_all_has_no_score(self, backend: str) -> None:
        result = coco_metrics(truth(annotations=[]), table({}), backend=backend)
        assert all(math.isnan(value) for value in result.metrics.values())
        assert result.map == 0.0
        assert set(result.numbers.values()) == {None}

    def test_a_crowd_costs_nothing_found_or_missed(self, backend: str) -> None:
        crowd = {"id": 2, "image_id": 1, "category_id": 7, "bbox": [60, 60, 40, 40], "area": 1600, "iscrowd": 1}
        with_crowd = truth(annotations=[*truth()["annotations"], crowd])
        on_crowd = {"bbox": [62, 62, 10, 10], "score": 0.99}
        assert coco_metrics(with_crowd, table({}, on_crowd), backend=backend).metrics["AP"] == pytest.approx(1.0)
        assert coco_metrics(truth(), table({}, on_crowd), backend=backend).metrics["AP"] < 0.6

    def test_an_annotation_id_of_zero_can_be_matched(self, backend: str) -> None:
        zero = [{**truth()["annotations"][0], "id": 0}]
        assert coco_metrics(truth(annotations=zero), table({}), backend=backend).metrics["AP"] == pytest.approx(1.0)

    def test_missing_area_and_iscrowd_are_filled_in(self, backend: str, tmp_path: Path) -> None:
        bare = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40]}]
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth(annotations=bare)))
        for source in (truth(annotations=bare), path):
            result = coco_metrics(source, table({}), backend=backend)
            assert result.metrics["APmedium"] == pytest.approx(1.0)
            assert math.isnan(result.metrics["APsmall"])

    def test_ids_of_other_images_and_categories_are_refused(
        self, backend: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for change, words in (
            ({"image_id": 9}, "2 of 3 detections name 1 image id.*the first being 9"),
            ({"category_id": 1}, "2 of 3 detections name 1 category id.*the first being 1;"),
        ):
            found = table({}, change, change)
            found.to_json(tmp_path / "found.json")
            for source in (found, tmp_path / "found.json"):
                with pytest.raises(UserError, match=words):
                    coco_metrics(truth(), source, backend=backend)
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param('[{"image_id": 1,\n "category_id": 7,\n oops}]', r"found\.json:3: not valid JSON", id="broken"),
        pytest.param("", r"found\.json:1: not valid JSON", id="empty file"),
        pytest.param(b"\xff\xfe[]", r"found\.json", id="not text"),
        pytest.param('{"annotations": []}', "expected a list.*is it an annotation file", id="object"),
        pytest.param("[3]", "entry 0 is a number", id="number"),
        pytest.param(json.dumps([GOOD, {**GOOD, "bbox": [1, 2, 3]}]), "bbox of entry 1 is", id="three corners"),
        pytest.param(json.dumps([GOOD, {**GOOD, "score": None}]), "score of entry 1 is None", id="null score"),
        pytest.param(json.dumps([GOOD, {**GOOD, "score": math.nan}]), "score of entry 1", id="NaN score"),
        pytest.param(json.dumps([GOOD, {**GOOD, "score": math.inf}]), "score of entry 1", id="infinite score"),
        pytest.param(json.dumps([GOOD, {**GOOD, "score": "0.5"}]), "score of entry 1 is '0.5'", id="text score"),
        pytest.param(json.dumps([GOOD, {**GOOD, "image_id": "1"}]), "image_id of entry 1 is '1'", id="text id"),
        pytest.param(json.dumps([GOOD, {**GOOD, "image_id": -1}]), "image_id of entry 1 is -1", id="negative id"),
        *(
            pytest.param(
                json.dumps([GOOD, {k: v for k, v in GOOD.items() if k != key}]),
                f"entry 1 has no '{key}'",
                id=f"no {key}",
            )
            for key in GOOD
        ),
    ],
)
def test_a_faulty_results_file_is_refused_naming_line_or_entry(
    content: str | bytes, words: str, backend: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "truth.json").write_text(json.dumps(truth()))
    with pytest.raises(UserError, match=words):
        coco_metrics(tmp_path / "truth.json", path, backend=backend)
    with pytest.raises(UserError, match=words):
        DetectionTable.from_json(path)
    assert capfd.readouterr() == ("", "")


ONE = truth()["annotations"][0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param('{"images": [],\n]', r"truth\.json:2: not valid JSON", id="broken"),
        pytest.param("[]", "is it a results file", id="list"),
        pytest.param('{"images": [], "annotations": []}', "no list 'categories'", id="no categories"),
        pytest.param(json.dumps(truth(categories=[])), "lists no category", id="empty categories"),
        pytest.param(json.dumps(truth(images=[])), "lists no image|image id", id="no images"),
        pytest.param(json.dumps(truth(categories=[{"id": 7}])), "category id 7 has no 'name'", id="no name"),
        pytest.param(
            json.dumps(truth(annotations=[{k: v for k, v in ONE.items() if k != "bbox"}])),
            "annotation id 1 has no 'bbox'",
            id="no bbox",
        ),
        pytest.param(
            json.dumps(truth(annotations=[{**ONE, "bbox": [1, 2, None, 4]}])),
            "bbox of annotation id 1",
            id="null in bbox",
        ),
    ],
)
def test_a_faulty_annotation_file_is_refused_naming_line_or_id(
    content: str, words: str, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "truth.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        coco_metrics(path, table({}), backend=backend)


def test_an_annotation_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth(annotations=[ONE, {**ONE, "bbox": [50, 50, 9, 9]}])))
    for backend in BACKENDS:
        with pytest.raises(UserError, match="annotation id 1 occurs twice"):
            coco_metrics(path, table({}), backend=backend)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"backend": "hotcocoa"}, "did you mean 'hotcoco'", id="backend"),
        pytest.param({"iou_type": "box"}, "did you mean 'bbox'", id="iou type"),
        pytest.param({"max_detections": (100, 10, 1)}, "three ascending numbers", id="descending"),
        pytest.param({"max_detections": (100,)}, "three ascending numbers", id="one limit"),
        pytest.param({"iou_type": "segm"}, "segmentation|boxes only", id="masks of a table"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        coco_metrics(truth(), table({}), **arguments)


def test_a_missing_file_is_named() -> None:
    for arguments in ((Path("no/such.json"), table({})), (truth(), Path("no/such.json"))):
        with pytest.raises(UserError, match=r"no/such\.json: cannot be read"):
            coco_metrics(*arguments)


def test_the_handed_in_annotations_stay_as_they_were() -> None:
    before, after = truth(annotations=[{**ONE, "id": 0}]), truth(annotations=[{**ONE, "id": 0}])
    for backend in BACKENDS:
        coco_metrics(after, table({}), backend=backend)
    assert after == before
    assert complete_coco(after)[0]["annotations"][0]["id"] == 1


class TestDetectionTable:
    def test_written_and_read_back_it_is_the_same_to_the_last_bit(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        before = DetectionTable(
            rng.integers(0, 2**40, 50), rng.integers(0, 90, 50), rng.uniform(0, 500, (50, 4)), rng.random(50)
        )
        before.to_json(tmp_path / "new" / "found.json")
        after = DetectionTable.from_json(tmp_path / "new" / "found.json")
        for name in ("image_ids", "category_ids", "boxes_xywh", "scores"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["found.json"]

    def test_detections_become_the_data_sets_own_ids(self) -> None:
        found = [
            Detections(np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([1], np.int64)),
            Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)),
            Detections(np.array([[0, 0, 1, 1]], np.float32), np.array([0.25], np.float32), np.array([0], np.int64)),
        ]
        made = DetectionTable.from_detections(found, [30, 20, 10], (5, 90))
        assert made.image_ids.tolist() == [30, 10]
        assert made.category_ids.tolist() == [90, 5]
        assert made.boxes_xywh.tolist() == [[1, 2, 3, 6], [0, 0, 1, 1]]
        assert len(DetectionTable.from_detections([], [], (5,))) == 0

    def test_labels_beyond_the_classes_are_refused(self) -> None:
        found = Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.array([4], np.int64))
        with pytest.raises(UserError, match="1 classes"):
            DetectionTable.from_detections([found], [1], (5,))

    def test_whole_numbers_written_as_decimals_are_ids(self) -> None:
        assert DetectionTable.from_entries([{**GOOD, "image_id": 1.0}]).image_ids.tolist() == [1]

    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "found.json"
        path.write_text("old")

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="No space left"):
            table({}).to_json(path)
        assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("found.json", "old")]

    def test_a_folder_that_is_a_file_is_an_error_for_the_user(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            write_atomically(tmp_path / "file" / "found.json", "x")


class TestGroundTruthTable:
    def test_coco_through_a_table_scores_the_same(self) -> None:
        direct, through = (coco_metrics(source, table({})) for source in (truth(), GroundTruthTable.from_coco(truth())))
        assert direct.to_dict() == through.to_dict()

    def test_an_index_keeps_ids_boxes_areas_and_ignores_what_is_difficult(self) -> None:
        index: Any = SimpleNamespace(
            source=Path("here.json"),
            image_ids=np.array([8, 2]),
            offsets=np.array([0, 2, 4]),
            class_names=("dog", "cat"),
            category_ids=(9, 4),
            labels=np.array([0, 1, 1, -1]),
            boxes_written_xywh=np.arange(16.0).reshape(4, 4),
            areas=np.array([1.0, 2.0, 3.0, 4.0]),
            crowd=np.array([True, False, False, False]),
            difficult=np.array([False, True, False, False]),
        )
        made = GroundTruthTable.from_index(index)
        assert made.class_names == ("cat", "dog")
        assert made.class_category_ids.tolist() == [4, 9]
        assert made.image_ids.tolist() == [8, 8, 2]
        assert made.category_ids.tolist() == [9, 4, 4]
        annotations = made.to_coco()["annotations"]
        assert [one["iscrowd"] for one in annotations] == [1, 1, 0]
        assert [one["area"] for one in annotations] == [1.0, 2.0, 3.0]
        assert annotations[2]["bbox"] == [8.0, 9.0, 10.0, 11.0]

    def test_objects_of_unlisted_images_or_categories_are_left_out(self) -> None:
        stray = truth(annotations=[ONE, {**ONE, "id": 2, "image_id": 99}, {**ONE, "id": 3, "category_id": 99}])
        assert len(GroundTruthTable.from_coco(stray)) == 1
        for backend in BACKENDS:
            result = coco_metrics(stray, table({}), backend=backend)
            assert result.instances.tolist() == [0, 1]
            assert result.metrics["AP"] == pytest.approx(1.0)


def test_an_unknown_id_far_down_a_large_file_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(truth()))
    content = json.dumps([GOOD] * 15_000 + [{**GOOD, "image_id": 9}])
    assert len(content) > 1_100_000
    (tmp_path / "found.json").write_text(content)
    with pytest.raises(UserError, match="1 of 15001 detections name 1 image id"):
        coco_metrics(tmp_path / "truth.json", tmp_path / "found.json")
