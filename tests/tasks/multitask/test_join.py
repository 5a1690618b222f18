"""Joining a detector and a segmenter that were trained apart: it gives what the two give, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import effdense
from effdense.backbones.registry import create_backbone
from effdense.backbones.weights import save_backbone
from effdense.errors import UserError
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.predict import Detector, Selection
from effdense.tasks.multitask.join import join
from effdense.tasks.multitask.model import create_multitask
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.segmentation.inference import Inference
from effdense.tasks.segmentation.model import create_segmentation_model
from effdense.tasks.segmentation.predict import Segmenter

OBJECTS = ("cat", "dog")
PIXELS = ("sky", "sea", "land")
SIZE = 64
SMALL = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}
IMAGES = [np.random.default_rng(side).integers(0, 256, (side, 70, 3), np.uint8) for side in (50, 64, 1)]


def shaken(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif ".classes." in name and name.endswith("pointwise.weight"):
                value.mul_(30)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = create_backbone("lite0")
    shaken(made, 1)
    made.set_statistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = tmp_path_factory.mktemp("backbone") / "b.safetensors"
    save_backbone(made, path)
    return str(path)


def detector(backbone: str, name: str = "lite0", image_size: int = SIZE, **arguments: Any) -> Detector:
    torch.manual_seed(2)
    model = create_efficientdet("auto", 2, backbone=name, weights=backbone, **{**SMALL, **arguments})
    shaken(model.neck, 3)
    shaken(model.head, 4)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    header = {"scores": {"mAP": 0.25}, "epoch": 9}
    selection = Selection(max_detections=9)
    return Detector(
        model, OBJECTS, image_size=image_size, category_ids=(3, 7), selection=selection, header=header, source="D"
    )


def segmenter(
    backbone: str, arch: str = "fpn", image_size: int = SIZE, inference: Inference | None = None, **arguments: Any
) -> Segmenter:
    torch.manual_seed(5)
    model = create_segmentation_model(arch, 3, backbone="lite0", weights=backbone, **arguments)
    shaken(model.decoder, 6)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    header = {"scores": {"mIoU": 0.5}}
    return Segmenter(model, PIXELS, image_size=image_size, inference=inference, header=header, source="S")


def assert_gives_what_the_two_give(joined: Multitask, boxes: Detector, pixels: Segmenter) -> None:
    alone = boxes.predict(IMAGES)
    assert sum(len(one) for one in alone) > 0
    for one, found, labels in zip(
        joined.predict(IMAGES, probabilities=True), alone, pixels.predict(IMAGES, probabilities=True), strict=True
    ):
        np.testing.assert_array_equal(one.detections.boxes_xyxy, found.boxes_xyxy)
        np.testing.assert_array_equal(one.detections.scores, found.scores)
        np.testing.assert_array_equal(one.detections.labels, found.labels)
        np.testing.assert_array_equal(one.segmentation.mask, labels.mask)
        np.testing.assert_array_equal(one.segmentation.probabilities, labels.probabilities)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"arch": "fpn", "auxiliary": True}, id="fpn"),
        pytest.param({"arch": "pspnet"}, id="pspnet-whose-backbone-ends-early"),
        pytest.param({"arch": "bifpn"}, id="bifpn-of-its-own"),
        pytest.param({"arch": "deeplabv3plus", "output_stride": 32}, id="deeplabv3plus-undilated"),
    ],
)
def test_two_models_on_one_backbone_become_one_that_gives_what_they_give(
    arguments: dict[str, Any], backbone: str, tmp_path: Path
) -> None:
    boxes, pixels = detector(backbone), segmenter(backbone, **arguments)
    joined = join(boxes, pixels)
    assert_gives_what_the_two_give(joined, boxes, pixels)
    assert (joined.class_names, joined.seg_class_names, joined.image_size) == (OBJECTS, PIXELS, SIZE)
    assert joined.detector.category_ids == (3, 7)
    assert joined.detector.selection == Selection(max_detections=9)
    joined.save(tmp_path / "m.safetensors")
    assert_gives_what_the_two_give(effdense.load(tmp_path / "m.safetensors"), boxes, pixels)


def test_the_two_are_left_alone(backbone: str) -> None:
    boxes, pixels = detector(backbone), segmenter(backbone)
    joined = join(boxes, pixels)
    own = {value.data_ptr() for value in joined.model.state_dict().values()}
    theirs = {value.data_ptr() for one in (boxes, pixels) for value in one.model.state_dict().values()}
    assert not own & theirs


def test_views_of_a_shared_bifpn_are_joined_again(backbone: str) -> None:
    whole = create_multitask(
        "lite0", 2, 3, "bifpn", weights=backbone, class_names=OBJECTS, seg_class_names=PIXELS, image_size=SIZE, **SMALL
    )
    for number, part in enumerate((whole.detection, whole.segmentation)):
        shaken(part, number)
    whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = Multitask(whole)
    joined = join(source.detector, source.segmenter)
    assert joined.model.spec == whole.spec
    assert_gives_what_the_two_give(joined, source.detector, source.segmenter)
    other = create_multitask("lite0", 2, 3, "bifpn", weights=backbone, image_size=SIZE, **SMALL)
    with pytest.raises(UserError, match=r"do not share one BiFPN: extra\..* is the first tensor that differs"):
        join(other.detector, source.segmenter)


def test_scores_go_with_what_they_were_measured_on(backbone: str) -> None:
    both = join(detector(backbone), segmenter(backbone))
    assert both.header["scores"] == {"detection": {"mAP": 0.25}, "segmentation": {"mIoU": 0.5}}
    assert both.header["joined"] == {"detection": "D", "segmentation": "S"}
    other = join(detector(backbone), segmenter(backbone, image_size=96), image_size=SIZE)
    assert other.header["scores"] == {"detection": {"mAP": 0.25}, "segmentation": None}


# --- what cannot be joined


def test_the_first_differing_tensor_is_named_and_by_how_much(backbone: str) -> None:
    boxes, pixels = detector(backbone), segmenter(backbone)
    with torch.no_grad():
        for name in ("blocks.4.1.bn2.running_var", "blocks.2.0.conv_pw.weight"):
            pixels.model.backbone.state_dict()[name].flatten()[3] += 0.5
    with pytest.raises(UserError) as caught:
        join(boxes, pixels)
    message = str(caught.value)
    assert "D and S cannot be joined" in message
    assert "blocks.2.0.conv_pw.weight is the first tensor that differs, by up to 0.5;" in message
    assert "2 of " in message
    assert "train-multi --weights" in message


def test_what_batchnorm_merely_counts_may_differ(backbone: str) -> None:
    boxes, pixels = detector(backbone), segmenter(backbone)
    pixels.model.backbone.state_dict()["bn1.num_batches_tracked"].fill_(99)
    join(boxes, pixels)


def test_another_type_of_number_is_named(backbone: str) -> None:
    boxes, pixels = detector(backbone), segmenter(backbone)
    pixels.model.half()
    with pytest.raises(UserError, match=r"conv_stem\.weight is of torch\.float32 in the one and of torch\.float16"):
        join(boxes, pixels)


def _with_mean(one: Segmenter) -> Segmenter:
    one.model.backbone.set_statistics((0.1, 0.2, 0.4), (0.4, 0.5, 0.6))
    return one


def _with_std(one: Segmenter) -> Segmenter:
    one.model.backbone.set_statistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.5))
    return one


def _named(one: Segmenter, *names: str) -> Segmenter:
    one.class_names = names
    return one


REFUSED = [
    pytest.param(
        lambda b: (detector(b), _named(segmenter(b), "sky", "Cat", "land")), "'cat' of the boxes and 'Cat'", id="names"
    ),
    pytest.param(lambda b: (detector(b), _with_mean(segmenter(b))), r"another mean, \(0.1, 0.2, 0.3\) and", id="mean"),
    pytest.param(lambda b: (detector(b), _with_std(segmenter(b))), r"another std, ", id="std"),
    pytest.param(
        lambda b: (detector("none", "b0"), segmenter(b)),
        "the detector is on backbone 'b0', the segmenter on 'lite0'",
        id="network",
    ),
    pytest.param(
        lambda b: (detector(b), segmenter(b, image_size=96)),
        "D fits images into 64 pixels, S into 96: choose one by --image-size",
        id="image-sizes",
    ),
    pytest.param(lambda b: (detector(b, image_size=70), segmenter(b, image_size=70)), "multiples of 32", id="odd-size"),
    pytest.param(lambda b: (detector(b), segmenter(b, inference=Inference(window=32))), "window of 32", id="window"),
    pytest.param(lambda b: (detector(b), segmenter(b, inference=Inference(tta=("hflip",)))), "--tta hflip", id="views"),
    pytest.param(
        lambda b: (detector(b), segmenter(b, "unet", output_stride=16)), "dilates the backbone", id="dilation"
    ),
]


@pytest.mark.parametrize(("make", "says"), REFUSED)
def test_what_does_not_go_together_is_refused(make: Any, says: str, backbone: str) -> None:
    boxes, pixels = make(backbone)
    with pytest.raises(UserError, match=says):
        join(boxes, pixels)


def test_a_name_of_the_same_network_is_no_other_network(backbone: str) -> None:
    join(detector(backbone, "tf_efficientnet_lite0"), segmenter(backbone))
