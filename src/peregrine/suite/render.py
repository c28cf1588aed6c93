"""Everything a suite leaves for people and programs, in one directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peregrine.report import png
from peregrine.report.store import write_text
from peregrine.results import to_builtins
from peregrine.suite import published
from peregrine.suite.charts import Chart, charts
from peregrine.suite.page import page
from peregrine.suite.pictures import write_picture
from peregrine.suite.study import FORMAT, Study
from peregrine.suite.tables import Table, paper_tables, resnet50_table
from peregrine.suite.workflows import kind_of

PAGE, RECORD = "suite.html", "suite-report.json"


def write_study(study: Study, directory: Path) -> list[Path]:
    """Write `suite-report.json`, `suite.html` and, for the paper and where matplotlib is
    installed, `figure-N-PRECISION-DEVICE.png`. Returns what was written.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    text = json.dumps(to_builtins(record(study)), indent=1, ensure_ascii=False, allow_nan=False)
    written = [directory / RECORD, directory / PAGE]
    write_text(written[0], text + "\n")
    write_text(written[1], page(study))
    if png.available():
        for name, chart in drawn(study).items():
            written.append(directory / f"{name}.png")
            write_picture(chart, written[-1])
    return written


def record(study: Study) -> dict[str, Any]:
    """The study as JSON-ready parts: raw figures, tables and charts made from them, and the
    published figures, under the name of the card they are of."""
    source = published.paper() if study.suite == "paper" else published.resnet50()
    return {
        "format": FORMAT,
        "study": study,
        "tables": tables(study),
        "charts": drawn(study),
        "published": source,
    }


def tables(study: Study) -> list[Table]:
    """Every table of a study, in the order of the page."""
    if study.suite == "resnet50":
        return [
            resnet50_table(study, network, precision, batch)
            for precision in study.precisions
            for network in study.networks
            for batch in study.batches
        ]
    return [
        shown
        for precision in study.precisions
        for device in study.devices
        for shown in paper_tables(study, precision, device)
    ]


def drawn(study: Study) -> dict[str, Chart]:
    """File name without suffix -> figure; the paper's alone has any."""
    if study.suite != "paper":
        return {}
    return {
        f"{chart.id}-{precision}-{kind_of(device)}": chart
        for precision in study.precisions
        for device in study.devices
        for chart in charts(study, precision, device)
    }
