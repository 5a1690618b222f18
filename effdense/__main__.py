"""``python -m effdense`` is ``effdense``."""

from __future__ import annotations

import importlib
import sys


def main() -> int:
    """Run the command line. The tools are found by name, because the core imports none of them."""
    return int(importlib.import_module("effdense.tools.main").main(sys.argv[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
