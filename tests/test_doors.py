"""Doors open one way: tools -> tasks -> datasets -> core. The sources are read, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE, DATASETS, TOOLS = "core", "datasets", "tools"
LINKS = ("tasks", "datasets", "tools")  # folders in the root, links in effdense/
MAY_IMPORT_OTHER_TASKS = ("multitask",)


def modules() -> Iterator[tuple[str, Path]]:
    """Yield import name and file of every module of the project."""
    for path in sorted((ROOT / "effdense").rglob("*.py")):
        if path.relative_to(ROOT / "effdense").parts[0] not in LINKS:
            yield module_name(path.relative_to(ROOT)), path
    for link in LINKS:
        for path in sorted((ROOT / link).rglob("*.py")):
            yield module_name(Path("effdense") / path.relative_to(ROOT)), path


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """Return ``core``, ``datasets``, ``tools``, or ``tasks.<name>`` for a module of effdense."""
    parts = module.split(".")
    if len(parts) < 2 or parts[1] not in LINKS:
        return CORE
    if parts[1] == "tasks":
        return "tasks." + (parts[2] if len(parts) > 2 else "")
    return parts[1]


def allowed(importer: str, imported: str) -> bool:
    """Whether one room may import another."""
    if importer in (imported, TOOLS) or imported == CORE:
        return True
    if importer in (CORE, DATASETS):
        return False
    if imported.startswith("tasks."):
        return importer.removeprefix("tasks.") in MAY_IMPORT_OTHER_TASKS or imported == "tasks."
    return imported == DATASETS


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything that is imported, also inside functions and by a literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parent, base] if base else parent)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def breaches(module: str, source: str, is_package: bool = False) -> list[str]:
    """Return what a module does that its room may not."""
    found = []
    tree, room = ast.parse(source), room_of(module)
    for line, name in imports(tree, module, is_package):
        top = name.split(".")[0]
        if top in LINKS:
            found.append(f"{module}:{line} imports {name}: write effdense.{name}")
        elif top == "effdense" and not allowed(room, room_of(name)):
            found.append(f"{module}:{line} imports {name}: {room} must not know {room_of(name)}")
    if room == TOOLS:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit", "os._exit"):
            found.append(f"{module}:{node.lineno} calls {ast.unparse(node.func)}: a library does not")
    return found


ALL = list(modules())


def test_the_project_was_found() -> None:
    names = {name for name, _ in ALL}
    assert {"effdense", "effdense.config", "effdense.tasks.detection", "effdense.tools.main"} <= names


@pytest.mark.parametrize(("module", "path"), ALL, ids=[name for name, _ in ALL])
def test_a_module_opens_only_the_doors_of_its_room(module: str, path: Path) -> None:
    found = breaches(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    if module == "effdense.__main__":  # the program's entry, which is a door by itself
        found = [line for line in found if "effdense.tools.main" not in line]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("effdense.ops.boxes", "from effdense.datasets.coco import open_coco", id="core-datasets"),
        pytest.param("effdense.ops.boxes", "import effdense.tasks.detection.loss", id="core-task"),
        pytest.param("effdense.ops.boxes", "from effdense import datasets", id="core-from-package"),
        pytest.param("effdense.ops.boxes", "def f():\n    from ..tasks import detection", id="core-relative-inside"),
        pytest.param(
            "effdense.x", "import importlib\nimportlib.import_module('effdense.tools.main')", id="core-by-name"
        ),
        pytest.param("effdense.datasets.coco", "from effdense.tasks.detection import loss", id="datasets-task"),
        pytest.param("effdense.tasks.detection.loss", "from effdense.tasks.segmentation import loss", id="task-task"),
        pytest.param("effdense.tasks.detection.loss", "from ..segmentation import loss", id="task-task-relative"),
        pytest.param("effdense.tasks.detection.loss", "from effdense.tools import main", id="task-tools"),
        pytest.param("effdense.tools.main", "import datasets", id="top-level-datasets"),
        pytest.param("effdense.tools.main", "from tasks.detection import loss", id="top-level-tasks"),
        pytest.param("effdense.ops.boxes", "print(1)", id="print"),
        pytest.param("effdense.datasets.coco", "import sys\nsys.exit(1)", id="exit"),
    ],
)
def test_a_breach_is_seen(module: str, source: str) -> None:
    assert len(breaches(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("effdense.tools.main", "from effdense.tasks.detection import loss\nprint(1)", id="tools"),
        pytest.param("effdense.tasks.detection.a", "from .b import c\nfrom effdense.datasets import coco", id="task"),
        pytest.param("effdense.tasks.multitask.a", "from effdense.tasks.detection import loss", id="multitask"),
        pytest.param("effdense.datasets.coco", "from effdense.types import Sample\nfrom . import index", id="datasets"),
        pytest.param("effdense.ops.boxes", "import torch\nfrom effdense import errors", id="core"),
    ],
)
def test_an_open_door_is_no_breach(module: str, source: str) -> None:
    assert breaches(module, source) == []
