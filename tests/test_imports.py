"""Importing effdense and asking for help cost next to nothing and say nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effdense.tools.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "cv2", "timm", "effdet", "albumentations", "matplotlib", "segmentation_models_pytorch")

IMPORT_ALL = """
import importlib, json, pkgutil, sys, warnings
import effdense

said = []
def hear(message, category, filename, lineno, file=None, line=None):
    said.append([category.__name__, str(message), filename])

def names(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name.endswith((".__main__", ".checkout")):  # these two are programs
            continue
        yield found.name
        if found.ispkg:
            yield from names(importlib.import_module(found.name))

warnings.simplefilter("always")
warnings.showwarning = hear
seen = []
for part in ("effdense", "effdense.datasets"):  # datasets is a namespace, which pkgutil does not list
    seen += names(importlib.import_module(part))
for name in seen:
    importlib.import_module(name)
sys.stderr.write(json.dumps({"modules": seen, "warnings": said}))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": ""},
    )


def test_importing_effdense_loads_nothing_heavy() -> None:
    done = run("-c", f"import effdense, sys; print(set({HEAVY}) & set(sys.modules))")
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_no_module_prints_or_warns_on_import() -> None:
    done = run("-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    report = json.loads(done.stderr)
    expected = {"effdense.config", "effdense.types", "effdense.tasks.detection.model", "effdense.datasets.coco"}
    assert expected <= set(report["modules"])
    ours = [line for line in report["warnings"] if not is_deprecation_of_others(*line)]
    assert not ours, ours


def is_deprecation_of_others(category: str, message: str, filename: str) -> bool:
    return category.endswith("DeprecationWarning") and not Path(filename).resolve().is_relative_to(ROOT / "effdense")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_a_tool_is_printed_without_torch(name: str) -> None:
    module = f"effdense.tools.{COMMANDS[name].module}"
    code = (
        f"import sys; from {module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "sys.stderr.write(' '.join(sorted({'torch', 'cv2', 'timm', 'albumentations'} & set(sys.modules))))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
    assert done.stderr == ""
