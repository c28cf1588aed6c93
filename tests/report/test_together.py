"""Sessions side by side in the terminal, on the page, in the JSON."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from example_report import side_by_side
from peregrine.report import figures
from peregrine.report.html import page
from peregrine.report.store import read_json, write_json
from peregrine.report.table import render
from peregrine.results import Report


@pytest.fixture
def crowded(report: Report) -> Report:
    return side_by_side(report)


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=100)
    render(report, console)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def words(report: Report) -> str:
    found = re.search(r"<h2>Side by side</h2>.*?</section>", page(report), re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", found[0])).split()) if found else ""


def test_without_them_nothing_is_said(report: Report) -> None:
    assert "Side by side" not in shown(report)
    assert words(report) == ""


def test_the_terminal_and_the_page_show_every_number(crowded: Report) -> None:
    text, shown_words = shown(crowded), words(crowded)
    assert text.index("Final,") < text.index("Side by side") < text.index("May not win")
    for c in crowded.concurrency:
        if c.latency_ms is None:
            assert c.error in text
            assert c.error in shown_words
    # Two sessions give 1.6 times what one does.
    for said in (text, shown_words):
        assert figures.times(1.6) in said
        assert "The race's threads are shared out among them." in said
    for title in ("items per second", "p99 of an inference, ms"):
        assert f'aria-label="{title} against sessions, for every leader"' in page(crowded)


def test_one_number_alone_is_no_curve(crowded: Report) -> None:
    one = tuple(c for c in crowded.concurrency if c.sessions == 2)
    text = page(dataclasses.replace(crowded, concurrency=one))
    assert "Side by side" in text
    assert "against sessions" not in text
    assert figures.times(1.6) not in words(dataclasses.replace(crowded, concurrency=one))


def test_on_a_gpu_sessions_have_streams(crowded: Report) -> None:
    rows = tuple(dataclasses.replace(c, threads=None) for c in crowded.concurrency)
    assert "a stream of its own on the GPU" in shown(dataclasses.replace(crowded, concurrency=rows))


def test_it_comes_back_from_json(crowded: Report, tmp_path: Path) -> None:
    write_json(crowded, tmp_path / "report.json")
    assert read_json(tmp_path).concurrency == crowded.concurrency


def test_what_a_runtime_says_is_text(crowded: Report) -> None:
    said = "<script>alert(1)</script> [red]x[/red]"
    rows = tuple(dataclasses.replace(c, error=said) for c in crowded.concurrency if c.error)
    hostile = dataclasses.replace(crowded, concurrency=rows)
    assert said not in page(hostile)
    assert said in words(hostile)
    assert said in shown(hostile)
