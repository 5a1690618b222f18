from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effdense.tasks.detection import postprocess as module
from effdense.tasks.detection.anchors import Anchors, encode
from effdense.tasks.detection.postprocess import BatchDetections, Outputs, postprocess

SIZE = (128, 128)
ANCHORS = Anchors()(SIZE)


def outputs(
    boxes: list[tuple[float, float, float, float]], scores: list[float], labels: list[int], classes: int = 3
) -> tuple[Tensor, Tensor]:
    """Outputs of a model that says these boxes, each by an anchor of its own, and nothing else."""
    logits = torch.full((1, len(ANCHORS), classes), -20.0)
    codes = torch.zeros(1, len(ANCHORS), 4)
    for i, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
        anchor = 100 + 37 * i
        logits[0, anchor, label] = torch.logit(torch.tensor(score))
        codes[0, anchor] = encode(torch.tensor(box), ANCHORS[anchor])
    return logits, codes


def run(logits: Outputs, codes: Outputs, **changes: object) -> BatchDetections:
    images = len(logits if isinstance(logits, Tensor) else logits[0])
    sizes = torch.tensor([SIZE] * images).reshape(-1, 2)
    arguments: dict[str, object] = {
        "image_size_hw": SIZE,
        "original_sizes_hw": sizes,
        "resized_sizes_hw": sizes,
        **changes,
    }
    return postprocess(logits, codes, ANCHORS, **arguments)  # type: ignore[arg-type]


def test_boxes_come_back_best_first_with_0_based_labels_and_padding_after_them() -> None:
    logits, codes = outputs([(10, 10, 40, 50), (60, 60, 100, 90)], [0.4, 0.9], [0, 2])
    found = run(logits, codes, max_detections=5)
    assert found.counts.tolist() == [2]
    torch.testing.assert_close(found.boxes_xyxy[0, :2], torch.tensor([[60.0, 60, 100, 90], [10, 10, 40, 50]]))
    assert found.scores[0].tolist() == pytest.approx([0.9, 0.4, 0, 0, 0])
    assert found.labels[0].tolist() == [2, 0, -1, -1, -1]
    assert found.boxes_xyxy[0, 2:].eq(0).all()


def test_boxes_are_scaled_back_by_each_axis_own_factor_and_clipped_to_the_original() -> None:
    logits, codes = outputs([(10, 10, 40, 50), (100, 40, 140, 90)], [0.9, 0.8], [0, 0])
    found = run(logits, codes, resized_sizes_hw=torch.tensor([[64, 128]]), original_sizes_hw=torch.tensor([[65, 256]]))
    expected = torch.tensor([[20, 10 * 65 / 64, 80, 50 * 65 / 64], [200, 40 * 65 / 64, 256, 65]])
    torch.testing.assert_close(found.boxes_xyxy[0, :2], expected)


def test_a_box_wholly_in_the_padding_is_dropped_where_effdet_returns_it_without_area() -> None:
    logits, codes = outputs([(10, 70, 40, 120), (10, 10, 40, 50)], [0.9, 0.8], [0, 0])
    found = run(logits, codes, resized_sizes_hw=torch.tensor([[64, 128]]), original_sizes_hw=torch.tensor([[64, 128]]))
    assert found.counts.tolist() == [1]
    assert found.scores[0, 0].item() == pytest.approx(0.8)


@pytest.mark.parametrize("labels", [[1, 1], [0, 1]], ids=["one class", "two classes"])
@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_a_second_box_on_the_same_object_goes_or_fades_only_within_its_class(nms: str, labels: list[int]) -> None:
    logits, codes = outputs([(10, 10, 50, 50), (12, 10, 52, 50)], [0.9, 0.8], labels)
    found = run(logits, codes, nms=nms)
    if labels == [0, 1]:
        assert found.scores[0, :2].tolist() == pytest.approx([0.9, 0.8])
    elif nms == "hard":
        assert found.counts.tolist() == [1]
    else:
        assert found.counts.tolist() == [2]
        assert found.scores[0, 1] < 0.2


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_only_scores_above_the_threshold_and_at_most_so_many(nms: str) -> None:
    boxes = [(10.0 * i, 10.0, 10.0 * i + 8, 30.0) for i in range(8)]
    logits, codes = outputs(boxes, [0.1 + 0.1 * i for i in range(8)], [0] * 8)
    assert run(logits, codes, nms=nms, score_threshold=0.45).counts.tolist() == [4]
    few = run(logits, codes, nms=nms, max_detections=3)
    assert few.counts.tolist() == [3]
    assert few.scores[0].tolist() == pytest.approx([0.8, 0.7, 0.6], abs=1e-5)
    many = run(logits, codes, nms=nms, max_detections=300)
    assert many.boxes_xyxy.shape == (1, 300, 4)
    assert many.counts.tolist() == [8]


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_an_image_where_nothing_is_found_gives_no_detection(nms: str) -> None:
    found = run(*outputs([], [], []), nms=nms, max_detections=4)
    assert found.counts.tolist() == [0]
    assert found.labels.eq(-1).all()
    assert found.scores.eq(0).all()


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_no_image_gives_no_detection(nms: str) -> None:
    found = run(torch.zeros(0, len(ANCHORS), 3), torch.zeros(0, len(ANCHORS), 4), nms=nms, max_detections=4)
    assert found.boxes_xyxy.shape == (0, 4, 4)


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_a_batch_gives_what_its_images_give_alone(nms: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, len(ANCHORS), 3, generator=generator) * 2 - 4
    logits[1] -= 30
    codes = torch.randn(3, len(ANCHORS), 4, generator=generator) * 0.3
    together = run(logits, codes, nms=nms)
    for i in range(3):
        alone = run(logits[i : i + 1], codes[i : i + 1], nms=nms)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[i : i + 1], other)


def test_the_best_scores_are_those_of_a_sort_over_all_anchors_and_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, len(ANCHORS), 3, generator=generator)
    found = run(
        logits,
        torch.zeros(1, len(ANCHORS), 4),
        pre_nms_top=50,
        iou_threshold=1.0,
        resized_sizes_hw=torch.tensor([[128, 128]]),
    )
    best = logits.flatten().sort(descending=True).values[:50].sigmoid()
    assert found.counts.item() > 40  # a few anchors lie outside the image
    assert torch.isin(found.scores[0, : found.counts.item()], best).all()


@pytest.mark.parametrize(
    ("spread", "code", "most"),
    [(2.0, 0.2, 10), (0.5, 0.0, 100), (6.0, 0.2, 100), (2.0, 0.2, 10_000)],
    ids=["enough at once", "too few left of the best", "few above the threshold", "all wanted"],
)
def test_looking_at_the_best_first_changes_nothing(
    spread: float, code: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, len(ANCHORS), 2, generator=generator) * spread - 5
    logits[1] -= 15
    codes = torch.randn(3, len(ANCHORS), 4, generator=generator) * code
    quick = run(logits, codes, iou_threshold=0.1, max_detections=most)
    monkeypatch.setattr(module, "_FIRST_LOOK", 10**6)
    plain = run(logits, codes, iou_threshold=0.1, max_detections=most)
    for one, other in zip(quick, plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_outputs_level_by_level_give_the_same_to_the_last_bit(nms: str, images: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(images, len(ANCHORS), 3, generator=generator) * 2 - 3
    codes = torch.randn(images, len(ANCHORS), 4, generator=generator) * 0.2
    anchors_of_levels = [9 * (128 // 2**level) ** 2 for level in range(3, 8)]
    levels = logits.split(anchors_of_levels, 1), codes.split(anchors_of_levels, 1)
    for most in (10, 300):
        whole = run(logits, codes, nms=nms, max_detections=most)
        parts = run(*levels, nms=nms, max_detections=most)
        assert whole.counts.gt(0).all()
        for one, other in zip(parts, whole, strict=True):
            assert torch.equal(one, other)


def test_outputs_of_other_anchors_are_refused() -> None:
    logits, codes = outputs([], [], [])
    for wrong in ((logits[:, 1:], codes), (logits, codes[:, 1:]), ([logits, logits], codes)):
        with pytest.raises(ValueError, match=f"anchors, and there are {len(ANCHORS)}"):
            run(*wrong)


def test_codes_that_overflow_do_no_harm() -> None:
    logits, codes = outputs([(10, 10, 40, 50), (60, 60, 100, 90)], [0.9, 0.8], [0, 0])
    codes[0, 100, 2:] = 500.0  # exp overflows to infinity
    found = run(logits, codes)
    assert found.boxes_xyxy.isfinite().all()
    assert found.counts.tolist() == [2]


def test_an_unknown_kind_of_nms_is_refused() -> None:
    with pytest.raises(ValueError, match="'linear'"):
        run(*outputs([], [], []), nms="linear")
