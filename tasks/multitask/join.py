"""Join a detector and a segmenter that were trained apart on the same backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from effdense.backbones.registry import network_of
from effdense.backbones.weights import load_complete
from effdense.datasets.multitask_opening import check_class_names
from effdense.errors import UserError
from effdense.model_parts import DETECTION, SEGMENTATION
from effdense.tasks.detection.predict import Detector
from effdense.tasks.multitask.model import model_from_spec
from effdense.tasks.multitask.predict import Multitask
from effdense.tasks.multitask.specs import joined_spec, require_whole
from effdense.tasks.segmentation.predict import Segmenter


def join(detector: Detector, segmenter: Segmenter, *, image_size: int | None = None) -> Multitask:
    """Return a multitask model that gives what the two give, with one backbone for both.

    Args:
        detector: neither it nor the segmenter is changed.
        segmenter: on the same backbone, weight for weight; its backbone may end earlier, as that of a pspnet.
        image_size: side of the square that images are fitted into, in pixels; default is that of both.

    Raises:
        UserError: the backbones are different networks, normalise differently, or have a tensor that differs, which is
            named; the image sizes differ and none is given; or the segmenter looks at images through a window, in
            several views or with a dilated backbone; or the two write a class in two spellings.
    """
    names = f"{detector.source} and {segmenter.source}"
    require_whole(segmenter.inference, segmenter.source)
    check_class_names(detector.class_names, segmenter.class_names)
    _check_network(detector, segmenter, names)
    size = image_size or _common_size(detector, segmenter)
    assert detector.model.spec is not None
    assert segmenter.model.spec is not None
    spec = joined_spec(detector.model.spec, segmenter.model.spec)
    _check_same("backbone", detector.model.backbone, segmenter.model.backbone, names)
    if spec.shares_bifpn:
        _check_same("BiFPN", detector.model.neck, segmenter.model.decoder.get_submodule("pyramid"), names)
    model = model_from_spec(
        spec,
        len(detector.class_names),
        len(segmenter.class_names),
        class_names=detector.class_names,
        seg_class_names=segmenter.class_names,
        image_size=size,
    )
    model.backbone.set_statistics(detector.model.backbone.mean, detector.model.backbone.std)
    load_complete(model.efficientdet, detector.model.state_dict(), source=detector.source)
    load_complete(model.segmentation_model, segmenter.model.state_dict(), source=segmenter.source)
    return Multitask(
        model.to(detector.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        category_ids=detector.category_ids,
        selection=detector.selection,
        header=_header(detector, segmenter, size),
    )


def _header(detector: Detector, segmenter: Segmenter, size: int) -> dict[str, object]:
    """Return where both come from, and the scores of those whose images keep their size."""
    scores = {
        task: one.header.get("scores") if one.image_size == size else None
        for task, one in ((DETECTION, detector), (SEGMENTATION, segmenter))
    }
    return {"joined": {DETECTION: detector.source, SEGMENTATION: segmenter.source}, "scores": scores}


def _check_network(detector: Detector, segmenter: Segmenter, names: str) -> None:
    """See that both backbones are the same network behind the same normalisation."""
    first, second = detector.model.backbone, segmenter.model.backbone
    if network_of(first.name) != network_of(second.name):
        raise UserError(
            f"{names} cannot be joined: the detector is on backbone {first.name!r}, the segmenter on {second.name!r}"
        )
    for what in ("mean", "std"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise UserError(
                f"{names} cannot be joined: their backbones were trained on images normalised with another {what}, "
                f"{one} and {other}"
            )


def _common_size(detector: Detector, segmenter: Segmenter) -> int:
    if detector.image_size != segmenter.image_size:
        raise UserError(
            f"{detector.source} fits images into {detector.image_size} pixels, {segmenter.source} into "
            f"{segmenter.image_size}: choose one by --image-size, and score both again"
        )
    return detector.image_size


def _check_same(what: str, first: nn.Module, second: nn.Module, names: str) -> None:
    """See that two modules have the same weights, as far as both go; BatchNorm's counters are read by nothing."""
    one, other = first.state_dict(), second.state_dict()
    shared = [name for name in one if name in other and not name.endswith("num_batches_tracked")]
    differing = [name for name in shared if not _equal(one[name], other[name])]
    if differing:
        raise UserError(
            f"{names} cannot be joined, as they do not share one {what}: {_difference(differing[0], one, other)}; "
            f"{len(differing)} of {len(shared)} tensors differ. Train one head on the other's model instead: "
            "train-multi --weights FILE --freeze backbone"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())


def _difference(name: str, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """Say how the tensors of one name differ."""
    first, second = one[name].cpu(), other[name].cpu()
    if first.shape != second.shape:
        return f"{name} is {tuple(first.shape)} in the one and {tuple(second.shape)} in the other"
    if first.dtype != second.dtype:
        return f"{name} is of {first.dtype} in the one and of {second.dtype} in the other"
    most = (first.double() - second.double()).abs().max().item()
    return f"{name} is the first tensor that differs, by up to {most:.3g}"
