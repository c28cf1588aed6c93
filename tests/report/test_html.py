"""The page: one file, whole, escaped, and needing nothing from anywhere."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from peregrine.harness.statistics import latency_ms
from peregrine.report.html import page, write_html
from peregrine.report.html.markup import Markup, el
from peregrine.report.html.plot import Scale
from peregrine.results import EngineOrigin, Report

_VOID = {"br", "meta", "wbr"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, tag
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] not in (["script"], ["style"]):
            self.text.append(data)


def read(source: str) -> Reader:
    reader = Reader()
    reader.feed(source)
    reader.close()
    assert not reader.stack
    return reader


def test_it_asks_nothing_of_anyone(report: Report) -> None:
    source = page(report)
    assert not re.search(r"""(?:src|href|action|poster)\s*=|url\(|@import|https?:""", source)
    reader = read(source)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"link", "img", "iframe", "object", "form"})
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    script = re.search(r"<script>(.*)</script>", source, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_it_is_small(report: Report) -> None:
    assert len(page(report).encode()) < 500_000


def test_every_row_is_there_with_its_reason(report: Report) -> None:
    text = "".join(read(page(report)).text)
    for c in report.candidates:
        for part in (c.id, c.reason, c.fix, c.disqualified, c.log):
            assert part in text, part
    assert "Tie" in text
    assert "2.3e-07" in text  # a scaled error
    assert "photos/cat_000.jpg" in text  # an image whose class changed
    assert "Resize nodes ran on CPUExecutionProvider" in text
    assert "avx512_vnni" in text


def test_a_kept_engine_is_called_one(report: Report) -> None:
    origin = EngineOrigin(True, "2026-11-20T09:15:00+00:00", 0.5)
    first, *others = report.candidates
    row = dataclasses.replace(first, build_s=18.0, engine=origin)
    text = "".join(read(page(dataclasses.replace(report, candidates=(row, *others)))).text)
    assert "built in 18.0 s on 2026-11-20, loaded in 0.50 s (36.0\u00d7)" in text
    assert "engine from the cache" not in "".join(read(page(report)).text)


def test_every_sample_is_drawn(report: Report) -> None:
    source = page(report)
    rugs = re.findall(r'd="([^"]*)" class="rug"', source)
    drawn = sum(rug.count("M") for rug in rugs)
    measured = sum(
        len(m.samples_ms)
        for c in report.candidates
        for m in c.measurements
        if (m.batch, m.boundary) == (1, "host")
    )
    assert drawn == measured + sum(len(r.samples_ms) for r in report.final_rounds)


def test_a_backend_has_one_colour_everywhere(report: Report) -> None:
    source = page(report)
    assert "--c:var(--openvino)" in source
    for tag, attributes in read(source).tags:
        key, style = attributes.get("data-key"), attributes.get("style") or ""
        if key == "1" and "--c" in style:
            assert "--c:var(--openvino)" in style, tag


def test_hostile_words_are_only_words(hostile: Report) -> None:
    source = page(hostile)
    reader = read(source)
    assert source.count("<script") == 1
    assert not {"i", "model", "log", "red"} & {tag for tag, _ in reader.tags}
    assert "\x1b" not in source
    assert "evil[CPUExecutionProvider] <script>alert(1)</script> [red]x[/red]" in "".join(
        reader.text
    )
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)


def test_edge_cases_make_a_page(edge_cases: dict[str, Report]) -> None:
    for name, report in edge_cases.items():
        text = "".join(read(page(report)).text)
        assert ("No winner" in text) == (report.winner is None), name
        assert "nan" not in re.findall(r'd="[^"]*nan', page(report)), name


def test_it_is_written_whole(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_text() == page(report)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["report.html"]


def test_only_markup_is_markup() -> None:
    made = el("p", "<b>", Markup("<i>"), [None, "&"], title='a"b', hidden=False, open_=True)
    assert made == '<p title="a&quot;b" open>&lt;b&gt;<i>&amp;</p>'
    assert html.unescape(el("p", "'")) == "<p>'</p>"


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 31.6, False), (0.9, 1.7, False), (7, 52, True), (6.9, 7.3, True), (1, 1, True)],
)
def test_ticks_lie_inside_and_are_few(low: float, high: float, log: bool) -> None:
    scale = Scale(low, high, log)
    ticks = scale.ticks()
    assert len(ticks) <= 12
    assert all(low * 0.999 <= t <= high * 1.001 for t in ticks)
    assert all(0 <= scale(t) <= 1000 for t in ticks)


def test_a_very_noisy_row_is_drawn_too(report: Report) -> None:
    """Samples all over the scale ask for the widest kernel."""
    rng = np.random.default_rng(0)
    first = report.candidates[0]
    wild = tuple(rng.lognormal(2, 1.5, 40).tolist())
    noisy = dataclasses.replace(
        first,
        measurements=tuple(
            dataclasses.replace(m, samples_ms=wild, latency_ms=latency_ms(wild))
            for m in first.measurements
        ),
    )
    rest = report.candidates[1:]
    assert first.id in page(dataclasses.replace(report, candidates=(noisy, *rest)))


def test_a_missing_runtime_has_one_card_for_all_its_precisions(report: Report) -> None:
    missing = next(c for c in report.candidates if c.backend == "tensorrt")
    lower = dataclasses.replace(missing, id="tensorrt fp16")
    whole = dataclasses.replace(report, candidates=(*report.candidates, lower))
    cards, alone = ("".join(read(page(r)).text) for r in (whole, report))
    assert lower.id in cards
    assert cards.count(missing.reason) == alone.count(missing.reason) == 1
