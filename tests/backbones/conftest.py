import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's caches, and none reaches the network."""
    monkeypatch.setenv("EFFDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("effdense.backbones.sources.why_unreachable", lambda url, seconds: "no network in tests")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments: None)
