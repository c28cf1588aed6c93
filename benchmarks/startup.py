"""How long a person waits before anything happens: whole processes, from start to exit.

    python benchmarks/startup.py --json startup.json

Measures `import peregrine` (beside an interpreter that does nothing, for comparison),
`peregrine --help` and `peregrine doctor`. The commands take turns, so that a neighbour's load
falls on all of them. A first round is not counted: it fills the caches of the disk. The verdict
is on the median. Exits with 1 when one is over its limit, 2 when a command fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    arguments: tuple[str, ...]
    """Of the interpreter."""
    limit_s: float | None
    """None where it is only for comparison."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock seconds of one command's processes."""

    name: str
    limit_s: float | None
    median_s: float
    min_s: float
    max_s: float
    samples_s: tuple[float, ...]

    @property
    def within(self) -> bool:
        return self.limit_s is None or self.median_s <= self.limit_s


COMMANDS = (
    Command("bare python", ("-c", "pass"), None),
    Command("import peregrine", ("-c", "import peregrine"), 0.3),
    Command("peregrine --help", ("-m", "peregrine", "--help"), 0.3),
    Command("peregrine doctor", ("-m", "peregrine", "doctor"), 3.0),
)


def seconds(command: Command) -> float:
    """Wall-clock seconds of one process of `command`, from its start to its exit.

    Raises:
        subprocess.CalledProcessError: it failed, so that its time means nothing.
    """
    start = time.perf_counter()
    subprocess.run([sys.executable, *command.arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def measure(runs: int) -> list[Timing]:
    samples: dict[str, list[float]] = {command.name: [] for command in COMMANDS}
    for number in range(runs + 1):
        for command in COMMANDS:
            taken = seconds(command)
            if number > 0:
                samples[command.name].append(taken)
    return [
        Timing(c.name, c.limit_s, statistics.median(taken), min(taken), max(taken), tuple(taken))
        for c in COMMANDS
        for taken in [samples[c.name]]
    ]


def line(timing: Timing) -> str:
    limit = "" if timing.limit_s is None else f"{timing.limit_s:.1f}"
    verdict = "" if timing.limit_s is None else "within" if timing.within else "OVER"
    figures = f"{timing.median_s:8.3f} {timing.min_s:8.3f} {timing.max_s:8.3f}"
    return f"{timing.name:18} {figures} {limit:>6}  {verdict}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15, help="processes of each command")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    try:
        timings = measure(arguments.runs)
    except subprocess.CalledProcessError as error:
        print(f"{error}\n{error.stderr.decode(errors='replace')}", file=sys.stderr)
        return 2
    print(f"{'seconds':18} {'median':>8} {'min':>8} {'max':>8} {'limit':>6}")
    for timing in timings:
        print(line(timing))
    if arguments.json:
        found = {
            "runs": arguments.runs,
            "python": sys.version.split()[0],
            "load_average": os.getloadavg()[0],
            "commands": [asdict(timing) | {"within": timing.within} for timing in timings],
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(timing.within for timing in timings) else 1


if __name__ == "__main__":
    sys.exit(main())
