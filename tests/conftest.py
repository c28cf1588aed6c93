import os
from pathlib import Path

import pytest
from hypothesis import settings

from peregrine.backends._nvidia import nvidia_driver

_TESTS = Path(__file__).parent

# A time limit per example fails by chance on a machine with neighbours.
settings.register_profile("peregrine", deadline=None)
settings.load_profile("peregrine")


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped where the driver finds none."""
    found = nvidia_driver()
    if found:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=found.reason))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Fixtures of a module run before any of a test: they see no kept engines either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEREGRINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Tests see no environments and no kept engines of the person who runs them."""
    monkeypatch.setenv("PEREGRINE_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("PEREGRINE_CACHE", str(tmp_path_factory.mktemp("cache")))


def install_faults(patch: pytest.MonkeyPatch) -> None:
    """Install the misbehaving backends, here and in every worker, as a plugin package would be:
    by a `.dist-info` directory with entry points on the path."""
    plugins = str(_TESTS / "plugins")
    patch.syspath_prepend(plugins)
    patch.setenv("PYTHONPATH", os.pathsep.join([plugins, str(_TESTS)]))


@pytest.fixture
def faults(monkeypatch):
    install_faults(monkeypatch)


@pytest.fixture(scope="module")
def faults_for_module(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        install_faults(patch)
        patch.setenv("PEREGRINE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PEREGRINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
