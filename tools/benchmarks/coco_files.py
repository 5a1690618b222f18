"""COCO annotation files of any size, written as COCO writes them, about objects that nobody has seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_CATEGORIES = 80
_AT_A_TIME = 10_000


def write_coco(path: Path, num_images: int, num_objects: int, *, polygons: bool, seed: int = 0) -> None:
    """Write an annotation file.

    Args:
        path: the file.
        num_images: images, of random ids.
        num_objects: objects, in random order of their images.
        polygons: give each object an outline of six to forty points, as in COCO's own files; else only a box.
        seed: of what is random.
    """
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(5 * num_images)[:num_images] + 1
    with path.open("w") as file:
        file.write('{"info": {"description": "generated", "year": 2017}, "licenses": [], "images": [')
        file.write(", ".join(_image(int(image_id), rng) for image_id in image_ids))
        file.write('], "annotations": [')
        for start in range(0, num_objects, _AT_A_TIME):
            count = min(_AT_A_TIME, num_objects - start)
            file.write(", " if start else "")
            file.write(", ".join(_objects(start, count, image_ids, polygons, rng)))
        categories = (
            f'{{"supercategory": "thing", "id": {k}, "name": "class {k}"}}' for k in range(1, _CATEGORIES + 1)
        )
        file.write(f'], "categories": [{", ".join(categories)}]}}')


def _image(image_id: int, rng: np.random.Generator) -> str:
    name = f"{image_id:012d}.jpg"
    height, width = rng.integers(300, 641, 2).tolist()
    return (
        f'{{"license": 3, "file_name": "{name}", "coco_url": "http://images.cocodataset.org/train2017/{name}", '
        f'"height": {height}, "width": {width}, "date_captured": "2013-11-14 11:18:45", '
        f'"flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg", "id": {image_id}}}'
    )


def _objects(start: int, count: int, image_ids: Any, polygons: bool, rng: np.random.Generator) -> Iterator[str]:
    owners = rng.choice(image_ids, count).tolist()
    boxes = np.round(rng.uniform(2, 300, (count, 4)), 2).tolist()
    categories = rng.integers(1, _CATEGORIES + 1, count).tolist()
    crowd = (rng.random(count) < 0.01).astype(int).tolist()
    points = rng.integers(6, 40, count).tolist()
    for row, (x, y, width, height) in enumerate(boxes):
        outline = ""
        if polygons:
            numbers = (rng.integers(0, 60_000, 2 * points[row]) / 100).tolist()
            outline = f'"segmentation": [{numbers}], '
        yield (
            f'{{{outline}"area": {round(0.6 * width * height, 4)}, "iscrowd": {crowd[row]}, '
            f'"image_id": {owners[row]}, "bbox": [{x}, {y}, {width}, {height}], "category_id": {categories[row]}, '
            f'"id": {start + row + 1}}}'
        )
