"""Every registered backend, every candidate it proposes, every small model, on fresh inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conformance import BATCH, LARGEST, SEED, Subject, assert_close
from peregrine.backends import registry
from peregrine.backends.base import Session
from peregrine.errors import BackendUnavailable, FeedError
from peregrine.model.model import Model
from peregrine.types import Candidate
from small_models import SMALL
from torch_model import bare_outputs

# With these installed, something of theirs must run every small model on any machine.
RUN_ANYWHERE = {"pytorch", "torch_compile", "onnxruntime", "openvino"}
# torch_compile builds for seconds per session: by default only what differs in kind.
SLOW_BACKENDS = {"torch_compile"}
QUICK_MODELS = {"residual", "lstm", "int_input"}
LOWER = {"onnxruntime": {"fp16", "int8"}, "pytorch": {"fp16", "bf16"}, "openvino": {"int8"}}
# Convolutions, a recurrent network, a transformer: what lower precisions differ in. Each is
# converted to every graph that the backend's candidates read.
LOWERED_MODELS = {"residual", "lstm", "attention"}


def _subjects() -> list[object]:
    return [
        pytest.param(
            (backend, model),
            id=f"{backend}-{model}",
            marks=[pytest.mark.slow]
            if backend in SLOW_BACKENDS and model not in QUICK_MODELS
            else [],
        )
        for backend in registry.names()
        for model in SMALL
    ]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    models: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in models:
            models[name] = SMALL[name]().load(tmp_path_factory.mktemp(name))
        return models[name]

    return get


@pytest.fixture(scope="module", params=_subjects())
def subject(
    request: pytest.FixtureRequest,
    loaded: Callable[[str], Model],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Subject]:
    print(f"PEREGRINE_TEST_SEED={SEED}")
    backend_name, model_name = request.param
    backend, model = registry.get(backend_name), loaded(model_name)
    available = backend.available()
    if not available:
        assert available.reason
        assert available.fix
        pytest.skip(f"{backend_name}: {available.reason}")
    module = SMALL[model_name]().module
    made = Subject(
        backend,
        model,
        lambda feeds: bare_outputs(module, model, feeds),
        tmp_path_factory.mktemp("graphs"),
        model_name in LOWERED_MODELS and backend_name not in SLOW_BACKENDS,
    )
    yield made
    made.close()


def each(subject: Subject, fixed: bool = True) -> list[tuple[Candidate, Session]]:
    """Every candidate that runs here; skips where none does, for the reason that it gave."""
    running = list(subject.running(fixed))
    if not running:
        outcomes = [subject.outcome(c, fixed) for c in subject.candidates()]
        pytest.skip("; ".join(sorted({getattr(o, "why", "") or str(o) for o in outcomes})))
    return running


def test_a_candidate_compiles_or_says_why_not(subject: Subject) -> None:
    candidates = subject.candidates()
    assert candidates
    assert len({candidate.id for candidate in candidates}) == len(candidates)
    for candidate in candidates:
        outcome = subject.outcome(candidate)
        if not isinstance(outcome, Session):
            assert outcome.what, candidate.id
            assert outcome.why, candidate.id
            assert outcome.fix or not isinstance(outcome, BackendUnavailable), candidate.id
    if subject.backend.name in RUN_ANYWHERE:
        assert list(subject.running()), [str(subject.outcome(c)) for c in candidates]
        # And in each precision that the backend computes in, not in fp32 alone.
        lower = LOWER.get(subject.backend.name, set()) if subject.lower else set()
        assert lower <= {str(c.precision) for c, _ in subject.running()}


def test_outputs_agree_with_the_module(subject: Subject, subtests: pytest.Subtests) -> None:
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            for salt in range(3):
                feeds = subject.feeds(salt=salt)
                subject.assert_right(candidate, session.run(feeds), feeds)


def test_a_dynamic_profile_serves_its_sizes(subject: Subject, subtests: pytest.Subtests) -> None:
    for candidate, session in each(subject, fixed=False):
        with subtests.test(candidate.id):
            for batch in (1, 2, 5, LARGEST):
                feeds = subject.feeds(batch)
                assert session.profile.covers(subject.model.sizes(batch))
                subject.assert_right(candidate, session.run(feeds), feeds, f"batch {batch}")


def test_outputs_are_what_the_specs_say(subject: Subject, subtests: pytest.Subtests) -> None:
    sizes = subject.model.sizes(BATCH)
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            assert session.inputs == subject.model.inputs
            assert session.outputs == subject.model.outputs
            outputs = session.run(subject.feeds())
            assert list(outputs) == [spec.name for spec in session.outputs]
            for spec in session.outputs:
                value = outputs[spec.name]
                assert type(value) is np.ndarray
                assert value.dtype.name == spec.dtype
                for size, dim in zip(value.shape, spec.shape, strict=True):
                    assert size == sizes.get(dim, size) if isinstance(dim, str) else size == dim


def test_the_device_boundary_computes_what_the_host_boundary_does(
    subject: Subject, subtests: pytest.Subtests
) -> None:
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            for salt in (1, 2):
                feeds = subject.feeds(salt=salt)
                expected = session.run(feeds)
                session.bind(feeds)
                for _ in range(2):
                    session.enqueue()
                    session.synchronize()
                    assert_close(session.fetch(), expected, 1e-6, candidate.id)


def test_several_inferences_in_flight(subject: Subject, subtests: pytest.Subtests) -> None:
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            assert session.parallelism >= 1
            feeds = subject.feeds(salt=3)
            session.bind(feeds)
            for _ in range(3):
                for _ in range(session.parallelism):
                    session.enqueue()
                session.synchronize()
            subject.assert_right(candidate, session.fetch(), feeds)


def test_the_caller_owns_outputs_and_keeps_inputs(
    subject: Subject, subtests: pytest.Subtests
) -> None:
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            first, second = subject.feeds(salt=4), subject.feeds(salt=5)
            before = {name: value.copy() for name, value in first.items()}
            run = session.run(first)
            session.bind(first)
            session.enqueue()
            session.synchronize()
            fetched = session.fetch()
            kept = {name: value.copy() for name, value in run.items()}
            for outputs in (session.run(second), fetched):
                for value in outputs.values():
                    assert value.flags.writeable
                    value.fill(0)
            session.enqueue()
            session.synchronize()
            session.run(second)
            for name, value in kept.items():
                np.testing.assert_array_equal(run[name], value)
            for name, value in before.items():
                np.testing.assert_array_equal(first[name], value)


def test_any_memory_layout_is_taken(subject: Subject, subtests: pytest.Subtests) -> None:
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            feeds = subject.feeds(salt=6)
            expected = session.run(feeds)
            odd = {name: np.asfortranarray(value) for name, value in feeds.items()}
            for value in odd.values():
                value.flags.writeable = False
            assert_close(session.run(odd), expected, 1e-6, candidate.id)
            session.bind(odd)
            session.enqueue()
            session.synchronize()
            assert_close(session.fetch(), expected, 1e-6, candidate.id)


def test_what_does_not_fit_is_refused(subject: Subject, subtests: pytest.Subtests) -> None:
    good = subject.feeds()
    name, value = next(iter(good.items()))
    other = np.zeros(value.shape, "float64" if value.dtype != np.float64 else "float32")
    wrong = {
        "unknown name": {**good, "no_such_input": value},
        "missing": {k: v for k, v in good.items() if k != name},
        "rank": {**good, name: value[0]},
        "dtype": {**good, name: other},
        "fixed size": {**good, name: np.concatenate([value, value], axis=-1)},
        "no elements": {**good, name: value[:0]},
    }
    if "width" in subject.model.sizes(BATCH):
        del wrong["fixed size"]  # its last dimension is open
    for candidate, session in each(subject):
        served = session.profile.covers(subject.model.sizes(BATCH + 1))
        cases = wrong if served else {**wrong, "other batch": subject.feeds(BATCH + 1)}
        for what, feeds in cases.items():
            with subtests.test(f"{candidate.id}: {what}"):
                with pytest.raises(FeedError) as raised:
                    session.run(feeds)
                assert raised.value.fix
                with pytest.raises(FeedError):
                    session.bind(feeds)
        with subtests.test(f"{candidate.id}: still works"):
            subject.assert_right(candidate, session.run(good), good)


def test_placement_names_where_nodes_ran(subject: Subject, subtests: pytest.Subtests) -> None:
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            placement = session.placement(subject.feeds())
            assert placement.device == "cpu"
            assert placement.proof
            assert sum(placement.nodes.values()) > 0
            assert not placement.fell_back or placement.detail


def test_what_is_saved_comes_back(
    subject: Subject, subtests: pytest.Subtests, tmp_path: Path
) -> None:
    for fixed in (True, False):
        if not fixed and subject.backend.name in SLOW_BACKENDS:
            continue  # a just-in-time session saves nothing; its fixed one is above
        for i, (candidate, session) in enumerate(each(subject, fixed)):
            with subtests.test(f"{candidate.id} fixed={fixed}"):
                directory = tmp_path / f"{fixed}{i}"
                directory.mkdir()
                subject.backend.save(session, directory)
                target, feeds = subject.target(fixed), subject.feeds(salt=7)
                model = subject.read_by(candidate)
                with subject.backend.load(directory, model, candidate, target) as loaded:
                    found = loaded.run(feeds)
                    assert loaded.placement(feeds).nodes
                subject.assert_right(candidate, found, feeds)


def test_a_session_closes_twice(subject: Subject, subtests: pytest.Subtests) -> None:
    """The last test of a subject: nothing runs after it."""
    for candidate, session in each(subject):
        with subtests.test(candidate.id):
            session.bind(subject.feeds())
            session.enqueue()
            session.close()
            session.close()
