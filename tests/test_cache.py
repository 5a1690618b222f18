"""The cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from effdense.cache import cache_folder


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("/elsewhere", Path("/elsewhere"), id="named"),
        pytest.param("~/kept", Path.home() / "kept", id="home"),
        pytest.param("", Path.home() / ".cache" / "effdense", id="empty"),
        pytest.param(None, Path.home() / ".cache" / "effdense", id="unset"),
    ],
)
def test_the_cache_folder_is_where_the_environment_says(
    value: str | None, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EFFDENSE_CACHE", raising=False)
    if value is not None:
        monkeypatch.setenv("EFFDENSE_CACHE", value)
    assert cache_folder() == expected
