"""A race on a GPU, reported: the device's memory in place of the host's, and its conditions."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from peregrine.harness.assemble import throttle_warnings
from peregrine.report import words
from peregrine.report.html import page
from peregrine.report.standings import standings
from peregrine.report.store import read_json, write_json
from peregrine.report.table import render
from peregrine.results import Report, Status


@pytest.fixture(scope="module")
def raced(examples: ModuleType) -> Report:
    found: Report = examples.gpu_report()
    return found


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=160)
    render(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def section(report: Report, title: str) -> str:
    """The words of one section of the page; empty where there is no such section."""
    found = re.search(rf"<h2>{title}</h2>.*?</section>", page(report), re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", found[0])).split()) if found else ""


def test_the_terminal_shows_the_device_s_memory(raced: Report) -> None:
    text = shown(raced)
    assert "577 MiB" in text  # the winner's device
    assert "2,190 MiB" not in text  # its host
    assert "memory: the worker's peak on its GPU" in " ".join(text.split())
    warned = "The GPU was throttled (software power cap) while it was measured: tensorrt fp16 at "
    assert f"{warned}batch 1, 2, 4, 8, 16, 32." in " ".join(text.split())


def test_a_picture_names_what_was_measured(raced: Report, report: Report) -> None:
    assert words.hardware(raced) == raced.machine.gpus[0].split(" (")[0]
    both = dataclasses.replace(report, machine=raced.machine)
    assert words.hardware(both) == raced.machine.cpu  # there is a GPU, and nothing ran on it


def test_a_cpu_s_report_says_nothing_of_a_gpu(report: Report) -> None:
    assert "on its GPU" not in shown(report)
    assert section(report, "GPU") == ""
    assert "GPU memory" not in page(report)
    assert "peak memory of the worker, MiB" in page(report)


def test_the_page_shows_what_the_gpu_did(raced: Report) -> None:
    text = section(raced, "GPU")
    winner, plain = raced.candidates[2], raced.candidates[1]
    for part in ("1,755 / 1,980", "1,965 / 1,980", "3,201", "51.0", "688", "energy counter",
                 "mean power x time", "software power cap", " no ", "took 0.420 ms at most",
                 "NVML, growth of the GPU's used memory", "2,988 MiB", "2,411 MiB"):  # fmt: skip
        assert part in text, part
    assert "Not watched, nvidia-ml-py is not installed in this interpreter: torch_tensorrt" in text
    for row in (winner, plain):
        events = [m.events_ms for m in row.measurements if m.events_ms is not None]
        assert f"{events[0].p50:.3f}" in text


def test_the_page_s_figures_of_memory_are_the_device_s(raced: Report) -> None:
    source = page(raced)
    assert "peak GPU memory" in source
    assert "peak memory of the worker on its GPU, MiB" in source
    assert "577 MiB" in section(raced, "Ranking")
    assert "2,190 MiB" not in section(raced, "Ranking")


def test_a_memory_objective_ranks_by_the_device(raced: Report) -> None:
    by_memory = dataclasses.replace(raced, objective="memory", winner=None, final_rounds=())
    order = [row.result.id for row in standings(by_memory).rows]
    assert order[0].startswith("tensorrt fp16")
    assert order[-1].startswith("torch_tensorrt")  # not known
    assert order[-2].startswith("onnxruntime")  # more than eager on the device, less on the host


def test_it_comes_back_as_it_was(raced: Report, tmp_path: Path) -> None:
    write_json(raced, tmp_path / "report.json")
    assert read_json(tmp_path / "report.json") == raced


def test_only_valid_rows_are_warned_about(raced: Report) -> None:
    rows = [dataclasses.replace(c, status=Status.INVALID) for c in raced.candidates]
    assert throttle_warnings(raced.candidates) != []
    assert throttle_warnings(rows) == []
