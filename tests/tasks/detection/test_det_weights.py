from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from effdense.datasets.voc import VOC_CLASSES
from effdense.errors import UserError
from effdense.tasks.detection import weights as module
from effdense.tasks.detection.coco_names import COCO_NAMES, VOC_SPELLINGS, coco_id
from effdense.tasks.detection.model import EfficientDet, create_efficientdet
from effdense.tasks.detection.predict import Detector
from effdense.tasks.detection.weights import CLASS_OUTPUT, from_effdet, read_weights

SMALL = {"channels": 16, "bifpn_repeats": 1, "head_repeats": 1}


def small(classes: int = 3, **arguments: object) -> EfficientDet:
    return create_efficientdet("lite0", classes, **SMALL, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[EfficientDet, Path]:
    model = small()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


def test_a_detector_file_loads_completely(saved: tuple[EfficientDet, Path]) -> None:
    model, path = saved
    loaded = small(weights=str(path))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert str(path) in loaded.backbone.weights_source


def test_other_classes_are_an_error_that_says_what_to_ask_for(saved: tuple[EfficientDet, Path]) -> None:
    with pytest.raises(UserError, match=r"for 3 classes, the model has 5.*--replace-head"):
        small(5, weights=str(saved[1]))


def test_constants_that_no_shape_shows_have_to_be_those_of_the_file(tmp_path: Path) -> None:
    wide = ((2**0.5, 0.5**0.5), (1.0, 1.0), (1.4, 0.7))
    path = tmp_path / "d.safetensors"
    Detector(small(anchor_scale=2.0, act="silu"), ("a", "b", "c"), image_size=64).save(path)
    with pytest.raises(UserError, match=r"anchor_scale 2.0, not 3.0, act silu, not relu6: give --anchor-scale 2.0 --a"):
        small(weights=str(path))
    small(weights=str(path), anchor_scale=2.0, act="silu")
    with pytest.raises(UserError, match="leave --aspect-ratios out"):
        small(weights=str(path), anchor_scale=2.0, act="silu", aspect_ratios=wide)


def test_a_new_head_on_request_keeps_all_but_the_last_layer_and_says_so(
    saved: tuple[EfficientDet, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model, path = saved
    with caplog.at_level(logging.WARNING, "effdense"):
        loaded = small(5, weights=str(path), replace_head=True)
    assert "3 classes, the model has 5" in caplog.text
    for name, value in loaded.state_dict().items():
        assert name.startswith(CLASS_OUTPUT) or torch.equal(value, model.state_dict()[name])


def test_a_request_for_a_new_head_changes_nothing_where_the_classes_agree(
    saved: tuple[EfficientDet, Path], caplog: pytest.LogCaptureFixture
) -> None:
    loaded = small(weights=str(saved[1]), replace_head=True)
    assert torch.equal(loaded.state_dict()[f"{CLASS_OUTPUT}weight"], saved[0].state_dict()[f"{CLASS_OUTPUT}weight"])
    assert [record.getMessage() for record in caplog.records] == [
        f"--replace-head changes nothing: {saved[1]} is for the same classes"
    ]


@pytest.mark.parametrize("replace", [False, True])
def test_classes_of_the_same_number_but_other_names_are_told_apart(replace: bool, tmp_path: Path) -> None:
    model = small(2)
    Detector(model, ["cat", "dog"], image_size=64).save(tmp_path / "d.safetensors")
    weights = str(tmp_path / "d.safetensors")
    assert torch.equal(
        small(2, weights=weights, class_names=["cat", "dog"]).state_dict()[f"{CLASS_OUTPUT}weight"],
        model.state_dict()[f"{CLASS_OUTPUT}weight"],
    )
    if replace:
        fresh = small(2, weights=weights, class_names=["dog", "cat"], replace_head=True).state_dict()
        assert not torch.equal(fresh[f"{CLASS_OUTPUT}weight"], model.state_dict()[f"{CLASS_OUTPUT}weight"])
    else:
        with pytest.raises(UserError, match=r"class 0 is 'cat' in weights from .* and 'dog' in the data"):
            small(2, weights=weights, class_names=["dog", "cat"])


def test_missing_and_unexpected_weights_are_listed(saved: tuple[EfficientDet, Path]) -> None:
    state = saved[0].state_dict()
    state["neck.surplus"] = state.pop("neck.cells.0.down.0.conv.depthwise.weight")
    save_file(state, saved[1])
    with pytest.raises(UserError, match=r"neck\.cells\.0\.down\.0\.conv\.depthwise\.weight.*neck\.surplus"):
        small(weights=str(saved[1]))


def test_the_mean_and_std_of_our_files_are_restored(saved: tuple[EfficientDet, Path]) -> None:
    import json

    preprocessing = {"preprocessing": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    save_file(saved[0].state_dict(), saved[1], {"effdense": json.dumps(preprocessing)})
    assert small(weights=str(saved[1])).backbone.mean == (0.1, 0.2, 0.3)


def test_a_backbone_file_fills_the_backbone_alone(tmp_path: Path) -> None:
    model = small()
    save_file(model.backbone.state_dict(), tmp_path / "backbone.safetensors")
    loaded = small(weights=str(tmp_path / "backbone.safetensors"))
    assert torch.equal(loaded.backbone.conv_stem.weight, model.backbone.conv_stem.weight)
    with pytest.raises(UserError, match="has its own already"):
        small(weights=str(tmp_path / "backbone.safetensors"), backbone=model.backbone)


def test_coco_weights_without_a_network_are_an_error_in_seconds_that_names_address_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(module, "_published_url", lambda name: f"http://127.0.0.1:9/{name}-0123abcd.pth")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"lite0-0123abcd\.pth"):
        create_efficientdet("lite0", 90, weights="coco")
    assert time.monotonic() - start < 20
    with pytest.raises(UserError, match="offline"):
        create_efficientdet("lite0", 90, weights="coco", offline=True)
    assert list(tmp_path.rglob("*.pth")) == []


def test_coco_weights_in_torchs_cache_are_loaded_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = create_efficientdet("lite0", 90)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(module, "_published_url", lambda name: f"http://127.0.0.1:9/{name}-0123abcd.pth")
    (tmp_path / "checkpoints").mkdir()
    torch.save(published.state_dict(), tmp_path / "checkpoints" / "lite0-0123abcd.pth")
    loaded = create_efficientdet("lite0", 7, weights="coco", replace_head=True, offline=True)
    assert torch.equal(loaded.state_dict()["neck.extra.0.0.weight"], published.state_dict()["neck.extra.0.0.weight"])


@pytest.mark.parametrize(
    ("backbone", "published"),
    [("tf_efficientnet_lite0", True), ("lite0.in1k", True), ("tf_efficientnet_lite0.in1k", True), ("lite1", False)],
)
def test_coco_weights_know_the_published_backbone_by_any_of_its_names(
    backbone: str, published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(module, "_published_url", lambda name: f"http://127.0.0.1:9/{name}-0123abcd.pth")
    with pytest.raises(UserError, match="offline" if published else "no COCO weights were published"):
        create_efficientdet("lite0", 90, backbone=backbone, weights="coco", offline=True)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("imagnet", "did you mean 'imagenet'"),
        ("cocco", "did you mean 'coco'"),
        ("Auto", "did you mean 'auto'"),
        ("xyzzy", "expected auto, imagenet, coco, none or a file$"),
    ],
)
def test_a_mistyped_word_for_weights_names_the_nearest(
    word: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"'{word}'.*{says}") as caught:
        small(weights=word)
    assert "auto, imagenet, coco, none or a file" in str(caught.value)


@pytest.mark.parametrize("name", ["imagnet.pth", "./imagnet", "below/imagnet"])
def test_what_looks_like_a_path_is_called_a_file_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot read weights from .*No such file"):
        read_weights(name)


def test_a_file_may_be_called_like_a_word(saved: tuple[EfficientDet, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    saved[1].rename(saved[1].parent / "imagnet")
    monkeypatch.chdir(saved[1].parent)
    assert read_weights("imagnet").is_detector


def test_coco_weights_exist_only_for_published_configurations() -> None:
    with pytest.raises(UserError, match="no COCO weights were published"):
        create_efficientdet("auto", 90, backbone="edge_s", weights="coco")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[EfficientDet, Path]:
    """The full model of 90 rows, and torch's folder with its weights by effdet's names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import effdet
    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    theirs = effdet.EfficientDet(config, pretrained_backbone=False).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name in ("weight", "bias"):
        theirs[f"class_net.predict.conv_pw.{name}"].normal_(0, 0.5, generator=generator)
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    path = folder / "checkpoints" / "lite0-0123abcd.pth"
    torch.save(theirs, path)
    full = create_efficientdet("lite0", 90)
    full.load_state_dict(from_effdet(theirs), strict=False)
    return full.eval(), path


@pytest.fixture
def lite0_for(published: tuple[EfficientDet, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., EfficientDet]:
    """Make a detector with the published weights for classes of these names."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(published[1].parents[1]))
    monkeypatch.setattr(module, "_published_url", lambda name: f"http://127.0.0.1:9/{name}-0123abcd.pth")

    def make(names: Sequence[str], weights: str = "coco", **arguments: Any) -> EfficientDet:
        return create_efficientdet(
            "lite0", len(names), weights=weights, class_names=names, offline=True, **arguments
        ).eval()

    return make


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        pytest.param(list(COCO_NAMES.values()), list(COCO_NAMES), id="coco"),
        pytest.param(
            list(VOC_CLASSES), [5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72], id="voc"
        ),
        pytest.param(["Toothbrush", "DOG", "person"], [90, 18, 1], id="another-order"),
        pytest.param(["person"], [1], id="single"),
    ],
)
@pytest.mark.parametrize("by", ["word", "file"])
def test_a_published_head_gives_classes_of_cocos_names_its_own_logits(
    by: str,
    names: list[str],
    ids: list[int],
    published: tuple[EfficientDet, Path],
    lite0_for: Callable[..., EfficientDet],
    caplog: pytest.LogCaptureFixture,
) -> None:
    full, path = published
    with caplog.at_level(logging.INFO, "effdense"):
        model = lite0_for(names, "coco" if by == "word" else str(path))
    assert f"{len(ids)} of the 90 rows of the class head in {path}" in caplog.text
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        logits, codes = model(images)
        all_logits, all_codes = full(images)
    assert all_logits.std(2).mean() > 0.01  # rows that can be told apart
    torch.testing.assert_close(logits, all_logits[..., [i - 1 for i in ids]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codes, all_codes)


@pytest.mark.parametrize("names", [["person", "wbc"], [f"c{i}" for i in range(90)]], ids=["one", "of-the-same-number"])
def test_a_published_head_is_refused_for_a_class_that_coco_lacks(
    names: list[str], lite0_for: Callable[..., EfficientDet], published: tuple[EfficientDet, Path]
) -> None:
    wrong = next(name for name in names if name != "person")
    with pytest.raises(UserError, match=rf"'{wrong}', is none of COCO's.*--replace-head"):
        lite0_for(names)
    fresh, full = lite0_for(names, replace_head=True).state_dict(), published[0].state_dict()
    assert torch.equal(fresh["neck.extra.0.0.weight"], full["neck.extra.0.0.weight"])
    assert fresh[f"{CLASS_OUTPUT}bias"].unique().numel() == 1


def test_other_weights_for_90_classes_are_not_taken_for_cocos(
    published: tuple[EfficientDet, Path], lite0_for: Callable[..., EfficientDet], tmp_path: Path
) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(published[1].read_bytes())
    assert lite0_for([f"c{i}" for i in range(90)], str(own)).num_classes == 90
    with pytest.raises(UserError, match="for 90 classes, the model has 1"):
        lite0_for(["person"], str(own))


def test_the_80_names_stand_at_the_ids_of_coco_and_all_of_vocs_are_among_them() -> None:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    listed = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert {i: name for i, name in enumerate(listed) if name not in ("__background__", "N/A")} == COCO_NAMES
    assert len(COCO_NAMES) == 80
    assert all(coco_id(name) for name in VOC_CLASSES)
    assert set(VOC_SPELLINGS) <= set(VOC_CLASSES)
    assert coco_id("N/A") is None
