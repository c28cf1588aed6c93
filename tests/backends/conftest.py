from __future__ import annotations

import pytest

from peregrine.model.model import Model
from small_models import SMALL


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return SMALL["residual"]().load(tmp_path_factory.mktemp("residual"))
