from pathlib import Path

import pytest

_PLUGINS = str(Path(__file__).parent / "plugins")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Tests see no environments of the person who runs them."""
    monkeypatch.setenv("PEREGRINE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def faults(monkeypatch):
    """Installs the misbehaving backends, here and in every worker, as a plugin package would."""
    monkeypatch.syspath_prepend(_PLUGINS)
    monkeypatch.setenv("PYTHONPATH", _PLUGINS)
