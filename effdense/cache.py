"""The one folder for what effdense makes or fetches and may need again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of downloaded weights and the demo set: $EFFDENSE_CACHE, else ~/.cache/effdense."""
    return Path(os.environ.get("EFFDENSE_CACHE") or "~/.cache/effdense").expanduser()
