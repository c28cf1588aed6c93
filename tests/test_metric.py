import textwrap

import ml_dtypes
import numpy as np
import pytest

from peregrine.errors import OptionError
from peregrine.metric import Metric, load_metric, score

_OUTPUTS = {"y": np.arange(12, dtype=np.float32).reshape(4, 3)}
_INPUTS = {"x": np.zeros((4, 2), np.float32)}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of a name of its own into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    return write


def of(function):
    return Metric("m:f", function)


class TestLoading:
    def test_a_function_of_the_current_directory(self, module):
        module(
            "peregrine_metric_good",
            """
            def right(outputs, inputs, labels):
                return outputs["y"].argmax(1) == labels
            """,
        )
        metric = load_metric("peregrine_metric_good:right")
        assert metric.name == "peregrine_metric_good:right"
        found = score(metric, _OUTPUTS, _INPUTS, np.array([2, 2, 0, 2]))
        assert found.dtype == np.float64
        assert found.tolist() == [1, 1, 0, 1]

    def test_what_it_imports_while_it_runs_is_found_there_too(self, module):
        module("peregrine_metric_helper", "HALF = 0.5")
        module(
            "peregrine_metric_lazy",
            """
            def f(outputs, inputs, labels):
                from peregrine_metric_helper import HALF
                return HALF
            """,
        )
        assert score(load_metric("peregrine_metric_lazy:f"), _OUTPUTS, _INPUTS).tolist() == [0.5]

    @pytest.mark.parametrize("ref", ["", "module", ":f", "module:"])
    def test_the_form_is_explained(self, ref):
        with pytest.raises(OptionError, match="module:function"):
            load_metric(ref)

    @pytest.mark.parametrize(
        ("ref", "words"),
        [
            ("peregrine_no_such:f", "no Python module 'peregrine_no_such'"),
            ("peregrine_metric_typo:acuracy", "Did you mean 'accuracy'"),
            ("peregrine_metric_typo:NUMBER", "is not callable"),
            ("peregrine_metric_broken:f", "ZeroDivisionError"),
        ],
    )
    def test_what_cannot_be_loaded_says_why(self, module, ref, words):
        module("peregrine_metric_typo", "NUMBER = 3\ndef accuracy(o, i, l): return 1.0")
        module("peregrine_metric_broken", "1 / 0")
        with pytest.raises(OptionError) as caught:
            load_metric(ref)
        assert words in str(caught.value)
        assert caught.value.fix


class TestScoring:
    @pytest.mark.parametrize(
        "returned",
        [
            [1, 2, 3, 4],
            (1.0, 2.0, 3.0, 4.0),
            np.array([1, 2, 3, 4], np.int64),
            np.array([1, 2, 3, 4], np.float16),
            np.array([1, 2, 3, 4]).astype(ml_dtypes.bfloat16),
        ],
    )
    def test_a_score_for_each_item(self, returned):
        found = score(of(lambda o, i, t: returned), _OUTPUTS, _INPUTS)
        assert found.dtype == np.float64
        assert found.tolist() == [1, 2, 3, 4]

    @pytest.mark.parametrize("returned", [0.25, np.float32(0.25), np.array(0.25)])
    def test_one_number_for_the_batch_is_one_item(self, returned):
        found = score(of(lambda o, i, t: returned), _OUTPUTS, _INPUTS)
        assert (found.shape, found[0]) == ((1,), 0.25)

    def test_nan_is_the_guards_to_judge(self):
        assert np.isnan(score(of(lambda o, i, t: [np.nan] * 4), _OUTPUTS, _INPUTS)).all()

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            ([1.0, 2.0], r"shape \(2,\) for 4 items"),
            (np.ones((4, 2)), r"shape \(4, 2\)"),
            ([], r"shape \(0,\)"),
            (None, "a NoneType"),
            ("good", "not real numbers"),
            ({"a": 1}, "a dict"),
            (np.ones(4, complex), "complex128"),
            ([[1.0], [1.0, 2.0]], "no array of scores"),
        ],
    )
    def test_anything_else_is_refused_in_words(self, returned, words):
        with pytest.raises(OptionError, match=words) as caught:
            score(of(lambda o, i, t: returned), _OUTPUTS, _INPUTS)
        assert "def function(outputs, inputs, labels)" in caught.value.fix

    def test_labels_say_how_many_items_there_are(self):
        ragged = {"a": np.zeros((4, 1)), "b": np.zeros((9, 1))}
        metric = of(lambda o, i, t: [1.0] * 3)
        assert len(score(metric, ragged, ragged)) == 3  # unknown: the metric must know
        assert len(score(metric, ragged, ragged, np.zeros(3))) == 3
        with pytest.raises(OptionError, match="for 4 items"):
            score(metric, ragged, ragged, np.zeros(4))

    def test_a_failure_shows_the_users_line(self, module):
        module(
            "peregrine_metric_fails",
            """
            import numpy as np

            def f(outputs, inputs, labels):
                return np.concatenate(outputs["boxes"])
            """,
        )
        with pytest.raises(OptionError) as caught:
            score(load_metric("peregrine_metric_fails:f"), _OUTPUTS, _INPUTS)
        assert "KeyError: 'boxes'" in caught.value.what
        assert 'peregrine_metric_fails.py:5: return np.concatenate(outputs["boxes"])' in (
            caught.value.why
        )

    def test_a_failure_deep_in_a_library_shows_the_users_line_too(self, module):
        module(
            "peregrine_metric_deep",
            """
            import json

            def f(outputs, inputs, labels):
                return json.loads("{")
            """,
        )
        with pytest.raises(OptionError) as caught:
            score(load_metric("peregrine_metric_deep:f"), _OUTPUTS, _INPUTS)
        assert 'peregrine_metric_deep.py:5: return json.loads("{")' in caught.value.why

    def test_a_function_of_other_arguments_is_named(self):
        with pytest.raises(OptionError, match="positional argument") as caught:
            score(of(lambda o: 1.0), _OUTPUTS, _INPUTS)
        assert caught.value.why == "It could not be called with (outputs, inputs, labels)."

    def test_what_is_judged_cannot_be_changed(self):
        def greedy(outputs, inputs, labels):
            outputs["y"][:] = 1
            return 1.0

        with pytest.raises(OptionError, match="read-only"):
            score(of(greedy), _OUTPUTS, _INPUTS)
        assert _OUTPUTS["y"].flags.writeable
        assert _OUTPUTS["y"][0, 0] == 0
