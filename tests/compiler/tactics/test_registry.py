"""Tactics by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compiler.tactics.operations import H200, conv, linear
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Tactic
from peregrine.errors import Unsupported
from peregrine.types import Support


def test_each_is_found_by_its_own_name():
    found = registry.tactics()
    assert len({tactic.name for tactic in found}) == len(found)
    for tactic in found:
        assert isinstance(tactic, Tactic)
        assert registry.get(tactic.name) is tactic


def test_the_order_stays_and_the_one_that_takes_all_is_last():
    assert registry.tactics() == registry.tactics()
    assert registry.tactics()[-1] is registry.torch_ops()


def test_an_engine_that_names_another_is_told_which_there_are():
    with pytest.raises(Unsupported) as caught:
        registry.get("of_another_version")
    assert "of_another_version" in caught.value.what
    assert "cudnn_graph" in caught.value.why
    assert "Build" in caught.value.fix


def test_every_one_answers_for_every_operation():
    operations = (
        conv((1, 8, 9, 9), 8, Window((3, 3)), dtype="float16"),
        linear((4, 8), 8),
        Operation("ai.onnx.NoSuchThing", opset=17),
    )
    for tactic in registry.tactics():
        for operation in operations:
            support = tactic.supports(operation, H200)
            assert isinstance(support, Support)
            assert support or support.reason


def test_listing_them_imports_no_library():
    code = (
        "import sys; from peregrine.compiler.tactics import registry; registry.tactics();"
        "print([name for name in ('torch', 'triton', 'cudnn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
