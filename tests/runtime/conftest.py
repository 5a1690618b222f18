"""What the tests of exported files share."""

from __future__ import annotations

import pytest
from small_export import Exported, export_small


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small model of both tasks, its files and its data; not to be changed."""
    return export_small(tmp_path_factory.mktemp("exported"))
