"""What the contract itself refuses."""

from __future__ import annotations

import dataclasses

import pytest

from peregrine.backends.base import check_graph
from peregrine.errors import OptionError
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision


@pytest.mark.parametrize("graph", ["", "u8s8", "u8s8+repaired", "u8s8+repaired2"])
def test_a_candidate_reads_the_graph_it_names(residual: Model, graph: str) -> None:
    precision = Precision.INT8 if graph else Precision.FP32
    check_graph(Candidate("any", "", precision, graph=graph), with_graph(residual, graph))


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("u8s8", ""), ("", "u8s8"), ("u8s8", "s8s8"), ("u8s8+repaired", "u8s8")],
)
def test_another_graph_is_refused_by_name(residual: Model, wanted: str, given: str) -> None:
    candidate = Candidate("any", "", Precision.INT8, graph=wanted)
    with pytest.raises(OptionError) as raised:
        check_graph(candidate, with_graph(residual, given))
    for name in (wanted, given):
        assert (f"the graph {name}" if name else "the graph as it came") in raised.value.what
    assert raised.value.fix


@pytest.mark.parametrize(
    ("graph", "precision", "named"), [("fp16", Precision.INT8, "fp16"), ("u4", "int8", "'u4'")]
)
def test_a_graph_that_is_not_of_the_precision_is_refused(
    residual: Model, graph: str, precision: str, named: str
) -> None:
    candidate = Candidate("any", "", Precision(precision), graph=graph)
    with pytest.raises(OptionError, match=named):
        check_graph(candidate, with_graph(residual, graph))


def with_graph(model: Model, graph: str) -> Model:
    return dataclasses.replace(model, graph=graph)
