"""How data sets lie on disk: what splits are called, and what a folder holds when it is not what was expected."""

from __future__ import annotations

from pathlib import Path

from effdense.datasets.archives import GIGABYTE, official_archives, space_needed
from effdense.errors import UserError

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""What files and folders of a split are called; the first is our name for it."""

_SHOWN = 10
_COCO_TREE = """\
  annotations/instances_train2017.json
  annotations/instances_val2017.json
  train2017/000000000009.jpg ...
  val2017/000000000139.jpg ..."""
_PANOPTIC_TREE = "  annotations/panoptic_train2017.json and panoptic_train2017/*.png   (for panoptic labels)"
_VOC_BOTH_TREE = """\
  VOCdevkit/VOC2012/               (or VOC2012/, or what is in it directly)
    JPEGImages/2007_000032.jpg ...
    Annotations/2007_000032.xml ...
    SegmentationClass/2007_000032.png ...
    ImageSets/Main/train.txt, val.txt
    ImageSets/Segmentation/train.txt, val.txt"""
_TREES = {
    ("voc", "detection"): """\
  VOCdevkit/VOC2012/               (or VOC2012/, or what is in it directly)
    JPEGImages/2007_000027.jpg ...
    Annotations/2007_000027.xml ...
    ImageSets/Main/train.txt, val.txt""",
    ("voc", "segmentation"): """\
  VOCdevkit/VOC2012/               (or VOC2012/, or what is in it directly)
    JPEGImages/2007_000032.jpg ...
    SegmentationClass/2007_000032.png ...
    ImageSets/Segmentation/train.txt, val.txt""",
    ("coco", "detection"): _COCO_TREE,
    ("coco", "segmentation"): f"{_COCO_TREE}\n{_PANOPTIC_TREE}",
    ("voc", "multitask"): _VOC_BOTH_TREE,
    ("coco", "multitask"): f"{_COCO_TREE}\n{_PANOPTIC_TREE}",
}
"""What a data root holds, by data set and task."""

_TRAINERS = {"detection": "train_det.py", "segmentation": "train_seg.py", "multitask": "train_multi.py"}


def existing_folder(root: Path, what: str = "data root") -> Path:
    """Return ``root``, once seen to be a folder.

    Args:
        root: what the user named.
        what: what it is called in the message.

    Raises:
        UserError: it does not exist, or is a file.
    """
    if root.is_dir():
        return root
    if root.exists():
        raise UserError(f"{what} {root} is a file; name the folder that holds the data")
    nearest = next((parent for parent in root.absolute().parents if parent.is_dir()), Path("/"))
    raise UserError(f"{what} {root} does not exist; {nearest} does. {what_is_there(nearest)}")


def missing_data(name: str, root: Path, task: str, *, can_download: bool = True) -> UserError:
    """Return the error for a data root without the data set: where it was looked, and what is expected there.

    Args:
        name: "voc" or "coco".
        root: the data root, as named or as ``default_root`` has it.
        task: "detection", "segmentation" or "multitask".
        can_download: the tool itself has --download; else the text names the one that has.
    """
    if root.is_dir():
        found = what_is_there(root)
    else:
        found = "That folder does not exist." if not root.exists() else "That is a file."
    elsewhere = f"{_TRAINERS[task]} --dataset {name} --download --data-root {root}"
    how = "add --download" if can_download else f"begin with {elsewhere}"
    archives = official_archives(name)
    fetched, taken = sum(archive.num_bytes or 0 for archive in archives), space_needed(archives)
    return UserError(
        f"no data for --dataset {name}: looked in {root.absolute()}. {found}\n"
        f"Expected there:\n{_TREES[name, task]}\n"
        f"Name the folder that holds this with --data-root DIR, or {how}: it fetches the official archives, "
        f"{fetched / GIGABYTE:.1f} GB, and unpacks them into the folder above; {taken / GIGABYTE:.0f} GB must be free."
    )


def what_is_there(folder: Path) -> str:
    """Say what a folder holds, its first entries by name."""
    entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"Found there: {', '.join(entries[:_SHOWN]) or 'nothing'}{more}."


def default_root(name: str) -> Path:
    """Return the folder in which a data set is looked for, and put by --download, where none is named."""
    return Path("data") / name
