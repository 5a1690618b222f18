"""The official archives of Pascal VOC 2012 and COCO 2017: where they are, what they must be, what they bring.

Neither VOC nor COCO publishes hashes of its own. Those below are SHA-256 as others recorded them, each the same in at
least two places that are independent of each other:

- VOC trainval, COCO train, val and annotations: tensorflow/datasets (tensorflow_datasets/url_checksums/voc.txt,
  coco.txt, with the sizes) and pytorch/vision (torchvision/prototype/datasets/_builtin/voc.py, coco.py). Their MD5
  (6cd6e144f989b92b3379bac3b3de84fd for VOC) is the same in torchvision.datasets.voc and PaddlePaddle/PaddleDetection
  (ppdet/utils/download.py).
- COCO panoptic: tensorflow/datasets (tensorflow_datasets/url_checksums/coco2017_panoptic.txt, with the size) and
  NoeFontana/vernier (its cache of panoptic val2017 pins the archive as fetched in 2026).

Where an archive has two addresses, both are official: VOC's second one is the same department's older host, which is
often down; COCO's is its storage bucket by the provider's name, since images.cocodataset.org has no certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from effdense.errors import UserError, nearest

GIGABYTE = 10**9


@dataclass(frozen=True)
class Content:
    """A file or folder that an archive brings.

    Attributes:
        place: where it lies in the archive, and below the data root.
        num_files: how many files lie in which of its folders ("." is itself); empty for a file.
        also_at: where else below the data root people have it.
    """

    place: str
    num_files: tuple[tuple[str, int], ...] = ()
    also_at: tuple[str, ...] = ()


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    Attributes:
        file_name: .zip or .tar.
        urls: http or https, the first that answers is used.
        contents: what is kept of it.
        num_bytes: its size; None where that is not known.
        sha256: its hash; None where none is published.
        unpacked_bytes: at most what unpacking takes, while the archive is still there.
        inner: archives within it, which are unpacked beside where they lie.
    """

    file_name: str
    urls: tuple[str, ...]
    contents: tuple[Content, ...]
    num_bytes: int | None = None
    sha256: str | None = None
    unpacked_bytes: int = 0
    inner: tuple[str, ...] = ()


def _coco(kind: str, file_name: str, contents: tuple[Content, ...], num_bytes: int, sha256: str, unpacked: int,
          inner: tuple[str, ...] = ()) -> Archive:  # fmt: skip
    hosts = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")
    urls = tuple(f"{host}/{kind}/{file_name}" for host in hosts)
    return Archive(file_name, urls, contents, num_bytes, sha256, unpacked, inner)


_VOC = (
    Archive(
        file_name="VOCtrainval_11-May-2012.tar",
        urls=(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        ),
        contents=(
            Content(
                "VOCdevkit/VOC2012",
                (("JPEGImages", 17125), ("Annotations", 17125), ("SegmentationClass", 2913)),
                also_at=("VOC2012", "."),
            ),
        ),
        num_bytes=1_999_639_040,
        sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        unpacked_bytes=2_000_000_000,
    ),
)
_COCO = (
    _coco(
        "annotations", "annotations_trainval2017.zip",
        (Content("annotations/instances_train2017.json"), Content("annotations/instances_val2017.json")),
        252_907_541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268", 600_000_000,
    ),
    _coco(
        "zips", "val2017.zip", (Content("val2017", ((".", 5000),), ("images/val2017",)),),
        815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 850_000_000,
    ),
    _coco(
        "zips", "train2017.zip", (Content("train2017", ((".", 118287),), ("images/train2017",)),),
        19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929", 20_000_000_000,
    ),
)  # fmt: skip
_COCO_PANOPTIC = _coco(
    "annotations", "panoptic_annotations_trainval2017.zip",
    (
        Content("annotations/panoptic_train2017.json"),
        Content("annotations/panoptic_val2017.json"),
        Content("annotations/panoptic_train2017", ((".", 118287),)),
        Content("annotations/panoptic_val2017", ((".", 5000),)),
    ),
    860_725_834, "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370", 3_000_000_000,
    inner=("annotations/panoptic_train2017.zip", "annotations/panoptic_val2017.zip"),
)  # fmt: skip

DOWNLOADS = ("voc", "coco")
"""Data sets that can be downloaded."""


def official_archives(name: str, *, panoptic: bool = False) -> tuple[Archive, ...]:
    """Return the archives of a data set.

    Args:
        name: "voc" or "coco".
        panoptic: with COCO's panoptic PNGs.

    Raises:
        UserError: it cannot be downloaded.
    """
    if name not in DOWNLOADS:
        known = " and ".join(DOWNLOADS)
        raise UserError(f"data set {name!r} cannot be downloaded, only {known}{nearest(name, DOWNLOADS)}")
    if name == "voc":
        return _VOC
    return (*_COCO, _COCO_PANOPTIC) if panoptic else _COCO


def is_there(content: Content, root: Path) -> bool:
    """Whether a file or folder lies below the root, at any of its places and with all its files."""
    places = [root / place for place in (content.place, *content.also_at)]
    if not content.num_files:
        return any(place.is_file() for place in places)
    return any(all(count_files(place / sub) >= number for sub, number in content.num_files) for place in places)


def count_files(folder: Path) -> int:
    """Return how many files and folders lie in a folder; 0 where there is none."""
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def space_needed(archives: tuple[Archive, ...]) -> int:
    """Return the bytes that fetching and unpacking archives one after the other takes at its height."""
    height = kept = 0
    for archive in archives:
        height = max(height, kept + (archive.num_bytes or 0) + archive.unpacked_bytes)
        kept += archive.unpacked_bytes
    return height
