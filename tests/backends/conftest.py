from __future__ import annotations

from collections.abc import Iterator

import pytest

from peregrine.model.model import Model
from small_models import SMALL


@pytest.fixture(autouse=True, scope="session")
def conversions_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted graphs are kept by content in the user's cache, which tests leave alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEREGRINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return SMALL["residual"]().load(tmp_path_factory.mktemp("residual"))


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return SMALL["attention"]().load(tmp_path_factory.mktemp("attention"))
