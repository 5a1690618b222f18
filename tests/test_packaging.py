"""What is built holds one package, effdense, with the linked folders inside it, and runs where it is installed."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import effdense

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("tasks", "datasets", "tools")


def sources() -> list[str]:
    """Every module of the checkout under the name that the wheel must give it."""
    core = [path for path in (ROOT / "effdense").rglob("*.py") if path.relative_to(ROOT).parts[1] not in LINKS]
    linked = [path for link in LINKS for path in (ROOT / link).rglob("*.py")]
    return [path.relative_to(ROOT).as_posix() for path in core] + [
        "effdense/" + path.relative_to(ROOT).as_posix() for path in linked
    ]


def test_the_links_are_relative_and_lead_to_the_folders_in_the_root() -> None:
    for link in LINKS:
        assert os.readlink(ROOT / "effdense" / link) == f"../{link}"
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_the_version_stands_alike_in_the_project_and_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == effdense.__version__
    assert importlib.metadata.version("effdense") == effdense.__version__
    assert project["requires-python"] == ">=3.10"


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def distribution(requirement: str) -> str:
    """The name in a requirement or of a distribution, in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_everything_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = (*project["dependencies"], *extras["onnx"], *extras["openvino"])
    declared = {distribution(requirement) for requirement in requirements}
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in (ROOT / "effdense", *(ROOT / link for link in LINKS))
        for path in folder.rglob("*.py")
        for name in imported(path) - set(sys.stdlib_module_names) - {"effdense"}
        if not declared & {distribution(provider) for provider in providers.get(name, [name])}
    }
    assert not undeclared


def test_everything_but_exported_files_works_without_the_extras() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('onnx', 'onnxscript', 'onnxruntime', 'openvino')))\n"
    opened = "".join(f"import effdense.tasks.{task}.opening\n" for task in ("detection", "segmentation", "multitask"))
    code = f"{blocked}import effdense.loading, effdense.tools.export, effdense.tools.predict\n{opened}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_licence_is_the_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "[yyyy] [name of copyright owner]" in text


def test_tasks_refuse_to_be_a_package_of_their_own(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tasks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "ImportError" in done.stderr
    assert "effdense.tasks" in done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist of a copy of the checkout, built without a network."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "source"
    copy.mkdir()
    wanted = [*LINKS, "effdense", "pyproject.toml", "README.md", "LICENSE"]
    archive = folder / "source.tar"
    with tarfile.open(archive, "w") as tar:  # a tar keeps links as links
        for name in wanted:
            tar.add(ROOT / name, name, filter=lambda member: None if "__pycache__" in member.name else member)
    with tarfile.open(archive) as tar:
        tar.extractall(copy, filter="data") if sys.version_info >= (3, 12) else tar.extractall(copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder / "dist").glob("*.whl")), next((folder / "dist").glob("*.tar.gz"))


@pytest.mark.slow
def test_the_wheel_holds_every_module_under_effdense_and_nothing_beside_it(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        top_level = wheel.read(next(name for name in names if name.endswith("top_level.txt"))).decode().split()
    assert top_level == ["effdense"]
    assert {name.split("/")[0] for name in names} == {"effdense", f"effdense-{effdense.__version__}.dist-info"}
    assert sorted(name for name in names if name.endswith(".py")) == sorted(sources())
    assert "effdense/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_sdist_holds_the_same_modules(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert set(sources()) <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "effdense/py.typed"} <= names


@pytest.mark.slow
def test_the_wheel_runs_where_it_is_installed(built: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*command, str(built[0])], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import effdense, effdense.tasks.detection, effdense.tools.main\n"
        "print(effdense.__file__, effdense.tasks.detection.__file__)\n"
        "raise SystemExit(effdense.tools.main.main(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.count(str(site)) == 2
    assert done.stdout.endswith(f"effdense {effdense.__version__}\n")
