import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test finds a graph that another one made, or the person who runs it."""
    monkeypatch.setenv("PEREGRINE_CACHE", str(tmp_path_factory.mktemp("cache")))
