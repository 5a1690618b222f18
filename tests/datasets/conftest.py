"""Tiny data sets for the tests of datasets/."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from effdense.palette import voc_palette

WriteImage = Callable[..., Path]


@pytest.fixture
def write_image() -> WriteImage:
    """Write a noisy JPEG or PNG; ``seed`` decides its pixels."""

    def write(path: Path, size_hw: tuple[int, int] = (40, 60), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), pixels)
        return path

    return write


@pytest.fixture
def coco_content() -> Callable[..., dict[str, Any]]:
    """Return COCO JSON of two 60x40 images, two boxes of sparse category ids on the first."""

    def content(**changes: Any) -> dict[str, Any]:
        return {
            "images": [
                {"id": 7, "file_name": "a.jpg", "width": 60, "height": 40},
                {"id": 9, "file_name": "b.jpg", "width": 60, "height": 40},
            ],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
                {"id": 2, "image_id": 7, "category_id": 3, "bbox": [5.5, 2, 10, 20.25], "area": 99, "iscrowd": 1},
            ],
            "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "ant"}, {"id": 12, "name": "bee"}],
        } | changes

    return content


@pytest.fixture
def coco_root(
    tmp_path: Path, write_image: WriteImage, coco_content: Callable[..., dict[str, Any]]
) -> Callable[..., Path]:
    """Write ``coco_content`` as annotations/instances_train.json with images/."""

    def write(**changes: Any) -> Path:
        content = coco_content(**changes)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
        for seed, name in enumerate(("a.jpg", "b.jpg")):
            write_image(tmp_path / "images" / name, seed=seed)
        return tmp_path

    return write


def voc_object(name: str, corners: tuple[Any, ...], extra: str = "") -> str:
    tags = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"\n<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


@pytest.fixture
def write_voc(tmp_path: Path, write_image: WriteImage) -> Callable[..., Path]:
    """Write {stem: [(name, corners), ...]} as VOC of 60x40 images, with a list per split."""

    def write(
        files: dict[str, list[tuple[Any, ...]]], splits: dict[str, list[str]] | None = None, root: Path = tmp_path
    ) -> Path:
        for seed, (stem, objects) in enumerate(files.items()):
            write_image(root / "JPEGImages" / f"{stem}.jpg", seed=seed)
            text = "".join(voc_object(*item) for item in objects)
            size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
            path = root / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<annotation>\n<filename>{stem}.jpg</filename>\n{size}{text}\n</annotation>")
        for split, stems in (splits or {}).items():
            path = root / "ImageSets" / "Main" / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{stem}\n" for stem in stems))
        return root

    return write


@pytest.fixture
def write_mask() -> Callable[..., Path]:
    """Write a palette PNG with VOC's colours; ``values`` are its indices, (H, W), or one for all of 40x60 pixels."""

    def write(path: Path, values: Any = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        indices = np.asarray(values, np.uint8)
        image = Image.fromarray(np.broadcast_to(indices, (40, 60)).copy() if indices.ndim == 0 else indices)
        image.putpalette(voc_palette().tobytes())
        image.save(path)
        return path

    return write


@pytest.fixture
def real_data() -> Path:
    """Return the folder of real data, or skip."""
    folder = os.environ.get("EFFDENSE_TEST_DATA")
    if not folder:
        pytest.skip("EFFDENSE_TEST_DATA is not set: no real data to read")
    return Path(folder)
