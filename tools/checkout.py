"""Make ``python tools/<tool>.py`` run this checkout's code; a tool run as a file imports this first.

Python puts the folder of the file it runs at the head of ``sys.path``. That folder is ``tools/``, where ``effdense`` is
not found and where a module of ours could hide another's of the same name (``predict``, ``main``). The checkout's root
takes its place: the tool then runs the code beside it, whether or not this or another version of effdense is installed.
An installed tool (``effdense train-det``) does not come here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NEEDED = ("torch", "torchvision", "timm", "tyro", "albumentations", "cv2", "yaml")
"""Import names whose absence means that the project's dependencies are not installed for this Python."""


def enter_checkout() -> None:
    """Put the checkout's root where ``tools/`` stands in ``sys.path``.

    Raises:
        SystemExit: 2, with a sentence that says how to install what is missing.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file() and (root / "effdense").is_dir():
        sys.path[0] = str(root)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if sys.version_info < (3, 10) or missing:
        lacks = f"lacks {', '.join(missing)}" if missing else "is older than 3.10"
        sys.stderr.write(
            f"This Python ({sys.executable}) {lacks}: run `make env` and use .venv/bin/python, "
            f"or install the project with `pip install -e {root}`.\n"
        )
        raise SystemExit(2)


enter_checkout()
