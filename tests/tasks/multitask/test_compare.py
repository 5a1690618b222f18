"""The transfer report: the budget of the single runs, which of them are run, and what the report says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import effdense
from effdense.config import Parsed, load_yaml, to_yaml
from effdense.errors import UserError
from effdense.model_header import read_header
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.multitask import compare, run
from effdense.tasks.multitask.budget import Budget, budget_alone, images_seen, settings_alone
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.multitask.costs import Cost, Costs
from effdense.tasks.multitask.run import begin
from effdense.tasks.multitask.train import train
from effdense.tasks.multitask.transfer import Compared, Transfer, markdown, read_transfer, write_transfer
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tools.console import show_comparison
from effdense.training.learner import peak_lr
from effdense.training.run_folder import CONFIG, METRICS, STATE

# --- budget


@pytest.mark.parametrize(
    ("seen", "batches", "epochs", "num_images", "expected"),
    [
        pytest.param(424, 53, 20, 424, Budget(8, 20, 424), id="both labels everywhere: the shared run's batches"),
        pytest.param(416, 52, 20, 419, Budget(8, 20, 416), id="what does not fill a batch is left out"),
        pytest.param(400, 100, 10, 400, Budget(4, 10, 400), id="half of each batch"),
        pytest.param(400, 100, 10, 100, Budget(4, 40, 100), id="a small pool is drawn again: more epochs"),
        pytest.param(400, 100, 10, 150, Budget(4, 27, 148), id="whole epochs"),
        pytest.param(100, 100, 1, 1000, Budget(1, 1, 1000), id="one epoch at least"),
        pytest.param(2, 2, 3, 1, Budget(1, 6, 1), id="one image"),
        pytest.param(6, 2, 1, 2, Budget(3, 3, 2), id="fewer images than a batch"),
        pytest.param(250, 100, 4, 250, Budget(2, 4, 250), id="2.5 a batch on average"),
    ],
)
def test_the_budget_is_as_many_labelled_images(
    seen: float, batches: int, epochs: int, num_images: int, expected: Budget
) -> None:
    found = budget_alone(seen, batches, epochs, num_images)
    assert found == expected
    off = abs(found.images - epochs * seen)
    assert off <= found.images_per_epoch / 2 or found.epochs == 1  # no number of epochs comes closer


def test_the_images_of_a_budget_are_those_of_its_epochs() -> None:
    assert Budget(4, 10, 100).images == 1000


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_smaller_batch_keeps_the_learning_rate_of_a_step(optimizer: Any) -> None:
    shared = MultitaskConfig(batch_size=8, epochs=10, warmup_epochs=1.0, eval_every=2, optimizer=optimizer)
    changes = settings_alone(shared, Budget(2, 40, 100))
    alone = shared.detection(**changes)
    assert (alone.batch_size, alone.epochs, alone.warmup_epochs, alone.eval_every) == (2, 40, 4.0, 8)
    assert peak_lr(alone) == pytest.approx(peak_lr(shared))


def test_the_same_budget_changes_nothing() -> None:
    shared = MultitaskConfig(batch_size=8, epochs=10)
    assert shared.segmentation(**settings_alone(shared, Budget(8, 10, 424))) == shared.segmentation()


def test_a_short_budget_is_a_valid_run() -> None:
    shared = MultitaskConfig(batch_size=8, epochs=20, warmup_epochs=5.0, eval_every=3)
    alone = shared.detection(**settings_alone(shared, Budget(4, 1, 10)))
    assert (alone.epochs, alone.eval_every) == (1, 1)


def test_images_seen_are_summed_over_epochs() -> None:
    records = [{"images_with_boxes": 3, "images_with_masks": 5}, {"images_with_boxes": 4, "images_with_masks": 5}]
    assert images_seen(records, "images_with_boxes") == 7
    assert images_seen([], "images_with_masks") == 0


# --- single runs


@dataclass
class Stand:
    """In place of a training: notes how it was called, and leaves what a run of so many epochs leaves."""

    epochs: int | None = None
    calls: list[bool] = field(default_factory=list)
    interrupted: bool = False

    def __call__(self, config: Any, folder: Path, *, resume: bool = False) -> Path:
        self.calls.append(resume)
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            (folder / CONFIG).write_text(to_yaml(config))
        leave_state(folder, config.epochs if self.epochs is None else self.epochs)
        if self.interrupted:
            raise KeyboardInterrupt(f"go on with: --resume {folder}")
        return folder / "best.safetensors"


def leave_state(folder: Path, epoch: int, stale: int = 0) -> None:
    torch.save({"progress": {"epoch": epoch, "stale": stale}}, folder / STATE)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    train, config = Stand(), DetectionConfig(epochs=3, out=tmp_path / "alone")
    for _ in range(3):
        compare.train_alone(config, tmp_path / "alone", train)
    assert train.calls == [False]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    config = DetectionConfig(epochs=3)
    compare.train_alone(config, tmp_path, Stand(epochs=1))
    train = Stand()
    compare.train_alone(config, tmp_path, train)
    assert train.calls == [True]


@pytest.mark.parametrize(("stale", "finished"), [(1, False), (2, True)], ids=["still better", "stopped early"])
def test_a_run_that_stopped_early_is_finished(tmp_path: Path, stale: int, finished: bool) -> None:
    config = DetectionConfig(epochs=9, early_stop=2)
    leave_state(tmp_path, 4, stale)
    assert compare.is_finished(config, tmp_path) is finished
    assert not compare.is_finished(replace(config, early_stop=0), tmp_path)


def test_a_run_that_left_no_state_begins_anew(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("epochs: 99\n")  # it ended before it had a state
    train = Stand()
    compare.train_alone(DetectionConfig(epochs=3), tmp_path, train)
    assert train.calls == [False]


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    compare.train_alone(DetectionConfig(epochs=3), tmp_path, Stand())
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))} holds a run with epochs 3, .* needs 4"):
        compare.train_alone(DetectionConfig(epochs=4), tmp_path, Stand())


def test_another_machine_is_no_other_run(tmp_path: Path) -> None:
    compare.train_alone(DetectionConfig(epochs=3, device="cpu", workers=0), tmp_path, Stand())
    compare.train_alone(DetectionConfig(epochs=3, device="auto", workers=2), tmp_path, Stand())


def test_the_single_runs_have_the_shared_runs_settings_and_a_folder_each(tmp_path: Path) -> None:
    config = MultitaskConfig(
        weights="none", image_size=64, epochs=4, batch_size=4, seed=7, arch="unet", seg_loss="dice", det_focal_gamma=2.0
    )
    (tmp_path / METRICS).write_text(
        "".join(json.dumps({"images_with_boxes": 10, "images_with_masks": 30}) + "\n" for _ in range(4))
    )
    boxes = compare.planned(config, tmp_path, "detection", 20, 10)
    masks = compare.planned(config, tmp_path, "segmentation", 30, 10)
    assert (boxes.seen_together, masks.seen_together) == (40, 120)
    detector, segmenter = compare.detection_settings(config, boxes), compare.segmentation_settings(config, masks)
    for one in (detector, segmenter):
        assert (one.seed, one.image_size, one.weights) == (7, 64, "none")
    assert (detector.batch_size, detector.epochs, detector.focal_gamma) == (1, 2, 2.0)
    assert (segmenter.batch_size, segmenter.epochs, segmenter.arch, segmenter.loss) == (3, 4, "unet", "dice")
    assert (detector.out, segmenter.out) == (tmp_path / "alone/detection", tmp_path / "alone/segmentation")


def test_single_runs_of_other_settings_are_refused_before_the_shared_run_begins(tmp_path: Path) -> None:
    config = MultitaskConfig(weights="none", image_size=64, epochs=3, batch_size=6, compare=True)
    compare.check_single_runs(config, tmp_path)  # none are there yet
    for budget in (Budget(2, 7, 20), Budget(6, 3, 18)):
        alone = compare.Alone("segmentation", tmp_path / "alone/segmentation", budget, 120)
        alone.folder.mkdir(parents=True, exist_ok=True)
        (alone.folder / CONFIG).write_text(to_yaml(compare.segmentation_settings(config, alone)))
        leave_state(alone.folder, 1, 0)
        compare.check_single_runs(config, tmp_path)
        with pytest.raises(UserError, match="holds a run with image_size 64, and the comparison needs 96"):
            compare.check_single_runs(replace(config, image_size=96), tmp_path)
    with pytest.raises(UserError, match="holds a run with image_size 64"):  # before data are opened or a model is made
        train(run.resolve(replace(config, image_size=96, out=tmp_path)), tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({}, (), id="nothing"),
        pytest.param({"max_class_share": 0.75}, ("the detector alone has no masks",), id="crops"),
        pytest.param({"arch": "bifpn"}, ("alone it has one of its own",), id="pyramid"),
        pytest.param({"arch": "bifpn", "share_bifpn": False}, (), id="own-pyramid"),
        pytest.param(
            {"arch": "bifpn", "weights": "m.safetensors"},
            ("of m.safetensors it may have started with less",),
            id="file",
        ),
    ],
)
def test_what_is_not_the_same_alone_is_said(settings: dict[str, Any], says: tuple[str, ...]) -> None:
    sentences = compare.unlike(MultitaskConfig(**settings))
    assert len(sentences) == len(says)
    assert all(one in sentence for one, sentence in zip(says, sentences, strict=True))
    assert set(sentences) <= set(replace(_transfer(), unlike=sentences).sentences())


def test_settings_of_a_single_run_survive_its_config_file(tmp_path: Path) -> None:
    config = MultitaskConfig(weights="none", epochs=3, batch_size=6, warmup_epochs=0.7)
    alone = compare.Alone("detection", tmp_path, Budget(2, 7, 20), 120)
    settings = compare.detection_settings(config, alone)
    (tmp_path / CONFIG).write_text(to_yaml(settings))
    assert load_yaml(DetectionConfig, tmp_path / CONFIG).config == settings
    compare.refuse_other_settings(settings, tmp_path)


# --- report


COSTS = Costs(
    detection=Cost(3_000_000, 30.0, 20.0, 20 * 2**20, 12_000_000),
    segmentation=Cost(5_000_000, 50.0, 40.0, 40 * 2**20, 20_000_000),
    in_turn=Cost(8_000_000, 80.0, 60.0, 60 * 2**20, 32_000_000),
    shared=Cost(5_000_000, 48.0, 36.0, 39 * 2**20, 20_000_000),
    image_size=320,
    device="cpu",
    threads=2,
    repeats=15,
)


def _compared(score: str, alone: float, together: float) -> Compared:
    task = "detection" if score == "mAP" else "segmentation"
    return Compared(
        task, score, alone, together, images_alone=4000, images_together=4040, best_epoch_alone=9, epochs_alone=10,
        batch_size_alone=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("alone", "together", "sentence"),
    [
        (0.563, 0.545, "mIoU is 1.8 points lower together, 54.5 instead of 56.3: here sharing costs accuracy."),
        (0.505, 0.512, "mIoU is 0.7 points higher together, 51.2 instead of 50.5: sharing costs nothing here."),
        (0.5, 0.5, "mIoU is the same together as alone, 50.0: sharing costs nothing here."),
        (0.5, 0.4996, "mIoU is the same together as alone, 50.0: sharing costs nothing here."),
        (0.5, 0.499, "mIoU is 0.1 points lower together, 49.9 instead of 50.0: here sharing costs accuracy."),
        (0.0, 0.0, "mIoU is the same together as alone, 0.0: sharing costs nothing here."),
    ],
    ids=["worse", "better", "equal", "equal to a digit", "a little worse", "nothing learnt"],
)
def test_a_sentence_says_what_sharing_costs(alone: float, together: float, sentence: str) -> None:
    assert _compared("mIoU", alone, together).sentence() == sentence


def _transfer() -> Transfer:
    tasks = (_compared("mAP", 0.2, 0.21), _compared("mIoU", 0.563, 0.545))
    return Transfer(tasks, COSTS, 3, {"together": "runs/m/best.safetensors"})


def test_the_table_is_of_the_numbers() -> None:
    assert _transfer().rows() == [
        ("mAP", "0.2000", "0.2100", "+1.0 points"),
        ("mIoU", "0.5630", "0.5450", "-1.8 points"),
        ("parameters", "8.00 M", "5.00 M", "x 0.62"),
        ("latency", "80.0 ms", "48.0 ms", "x 0.60"),
        ("of it the network", "60.0 ms", "36.0 ms", "x 0.60"),
        ("peak memory", "60.0 MiB", "39.0 MiB", "x 0.65"),
        ("images with boxes seen", "4,000", "4,040", "x 1.01"),
        ("images with masks seen", "4,000", "4,040", "x 1.01"),
    ]


def test_the_report_says_that_it_is_one_seed_and_states_the_budgets() -> None:
    text = " ".join(markdown(_transfer()).split())
    assert "All of this is one seed (3)" in text
    assert "detection alone 10 epochs in batches of 4 and segmentation alone 10 epochs in batches of 4" in text
    assert "takes 48.0 ms in one shared pass and 80.0 ms by the two models in turn (0.60 times)" in text
    assert "| mIoU | 0.5630 | 0.5450 | -1.8 points |" in text


def test_the_files_say_the_same_as_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_transfer(tmp_path, _transfer())
    assert (path.name, (tmp_path / "compare.md").read_text()) == ("compare.json", markdown(_transfer()))
    content = json.loads(path.read_text())
    assert content["tasks"]["segmentation"]["points"] == pytest.approx(-1.8)
    assert content["costs"]["shared"]["peak_bytes"] == 39 * 2**20
    table, sentences = read_transfer(path)
    assert table.row_count == 8
    assert sentences == _transfer().sentences()
    show_comparison(path)
    shown = capsys.readouterr().out
    for row in _transfer().rows():
        assert all(cell in shown for cell in row)
    assert all(sentence in " ".join(shown.split()) for sentence in sentences)


def test_a_report_that_is_not_there_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_transfer(tmp_path / "compare.json")


# --- the whole


NUMBERS = {"train": range(9), "val": range(20, 23)}
MASKED = {"train": range(3, 9), "val": range(20, 23)}
"""Of the training images, 3 carry boxes alone; 6 carry both."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw squares on a ground: their boxes as COCO, and masks of some of the images in a folder."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, numbers in NUMBERS.items():
        for part in (split, f"images/{split}", f"masks/{split}", "annotations"):
            (root / part).mkdir(parents=True, exist_ok=True)
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
        for number in numbers:
            x, y = (int(rng.integers(0, 40)) for _ in "xy")
            picture, mask = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64), np.uint8)
            picture[y : y + 20, x : x + 20], mask[y : y + 20, x : x + 20] = (200, 40, 40), 1
            file = root / split / f"{number}.png"
            cv2.imwrite(str(file), picture)
            content["images"].append({"id": number, "file_name": file.name, "width": 64, "height": 64})
            box = {"bbox": [x, y, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
            content["annotations"].append({"id": number + 1, "image_id": number, **box})
            if number in MASKED[split]:
                (root / "images" / split / file.name).symlink_to(file)
                cv2.imwrite(str(root / "masks" / split / file.name), mask)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    (root / "classes.txt").write_text("ground\nsquare")
    return root


def _config(root: Path, out: Path, **changes: Any) -> MultitaskConfig:
    settings: dict[str, Any] = {
        "det_data": f"coco:{root}",
        "seg_data": f"folder:{root}",
        "out": out,
        "compare": True,
        "backbone": "test_efficientnet",
        "det_arch": "d0",
        "arch": "linknet",
        "bifpn_channels": 16,
        "bifpn_repeats": 1,
        "head_repeats": 1,
        "weights": "none",
        "image_size": 64,
        "batch_size": 4,
        "epochs": 2,
        "drop_path_rate": 0.0,
        "device": "cpu",
    }
    return MultitaskConfig(**(settings | changes))


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared run that was stopped in the detector's own training, and then gone on with to the end."""
    out = tmp_path_factory.mktemp("runs") / "m"
    with pytest.MonkeyPatch.context() as patch:

        def stop(config: Any, folder: Path, **_: Any) -> Path:
            raise KeyboardInterrupt(f"Stopped after epoch 1; go on with: --resume {folder}")

        patch.setattr(compare.segmentation_train, "train", stop)
        with pytest.raises(KeyboardInterrupt, match=rf"in the comparison; go on with: --resume {re.escape(str(out))}$"):
            begin(Parsed(_config(root, out), frozenset()))
    assert not (out / "compare.json").exists()
    resumed = MultitaskConfig(resume=out)
    begin(Parsed(resumed, frozenset({"resume"})))
    return out


def test_the_scores_are_those_that_each_run_recorded(out: Path) -> None:
    content = json.loads((out / "compare.json").read_text())
    boxes, masks = content["tasks"]["detection"], content["tasks"]["segmentation"]
    own = {task: read_header(out / "alone" / task / "best.safetensors") for task in content["tasks"]}
    shared = read_header(out / "best.safetensors")["scores"]
    assert boxes["alone"] == pytest.approx(own["detection"]["scores"]["AP"], abs=1e-6)
    assert masks["alone"] == pytest.approx(own["segmentation"]["scores"]["metrics"]["mIoU"], abs=1e-6)
    assert boxes["together"] == pytest.approx(shared["detection"]["AP"], abs=1e-6)
    assert masks["together"] == pytest.approx(shared["segmentation"]["mIoU"], abs=1e-6)
    assert [found["score"] for found in (boxes, masks)] == ["mAP", "mIoU"]
    assert [found["best_epoch_alone"] for found in (boxes, masks)] == [header["epoch"] for header in own.values()]
    assert [(out / path).is_file() for path in content["files"].values()] == [True] * 3


def test_the_images_seen_are_counted(out: Path) -> None:
    records = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    content = json.loads((out / "compare.json").read_text())
    for task, label, images in (("detection", "boxes", 9), ("segmentation", "masks", 6)):
        found = content["tasks"][task]
        size = found["batch_size_alone"]
        assert found["images_together"] == sum(record[f"images_with_{label}"] for record in records)
        assert found["images_alone"] == found["epochs_alone"] * (images // size * size)
        alone = load_yaml(DetectionConfig if label == "boxes" else SegmentationConfig, out / "alone" / task / CONFIG)
        assert (alone.config.batch_size, alone.config.epochs) == (size, found["epochs_alone"])


def test_the_costs_are_of_the_three_models(out: Path) -> None:
    costs = json.loads((out / "compare.json").read_text())["costs"]
    alone = [
        sum(tensor.numel() for tensor in effdense.load(path).model.parameters())
        for path in (out / "alone/detection/best.safetensors", out / "alone/segmentation/best.safetensors")
    ]
    assert [costs["detection"]["parameters"], costs["segmentation"]["parameters"]] == alone
    assert costs["in_turn"]["parameters"] == sum(alone)
    assert 0 < costs["shared"]["parameters"] < sum(alone)
    assert 0 < costs["shared"]["peak_bytes"] < costs["in_turn"]["peak_bytes"]


def test_comparing_again_repeats_no_training(out: Path) -> None:
    files = sorted((out / "alone").rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    report = (out / "compare.json").read_text()
    begin(Parsed(MultitaskConfig(resume=out), frozenset({"resume"})))
    assert [file.stat().st_mtime_ns for file in files] == before
    again = json.loads((out / "compare.json").read_text())
    assert again["tasks"] == json.loads(report)["tasks"]
