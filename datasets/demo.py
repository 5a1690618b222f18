"""The built-in demo set: small scenes of drawn shapes, the same on every machine.

480 scenes of 96 to 160 pixels a side with up to six shapes of six classes; shapes overlap, turn, differ in size, colour
and texture, and stand on noisy grounds among strokes and specks that are no class, so that only the form tells the
class. Boxes enclose the visible part. It lies on disk as COCO JSON (boxes, run-length masks), PNG images, and PNG index
masks (0 = background, label + 1 = shape), and is opened by the reader of COCO data sets itself.

Everything is drawn from the raw output of NumPy's PCG64, which no release may change, with integer arithmetic and
OpenCV's fills of integer polygons.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from effdense.cache import cache_folder
from effdense.datasets.coco import open_coco
from effdense.datasets.index import DetectionIndex
from effdense.errors import UserError, nearest
from effdense.types import UInt8

DEMO_CLASSES = ("circle", "square", "triangle", "star", "ring", "cross")
DEMO_SPLITS = {"train": 320, "val": 80, "test": 80}
"""Scenes per split."""

_VERSION = "demo-v1"
_SIDE = (96, 160)
_SHAPE_SIDE = (20, 64)
_MOST_SHAPES = 6
_LEAST_VISIBLE = 0.55
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """One drawn scene.

    Attributes:
        image: RGB, (H, W, 3).
        visible: (N, H, W), the visible pixels of each shape.
        labels: one per shape, indices into ``DEMO_CLASSES``.
    """

    image: UInt8
    visible: _Bools
    labels: tuple[int, ...]


def open_demo(root: Path | None, split: str) -> DetectionIndex:
    """Open one split of the demo set, drawing the set on first use.

    Args:
        root: the folder to keep it in; None is the cache folder.
        split: "train", "val" or "test".

    Raises:
        UserError: no such split, or the folder cannot be written.
    """
    return open_coco(demo_folder(root, split), split, name="demo")


def demo_folder(root: Path | None, split: str) -> Path:
    """Return the folder of the demo set, drawing the set on first use; arguments and errors of `open_demo`."""
    if split not in DEMO_SPLITS:
        raise UserError(
            f"the demo set has no split {split!r}, only {', '.join(DEMO_SPLITS)}{nearest(split, list(DEMO_SPLITS))}"
        )
    return draw_demo(root or cache_folder())


def draw_demo(parent: Path) -> Path:
    """Draw the demo set into a folder under ``parent`` unless it is there, and return that folder.

    It is drawn beside and renamed, so that a crash leaves nothing half done and two processes may do it at once.

    Raises:
        UserError: the folder cannot be written.
    """
    target = parent / _VERSION
    if target.is_dir():
        return target
    draft = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{_VERSION}-", dir=parent))
        draft.chmod(0o755)
        for number, (split, count) in enumerate(DEMO_SPLITS.items()):
            _write_split(draft, split, [draw_scene(10_000 * (number + 1) + i) for i in range(count)])
        draft.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster
            raise UserError(
                f"the demo set cannot be written to {parent} ({error}); name another folder with EFFDENSE_CACHE"
            ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def draw_scene(seed: int) -> Scene:
    """Draw one scene; the same seed gives the same pixels everywhere."""
    draw = _Draw(seed)
    height, width = draw.between(*_SIDE), draw.between(*_SIDE)
    image = _ground(draw, height, width)
    visible: list[_Bools] = []
    full_areas: list[int] = []
    labels: list[int] = []
    for _ in range(draw.between(1, 2 * _MOST_SHAPES) if draw.between(0, 19) else 0):
        label = draw.between(0, len(DEMO_CLASSES) - 1)
        shape = _shape(draw, label, height, width)
        area = int(shape.sum())
        remaining = [int((seen & ~shape).sum()) for seen in visible]
        hidden = any(left < _LEAST_VISIBLE * full for left, full in zip(remaining, full_areas, strict=True))
        if hidden or len(labels) == _MOST_SHAPES:
            continue
        _paint(draw, image, shape)
        visible = [*(seen & ~shape for seen in visible), shape]
        full_areas.append(area)
        labels.append(label)
    stack = np.stack(visible) if visible else np.zeros((0, height, width), np.bool_)
    noise = draw.integers((height, width, 3), 0, 24) - 12
    return Scene(np.clip(image + noise, 0, 255).astype(np.uint8), stack, tuple(labels))


class _Draw:
    """Random integers from raw bits, whose stream no NumPy release may change."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> _Ints:
        """Integers in [low, high]; the bias of the remainder is below 2^-50."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape))), np.uint64)
        return np.asarray(raw % np.uint64(high - low + 1), np.int64).reshape(shape) + low

    def between(self, low: int, high: int) -> int:
        """One integer in [low, high]."""
        return int(self.integers((1,), low, high)[0])


def _smooth(draw: _Draw, height: int, width: int, cell: int, low: int, high: int) -> _Ints:
    """Random colours on a coarse grid, joined linearly, (H, W, 3)."""
    grid = draw.integers((height // cell + 2, width // cell + 2, 3), low, high)
    rows, down = np.divmod(np.arange(height), cell)
    columns, right = np.divmod(np.arange(width), cell)
    lines = grid[rows] * (cell - down)[:, None, None] + grid[rows + 1] * down[:, None, None]
    joined = lines[:, columns] * (cell - right)[:, None] + lines[:, columns + 1] * right[:, None]
    return np.asarray(joined // cell**2, np.int64)


def _ground(draw: _Draw, height: int, width: int) -> _Ints:
    """A cloudy ground with strokes and specks that are no class, (H, W, 3)."""
    base = draw.integers((3,), 60, 195)
    ground = base + _smooth(draw, height, width, 32, -45, 45) + _smooth(draw, height, width, 7, -18, 18)
    canvas = np.ascontiguousarray(np.clip(ground, 0, 255).astype(np.uint8))
    for _ in range(draw.between(2, 7)):
        x1, x2 = draw.between(0, width), draw.between(0, width)
        y1, y2 = draw.between(0, height), draw.between(0, height)
        colour = tuple(draw.integers((3,), 20, 235).tolist())
        cv2.line(canvas, (x1, y1), (x2, y2), colour, draw.between(1, 2), cv2.LINE_8)
    for _ in range(draw.between(4, 14)):
        x, y, side = draw.between(0, width), draw.between(0, height), draw.between(1, 4)
        colour = tuple(draw.integers((3,), 20, 235).tolist())
        cv2.rectangle(canvas, (x, y), (x + side, y + draw.between(1, 4)), colour, -1)
    return canvas.astype(np.int64)


def _shape(draw: _Draw, label: int, height: int, width: int) -> _Bools:
    """The pixels of one shape that lies wholly or for the most part in the scene, (H, W)."""
    side = draw.between(*_SHAPE_SIDE)
    radius = side / 2
    margin = max(1, side * 2 // 5)
    centre = np.array([draw.between(margin, width - margin), draw.between(margin, height - margin)])
    turn = np.deg2rad(draw.between(0, 359) + 0.123)  # off the round angles, whose cosines may round either way
    squeeze = draw.between(80, 100) / 100
    rings = [_outline(DEMO_CLASSES[label], radius)]
    if DEMO_CLASSES[label] == "ring":
        rings.append(rings[0] * (draw.between(45, 60) / 100))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners = [np.rint(ring * [1, squeeze] @ rotation + centre).astype(np.int32) for ring in rings]
    canvas = np.zeros((height, width), np.uint8)
    for corner, value in zip(corners, (1, 0), strict=False):
        cv2.fillPoly(canvas, [corner], value, cv2.LINE_8)
    return canvas.astype(np.bool_)


def _outline(name: str, radius: float) -> npt.NDArray[np.float64]:
    """Corners of a shape around the origin, (P, 2)."""
    if name in ("circle", "ring"):
        return _spokes(32, [radius])
    if name == "square":
        return _spokes(4, [radius * 1.2])
    if name == "triangle":
        return _spokes(3, [radius * 1.2])
    if name == "star":
        return _spokes(10, [radius * 1.15, radius * 0.48])
    arm = radius * 0.32
    quarter = np.array([[arm, arm], [arm, radius], [-arm, radius]])
    turns = [np.array([[1, 0], [0, 1]]), np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]])]
    return np.concatenate([quarter @ turn for turn in (*turns, np.array([[0, -1], [1, 0]]))])


def _spokes(count: int, radii: list[float]) -> npt.NDArray[np.float64]:
    """Points at equal angles, their distances taken from ``radii`` in turn, (count, 2)."""
    angles = 2 * np.pi * np.arange(count) / count
    distances = np.array([radii[i % len(radii)] for i in range(count)])
    return np.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1) * distances[:, None], np.float64)


def _paint(draw: _Draw, image: _Ints, shape: _Bools) -> None:
    """Colour a shape in place: plain, shaded or striped, at some contrast to what it covers."""
    colour = draw.integers((3,), 0, 255)
    behind = image[shape].sum(axis=0) // max(1, int(shape.sum()))
    if abs(colour - behind).sum() < 120:
        colour = np.where(behind > 127, behind - 75, behind + 75)
    height, width = shape.shape
    kind, period = draw.between(0, 2), draw.between(3, 6)
    texture = _smooth(draw, height, width, 16, -30, 30)
    if kind == 1:
        y, x = np.mgrid[:height, :width]
        texture = texture + np.where((x + y * draw.between(-1, 1)) // period % 2, 24, -24)[..., None]
    image[shape] = np.clip(colour + texture, 0, 255)[shape]


def _write_split(folder: Path, split: str, scenes: list[Scene]) -> None:
    content: dict[str, Any] = {
        "info": {"description": "effdense demo set", "version": _VERSION},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(DEMO_CLASSES, start=1)],
    }
    (folder / "images" / split).mkdir(parents=True)
    (folder / "masks" / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for image_id, scene in enumerate(scenes, start=1):
        name = f"{image_id:04d}.png"
        height, width = scene.image.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        for label, visible in zip(scene.labels, scene.visible, strict=True):
            mask[visible] = label + 1
            annotation = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": label + 1}
            content["annotations"].append(annotation | _coco_shape(visible))
        _write_png(folder / "images" / split / name, cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        _write_png(folder / "masks" / split / name, mask)
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _coco_shape(visible: _Bools) -> dict[str, Any]:
    """Return COCO's bbox, area, iscrowd and segmentation of a mask, (H, W)."""
    from pycocotools import mask

    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    packed = mask.encode(np.asfortranarray(visible, np.uint8))
    return {
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(visible.sum()),
        "iscrowd": 0,
        "segmentation": {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()},
    }


def _write_png(path: Path, image: npt.NDArray[Any]) -> None:
    _, data = cv2.imencode(".png", image)
    path.write_bytes(data.tobytes())
