"""Where the data of a command lie: the folder that was named, the usual one, or the official archives fetched there."""

from __future__ import annotations

from pathlib import Path, PurePath

from effdense.datasets.layout import default_root, missing_data
from effdense.datasets.listing import is_litter


def ready_root(
    name: str,
    root: Path | None,
    task: str,
    *,
    download: bool = False,
    panoptic: bool = False,
    can_download: bool = True,
) -> Path | None:
    """Return the folder of a data set, once there is something in it; half a download or .DS_Store is nothing.

    Args:
        name: "demo", "voc", "coco" or "folder".
        root: the folder that the user named; None is data/voc or data/coco, and for the demo set the cache.
        task: "detection", "segmentation" or "multitask", for how the folder must look.
        download: fetch the official archives as far as they are not there yet.
        panoptic: with COCO's panoptic PNGs.
        can_download: the tool has --download, for the text.

    Returns:
        The folder; None for the demo set, and where a data set of no official name has none.

    Raises:
        UserError: there is nothing: says where it was looked, how the folder must look, and what --download does. Or
            the download failed.
    """
    if name not in ("voc", "coco"):
        return root
    root = default_root(name) if root is None else root
    if download:
        from effdense.datasets.download import download as fetch_archives

        return fetch_archives(name, root, panoptic=panoptic)
    if not root.exists() or (root.is_dir() and all(is_litter(PurePath(entry.name)) for entry in root.iterdir())):
        raise missing_data(name, root, task, can_download=can_download)
    return root
