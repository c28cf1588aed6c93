"""Everything a finished race leaves for people, in its run directory."""

from __future__ import annotations

from pathlib import Path

from peregrine.report import png
from peregrine.report.html import write_html
from peregrine.report.reproduce import write_scripts
from peregrine.report.store import FILE, write_json
from peregrine.results import Report

PAGE = "report.html"
PICTURE = "report.png"
LADDER_PICTURE = "ladder.png"


def write_all(report: Report, run_dir: Path) -> list[Path]:
    """Write `report.json`, `report.html`, the scripts that reproduce each row, and, where
    matplotlib is installed, `report.png` and, of several precisions, `ladder.png`. Returns what
    was written.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    written = [run_dir / FILE, run_dir / PAGE]
    write_json(report, written[0])
    write_html(report, written[1])
    written += write_scripts(report, run_dir)
    if png.available():
        written.append(run_dir / PICTURE)
        png.write_png(report, written[-1])
        if png.write_ladder_png(report, run_dir / LADDER_PICTURE):
            written.append(run_dir / LADDER_PICTURE)
    return written
