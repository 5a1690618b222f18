"""What every published EfficientDet promises; the large ones are built without memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from effdense.tasks.detection.assign import assign
from effdense.tasks.detection.loss import DetectionLoss
from effdense.tasks.detection.model import create_efficientdet
from effdense.tasks.detection.specs import SPECS

SMALL = ["d0", "d1", "lite0", "lite1"]
ODD = (97, 131)

# Millions of parameters with 90 classes: arXiv 1911.09070, Table 2 (Lite has no published numbers)
PUBLISHED_M = {"d0": 3.9, "d1": 6.6, "d2": 8.1, "d3": 12, "d4": 21, "d5": 34, "d6": 52, "d7": 52, "d7x": 77}


@pytest.mark.parametrize("name", SPECS)
def test_it_has_an_output_for_every_anchor_and_class(name: str) -> None:
    with torch.device("meta"):
        model = create_efficientdet(name, 11).eval()
        logits, codes = model(torch.zeros(2, 3, *ODD, dtype=torch.uint8))
    count = len(model.anchor_maker(ODD))
    assert logits.shape == (2, count, 11)
    assert codes.shape == (2, count, 4)
    assert len(model.neck.strides) == SPECS[name].num_levels


@pytest.mark.parametrize("name", PUBLISHED_M)
def test_it_has_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        model = create_efficientdet(name, 90)
    assert sum(one.numel() for one in model.parameters()) / 1e6 == pytest.approx(PUBLISHED_M[name], rel=0.02)


@pytest.mark.parametrize("name", SMALL)
def test_it_runs_at_odd_sizes_and_a_batch_gives_what_its_images_give_alone(name: str) -> None:
    torch.manual_seed(0)
    model = create_efficientdet(name, 3).eval()
    images = torch.randint(0, 256, (2, 3, *ODD), dtype=torch.uint8)
    with torch.no_grad():
        together = model(images)
        for i in range(2):
            for batch, single in zip(together, model(images[i : i + 1]), strict=True):
                torch.testing.assert_close(batch[i : i + 1], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_its_weights_are_saved_each_once_and_come_back(name: str, tmp_path: Path) -> None:
    model = create_efficientdet(name, 3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # refuses tensors that share memory
    back = load_file(tmp_path / "model.safetensors")
    assert back.keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_and_no_number_goes_astray(name: str) -> None:
    torch.manual_seed(0)
    model = create_efficientdet(name, 3, drop_path_rate=0.0).train()
    images = torch.randint(0, 256, (2, 3, *ODD), dtype=torch.uint8)
    # A box for every level, so that each level's BatchNorm of the box head has something to learn from.
    sides = torch.tensor([[3.5 * stride] for stride in model.neck.strides])
    boxes = torch.cat((60 - sides / 2, 50 - sides / 2, 60 + sides / 2, 50 + sides / 2), 1).expand(2, -1, -1)
    targets = assign(model.anchors(ODD), boxes, torch.arange(len(sides)).remainder(3).expand(2, -1))
    losses = DetectionLoss()(*model(images), targets)
    (losses["class"] + 50 * losses["box"]).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
