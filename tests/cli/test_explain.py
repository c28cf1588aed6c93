"""`peregrine explain` as a user meets it, and the page that it writes."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import onnx
import pytest
import torch
from typer.testing import CliRunner

from peregrine.cli.app import app
from peregrine.compiler.autotune import Autotuner
from peregrine.compiler.build import build
from peregrine.compiler.devices import describe
from peregrine.compiler.engine import save
from peregrine.compiler.explain import explain
from peregrine.compiler.fingerprint import fingerprint
from peregrine.compiler.tactics.base import Device
from peregrine.model.load import load
from peregrine.report.html.engine import engine_page
from peregrine.types import Precision
from small_plan import FINGERPRINT, small_plan
from tiny_model import tiny_graph

_VOID = {"br", "meta", "wbr"}


@pytest.fixture
def engine(tmp_path):
    weights = {name: torch.zeros(2) for name in ("w", "bias", "head", "axes")}
    device = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)
    plans = [small_plan("<b>net</b>", batch) for batch in (1, 8)]
    save(tmp_path / "engine", plans, [weights, weights], FINGERPRINT, device=device)
    return tmp_path / "engine"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What the compiler makes of a real graph on the CPU, where nothing is timed."""
    home = tmp_path_factory.mktemp("built")
    onnx.save(tiny_graph(), home / "tiny.onnx")
    model = load(home / "tiny.onnx", home / "model")
    lowered = build(model, model.sizes(2), Precision.FP32, Autotuner(describe("cpu")))
    save(home / "engine", [lowered.plan], [lowered.weights], fingerprint("cpu"),
         device=describe("cpu"))  # fmt: skip
    return home / "engine", lowered.plan


def test_a_real_engine(built):
    home, plan = built
    code, said = _say("explain", home)
    assert code == 0
    assert f"{len(plan.steps)} step" in said
    assert "none was timed" in said
    (found,) = explain(home).plans
    assert max(found.alive) == plan.memory.lower_bound
    assert len(found.steps) == len(plan.steps)
    _Page(engine_page(explain(home)))


def _say(*arguments: object, width: int = 200) -> tuple[int, str]:
    found = CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1"}).invoke(
        app, list(map(str, arguments))
    )
    return found.exit_code, found.output


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_step_is_told(engine, width):
    code, said = _say("explain", engine, width=width)
    words = " ".join(said.split())
    assert code == 0
    assert "<b>net</b> fp16, batch=1" in words
    assert "<b>net</b> fp16, batch=8" in words
    assert "NVIDIA H200, 790 TFLOP/s" in words
    for part in ("peregrine.Conv", "MaxPool", "peregrine.PoolLinear", "c1 + 2", "triton_gemm",
                 "20.0", "83.3%", "3 steps from 5 nodes", "lower bound", "a note"):  # fmt: skip
        assert part in words, part
    assert "cudnn" in words
    assert "had one tactic" in words
    assert all(len(line) <= width for line in said.splitlines())


def test_only_the_longest(engine):
    _, said = _say("explain", engine, "--top", 1)
    assert said.count("peregrine.Conv") == 2  # one a plan
    assert "MaxPool" not in said
    assert "3 steps" in said
    assert _say("explain", engine, "--top", 0)[0] == 2


def test_a_mistake_is_told_with_its_fix(tmp_path):
    code, said = _say("explain", tmp_path / "absent")
    assert code == 7
    assert "Traceback" not in said


class _Page(HTMLParser):
    """Checks that every element is closed, and collects text and what the page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_loads_nothing(engine, tmp_path):
    code, said = _say("explain", engine, "--html", tmp_path / "deep" / "page.html")
    assert code == 0
    assert "page.html" in said
    page = (tmp_path / "deep" / "page.html").read_text()
    found = _Page(page)
    assert found.loads == []
    assert "url(" not in page
    assert "<b>net</b>" not in page
    assert page.count('class="bar"') >= 2 * (2 + 2 + 2)  # by step, the longest, by tactic
    assert page.count('class="block"') == 2 * 2
    words = " ".join(" ".join(found.text).split())
    for part in ("Time by step at batch=8", "Memory at batch=1", "relative error 0.3 > 0.01",
                 "20.0 µs", "cudnn 25.0 µs", "580.1", "bn1"):  # fmt: skip
        assert part in words, part


def test_bars_and_blocks_lie_in_their_plots(engine):
    page = engine_page(explain(engine))
    shapes = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page)
    assert len(shapes) > 10
    for x, y, width, height in (map(float, shape) for shape in shapes):
        assert 0 <= x <= x + width <= 1000.5
        assert 0 <= y <= y + height <= 1000.5
    assert "NaN" not in page


def test_an_engine_without_times_has_no_charts_of_time(tmp_path):
    import msgspec

    plan = small_plan()
    steps = tuple(
        msgspec.structs.replace(s, chosen=msgspec.structs.replace(s.chosen, ms=None), runners_up=())
        for s in plan.steps
    )
    weights = {name: torch.zeros(2) for name in ("w", "bias", "head", "axes")}
    save(tmp_path / "e", [msgspec.structs.replace(plan, steps=steps)], [weights], {"cpu": "C"})
    code, said = _say("explain", tmp_path / "e", "--html", tmp_path / "page.html")
    assert code == 0
    assert "none was timed" in said
    page = (tmp_path / "page.html").read_text()
    _Page(page)
    assert "Time by step" not in page
    assert 'class="block"' in page
