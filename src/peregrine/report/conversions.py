"""The graphs that a race's rows read, each once, with the rows that read it."""

from __future__ import annotations

from dataclasses import dataclass

from peregrine.report import figures, words
from peregrine.results import CandidateResult, Conversion, Report


@dataclass(frozen=True, slots=True)
class MadeGraph:
    """A conversion and who read its graph."""

    made: Conversion
    rows: tuple[CandidateResult, ...]

    @property
    def summary(self) -> str:
        """Who made it from what, what was converted, and how long it took."""
        made = self.made
        parts = [f"by {made.by}" if made.by else ""]
        if made.calibration:
            parts.append(f"calibrated on {made.calibration}")
        if made.calibrator:
            parts.append(f"ranges by {made.calibrator}{self._tried()}")
        if made.converted:
            parts.append(f"in {made.precision}: {words.counts(made.converted)}")
        if made.left:
            parts.append(f"left as they were: {words.counts(made.left)}")
        parts.append(words.conversion_time(made))
        return "; ".join(part for part in parts if part)

    def _tried(self) -> str:
        """` (scaled error: minmax 2.1e-02, entropy 3.0e-02)`."""
        if len(self.made.tried) < 2:
            return ""
        errors = ", ".join(f"{t.calibrator} {figures.error(t.scaled_error)}"
                           for t in self.made.tried)  # fmt: skip
        return f" (scaled error: {errors})"


def made_graphs(report: Report) -> list[MadeGraph]:
    """Every conversion of a race by the name of its graph, a repaired one after its base.

    Rows whose graphs bear one name and came about differently (a repair that one backend
    asked for) are told apart.
    """
    readers: list[list[CandidateResult]] = []
    for result in report.candidates:
        if result.conversion is None:
            continue
        same = next((rows for rows in readers if _same(rows[0], result)), None)
        if same is None:
            readers.append([result])
        else:
            same.append(result)
    found = [MadeGraph(_first(rows), tuple(rows)) for rows in readers]
    return sorted(found, key=lambda graph: graph.made.graph)


def _first(rows: list[CandidateResult]) -> Conversion:
    """The conversion itself; the rows after it found its graph in the cache."""
    made = [row.conversion for row in rows if row.conversion is not None]
    return next((one for one in made if not one.cached), made[0])


def _same(one: CandidateResult, other: CandidateResult) -> bool:
    """Whether two rows read one graph."""
    a, b = one.conversion, other.conversion
    assert a is not None
    assert b is not None
    return (a.graph, a.by, a.calibration, a.calibrator, a.kept) == (
        b.graph, b.by, b.calibration, b.calibrator, b.kept,
    )  # fmt: skip
