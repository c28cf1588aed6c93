"""Which function of an operator is found for an opset."""

from __future__ import annotations

import pytest

from peregrine.compiler.torch_ops import registry


def test_the_newest_version_that_is_not_too_new():
    older, newer = registry.find("ai.onnx.Squeeze", 12), registry.find("ai.onnx.Squeeze", 13)
    assert older is not None
    assert newer is not None
    assert older.since == 1
    assert newer.since == 13
    assert newer.host == {1}
    assert registry.find("ai.onnx.Squeeze", 99) is newer


def test_what_is_unknown_or_too_new_is_not_found():
    assert registry.find("ai.onnx.NoSuch", 20) is None
    assert registry.find("ai.onnx.Trilu", 13) is None
    assert registry.find("ai.onnx.Bernoulli", 22) is None


def test_names_are_sorted_and_of_known_domains():
    names = list(registry.names())
    assert names == sorted(names)
    assert {name.rpartition(".")[0] for name in names} >= {"ai.onnx", "peregrine"}


def test_tables_of_ever_new_sizes_do_not_pile_up():
    call = registry.Call()
    for size in range(1000):
        assert call.table(size, lambda size=size: size + 1) == size + 1
    assert 0 < len(call.tables) <= 100


def test_an_operator_is_registered_once():
    registry.find("ai.onnx.Add", 14)
    with pytest.raises(ValueError, match="twice"):
        registry.operator("ai.onnx.Add")(lambda call: None)
