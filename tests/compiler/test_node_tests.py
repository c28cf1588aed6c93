"""ONNX's node tests on the native engine's operators: each is right, or refused by name.

What is refused, and why, is data: `node_refusals.json`, written by `node_evaluator.py`.
"""

from __future__ import annotations

import json

import pytest

from compiler import node_evaluator
from peregrine.errors import Unsupported

CASES = node_evaluator.node_tests()
REFUSALS = json.loads(node_evaluator.REFUSALS.read_text())


@pytest.mark.parametrize("name", CASES)
def test_is_right_or_refused_by_name(name):
    if name not in REFUSALS:
        node_evaluator.check(CASES[name])
        node_evaluator.check(CASES[name], last_axis_outermost=True)
        return
    with pytest.raises(Unsupported) as caught:
        node_evaluator.check(CASES[name])
    assert caught.value.what == REFUSALS[name]


@pytest.mark.gpu
def test_all_are_right_on_a_gpu():
    wrong = {}
    for name in CASES.keys() - REFUSALS.keys():
        try:
            node_evaluator.check(CASES[name], device="cuda")
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
    assert not wrong


def test_no_refusal_is_of_a_test_that_is_gone():
    assert not REFUSALS.keys() - CASES.keys()


def test_most_are_right():
    assert len(CASES.keys() - REFUSALS.keys()) >= 1650


def test_every_refusal_names_an_operator_or_a_type():
    for name, reason in REFUSALS.items():
        operators = {node.op_type for node in CASES[name].model.graph.node}
        assert "type" in reason or any(operator in reason for operator in operators), reason
