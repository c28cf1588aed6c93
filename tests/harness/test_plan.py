"""Which candidates a request brings into a race."""

import pytest

from peregrine.errors import OptionError
from peregrine.harness.plan import make_plan
from peregrine.harness.request import Request
from peregrine.types import Precision
from peregrine_faults import VARIANTS
from tiny_model import make_tiny

pytestmark = pytest.mark.usefixtures("faults")

_PROPOSED = [f"faults[{variant}] fp32" for variant in VARIANTS]
_ON_REQUEST = [f"faults[seldom] fp32 tries={n}" for n in (1, 2)]


@pytest.fixture
def planned(tmp_path):
    model = make_tiny(tmp_path / "model")

    def ids(*only, **fields):
        request = Request(source="tiny", backends=("faults",), only=only, **fields)
        return [c.id for c in make_plan(model, request, tmp_path / "logs").candidates]

    return ids


def test_a_slow_row_is_raced_where_it_is_named_and_nowhere_else(planned):
    assert planned() == planned("*") == planned("faults*") == planned("faults") == _PROPOSED
    assert planned("faults[seldom]*") == _ON_REQUEST
    assert planned(_ON_REQUEST[1]) == _ON_REQUEST[1:]
    assert planned("*", _ON_REQUEST[0]) == [*_PROPOSED, _ON_REQUEST[0]]
    assert planned("*", "faults[seldom]*", skip=("*tries=1",)) == [*_PROPOSED, _ON_REQUEST[1]]


def test_a_backend_that_cannot_take_part_is_one_row_that_says_so(tmp_path):
    model = make_tiny(tmp_path / "model")
    request = Request(source="tiny", backends=("faults", "openvino"), device="cuda:0")
    (row,) = make_plan(model, request, tmp_path / "logs").absent
    assert (row.backend, row.absent) == ("openvino", True)
    assert (tmp_path / row.log).is_file()


def test_a_slow_row_keeps_to_the_precisions_asked_for(planned):
    with pytest.raises(OptionError, match="No candidate matches") as caught:
        planned("faults[seldom]*", precisions=(Precision.FP16,))
    assert _ON_REQUEST[0] in caught.value.why


def test_a_backend_that_no_race_proposes_is_raced_where_it_is_named(tmp_path):
    """The native engine, on a CPU."""
    model = make_tiny(tmp_path / "model")

    def ids(**fields):
        found = make_plan(model, Request(source="tiny", **fields), tmp_path / "logs").candidates
        return [c.id for c in found if c.backend == "native"]

    assert ids(backends=("native",)) == ["native fp32"]
    assert ids(backends=("native", "onnxruntime"), only=("native fp32", "onnx*")) == ["native fp32"]
    assert ids(backends=("native", "onnxruntime"), only=("onnxruntime*",)) == []
    assert ids(backends=()) == []
