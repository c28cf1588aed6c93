"""Grouped options, through typer as a user meets them."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from peregrine.cli.app import app
from peregrine.cli.unfold import unfolded


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option("--width", help="Of the box.", rich_help_panel="Sizes")]
    height: Annotated[int, typer.Option("--height", rich_help_panel="Sizes")] = 2
    names: Annotated[list[str] | None, typer.Option("--name")] = None


@pytest.fixture
def box():
    made = []

    @unfolded
    def box(
        label: Annotated[str, typer.Argument()] = "none",
        *,
        size: Size,
        deep: Annotated[bool, typer.Option("--deep")] = False,
    ) -> None:
        """Make a box."""
        made.append((label, size, deep))

    application = typer.Typer()
    application.command()(box)

    def run(*words):
        result = CliRunner().invoke(application, words, env={"COLUMNS": "120", "NO_COLOR": "1"})
        return result, made

    return run


def test_a_group_is_put_together_again(box):
    result, made = box("b", "--width", "3", "--name", "x", "--name", "y", "--deep")
    assert result.exit_code == 0, result.output
    assert made == [("b", Size(width=3, height=2, names=["x", "y"]), True)]


def test_a_field_without_a_default_is_required(box):
    result, made = box("b")
    assert result.exit_code == 2
    assert "--width" in result.output
    assert made == []


def test_help_knows_each_field(box):
    result, _ = box("--help")
    for words in ("Make a box.", "Sizes", "--width", "Of the box.", "[default: 2]", "--deep"):
        assert words in result.output
    assert "size" not in result.output.replace("Sizes", "")


@pytest.mark.parametrize("verb", ["bench", "build"])
def test_the_help_of_a_race_reads_by_subject(verb):
    """Each panel once, in this order, after examples."""
    env = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    shown = CliRunner().invoke(app, [verb, "--help"], env=env).output
    headings = ["Examples:", "Model", "What to race", "Judging", "Limits", "Output"]
    places = [shown.index(f"─ {h} ─" if h != "Examples:" else h) for h in headings]
    assert places == sorted(places)
    assert f"peregrine {verb} model.onnx" in shown
