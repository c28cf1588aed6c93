"""What Peregrine would pick against what an engineer writes by hand, on one NVIDIA GPU.

For each network and batch every row is built in a process of its own, Peregrine's and those of
`benchmarks/peers/cuda`, and judged against PyTorch's fp32; then all take turns, in shuffled rounds.
The first half of the rounds picks Peregrine's winner, and the best row by hand; the second half
tells how they compare: who picks and who judges are not the same figures.

    python benchmarks/peers_h200.py --out results/h200/peers
    python benchmarks/peers_h200.py --networks resnet50 --batches 1,256 --time-limit 280 --out ...

Several of these may run on one GPU: they build side by side, and take turns at timing.
A backend that lives in an environment of its own (`peregrine env add torchtrt --site DIR --backend
torch_tensorrt --backend peer_torch_tensorrt`) runs in it. One JSON a case.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peregrine.harness.turns import Turns

NETWORKS = "resnet18,resnet34,resnet50,resnet101,resnet152,mobilenet_v2,squeezenet1_0,squeezenet1_1"
OURS = (
    "tensorrt {p}",
    "torch_compile[inductor] {p} cuda_graph",
    "torch_tensorrt {p} cuda_graph",
    "onnxruntime[CUDAExecutionProvider] {p} cuda_graph prefer_nhwc",
    "native {p}",
)
BY_HAND = (
    "peer_tensorrt_rtx {p}",
    "peer_torch_compile {p}",
    "peer_torch_tensorrt {p}",
    "peer_onnxruntime_cuda {p}",
)
_ALONE = ("onnxruntime", "peer_onnxruntime", "native")
"""Backends that time kernels while they build: nothing else may run then."""
_HERE = Path(__file__).parent / "peers"
_PEERS = (_HERE / "cuda", _HERE)
_WRITTEN_BY_HAND = ("peer_", "by_hand")
_AT_MOST = 1.02
_TRIAL_ROUNDS, _HOPELESS = 3, 1.5
"""A row that after so many rounds takes so many times the fastest is timed no more."""
_ROUND_S = 0.06
"""Seconds of back-to-back inferences of one row in one round."""


# In a process of its own


def serve() -> None:
    """Do what each line of standard input asks for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    row: Row | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "prepare":
                found = prepare(
                    asked["network"], Path(asked["home"]), asked["batch"], asked["device"]
                )
            elif asked["do"] == "build":
                row = Row(asked["row"], Path(asked["home"]), asked["batch"], asked["device"])
                found = row.facts
            else:
                assert row is not None
                found = row.round()
        except Exception as error:  # noqa: BLE001 - whatever fails is a row with a reason
            found = {
                "refused": " ".join((str(error).strip() or type(error).__name__).split())[:600]
            }
        print(json.dumps(found), file=answers, flush=True)
    os._exit(0)


def prepare(network: str, home: Path, batch: int, device: str) -> dict[str, Any]:
    """The network, its fp16 graph, inputs, and what PyTorch computes of them in fp32."""
    import numpy as np

    from peregrine.backends import registry
    from peregrine.conversion.convert import convert
    from peregrine.model.graphs import Graph
    from peregrine.model.inputs import random_feeds
    from peregrine.model.load import load
    from peregrine.model.model import Model
    from peregrine.types import Candidate, Precision, Profile, Target

    if not (home / "model").exists():
        convert(load(network, home / "model"), Graph.FP16, home / Graph.FP16)
    model = Model.open(home / "model")
    feeds = random_feeds(model, batch, 1)
    target = Target(device, Profile.fixed(model.sizes(batch)))
    eager = Candidate("pytorch", "eager", Precision.FP32)
    with registry.get("pytorch").compile(model, eager, target) as session:
        expected = session.run(feeds)
    np.savez(home / f"feeds{batch}.npz", **feeds)  # type: ignore[arg-type]
    np.savez(home / f"expected{batch}.npz", **expected)  # type: ignore[arg-type]
    return {}


class Row:
    """A candidate, built, found right, and bound to its inputs."""

    def __init__(self, row: str, home: Path, batch: int, device: str) -> None:
        import numpy as np

        from peregrine.backends import registry
        from peregrine.model.model import Model
        from peregrine.thresholds import DEFAULTS
        from peregrine.types import Profile, Target

        self.facts: dict[str, Any] = {}
        backend = registry.get(backend_of(row))
        if not (here := backend.available()):
            raise RuntimeError(here.reason)
        model = Model.open(home / "model")
        target = Target(device, Profile.fixed(model.sizes(batch)))
        candidate = next(c for c in backend.candidates(model, target) if c.id == row)
        if candidate.graph:
            model = Model.open(home / candidate.graph)
        started = time.perf_counter()
        self.session = backend.compile(model, candidate, target)
        self.facts["build_s"] = time.perf_counter() - started
        feeds = dict(np.load(home / f"feeds{batch}.npz"))
        expected = dict(np.load(home / f"expected{batch}.npz"))
        for _ in range(4):  # as kernels, then as a graph
            outputs = self.session.run(feeds)
        off = max(
            float(np.linalg.norm(outputs[name].astype(float) - wanted) / np.linalg.norm(wanted))
            for name, wanted in expected.items()
        )
        self.facts["scaled_error"] = off
        if not off <= DEFAULTS[candidate.precision].scaled_error:  # so that NaN fails
            raise RuntimeError(f"wrong: scaled error {off:.2e}")
        self.session.bind(feeds)

    def round(self) -> dict[str, Any]:
        """Milliseconds an inference, back to back and synchronised."""
        session = self.session
        for _ in range(3):
            session.enqueue()
        session.synchronize()
        started = time.perf_counter()
        session.enqueue()
        session.synchronize()
        count = max(3, min(200, int(_ROUND_S / (time.perf_counter() - started))))
        started = time.perf_counter()
        for _ in range(count):
            session.enqueue()
        session.synchronize()
        together = (time.perf_counter() - started) * 1e3 / count
        alone = []
        for _ in range(min(count, 30)):
            started = time.perf_counter()
            session.enqueue()
            session.synchronize()
            alone.append((time.perf_counter() - started) * 1e3)
        return {"back_to_back_ms": together, "latency_ms": statistics.median(alone)}


# The one that asks


class Process:
    """A row's process, in the interpreter of its backend."""

    def __init__(self, row: str, log: Path) -> None:
        from peregrine.environments import interpreter_for

        self.row = row
        self.facts: dict[str, Any] = {}
        self.rounds: list[dict[str, float]] = []
        interpreter = interpreter_for(backend_of(row))
        paths = [*interpreter.search_path, *map(str, _PEERS), os.environ.get("PYTHONPATH", "")]
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [str(interpreter.python), __file__, "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env={
                    **os.environ,
                    **interpreter.env,
                    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                },
            )

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"refused": "the process died"}
        return answer

    def build(self, home: Path, batch: int, device: str) -> None:
        self.facts = self.ask(do="build", row=self.row, home=str(home), batch=batch, device=device)

    def turn(self) -> None:
        found = self.ask(do="round")
        if "refused" in found:
            self.facts["refused"] = found["refused"]
        else:
            self.rounds.append(found)

    @property
    def runs(self) -> bool:
        return "refused" not in self.facts

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def record(self) -> dict[str, Any]:
        return {
            "row": self.row,
            **self.facts,
            **{key: [one[key] for one in self.rounds] for key in ("back_to_back_ms", "latency_ms")},
        }


def backend_of(row: str) -> str:
    return row.partition(" ")[0].partition("[")[0]


def case(
    network: str, batch: int, precision: str, home: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """All rows of one network, batch and precision."""
    logs, device = home / "logs", options.device
    logs.mkdir(parents=True, exist_ok=True)
    names = [row.format(p=precision) for row in options.rows.split(",")]
    processes = [Process(name, logs / f"{i}.log") for i, name in enumerate(names)]
    try:
        told = processes[0].ask(
            do="prepare", network=network, home=str(home), batch=batch, device=device
        )
        if "refused" in told:
            raise RuntimeError(told["refused"])
        alone = [p for p in processes if backend_of(p.row).startswith(_ALONE)]
        others = [p for p in processes if p not in alone]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda p: p.build(home, batch, device), others))
        turns = Turns(device)
        for process in alone:
            with turns.take(timed=True):
                process.build(home, batch, device)
        for process in processes:
            if not process.runs:
                _say(f"  {process.row}: {process.facts['refused'][:200]}")
        with turns.take(timed=True):
            race([p for p in processes if p.runs], options.rounds)
        return {
            "network": network,
            "batch": batch,
            "precision": precision,
            "rows": [p.record() for p in processes],
        }
    finally:
        for process in processes:
            process.close()


def race(racing: list[Process], rounds: int) -> None:
    """Rounds in which each row has its turn, in a new order each time; rows that are far behind
    leave early."""
    order = random.Random(0)
    for done in range(rounds):
        if done == _TRIAL_ROUNDS:
            times = {p.row: statistics.median(r["latency_ms"] for r in p.rounds) for p in racing}
            limit = _HOPELESS * min(times.values(), default=0.0)
            racing = [p for p in racing if times[p.row] <= limit]
        order.shuffle(racing)
        for process in list(racing):
            process.turn()
            if not process.runs:
                racing.remove(process)


def verdict(record: dict[str, Any], figure: str) -> dict[str, Any] | None:
    """The winner and the best row by hand by the first half of the rounds, and their ratio with
    its 95% interval by the second; None where one side has no row."""
    from peregrine.ratios import paired_ratio

    timed = [row for row in record["rows"] if row[figure] and "refused" not in row]
    ours = [row for row in timed if not row["row"].startswith(_WRITTEN_BY_HAND)]
    hand = [row for row in timed if row["row"].startswith(_WRITTEN_BY_HAND)]
    if not ours or not hand:
        return None
    half = max(len(row[figure]) for row in timed) // 2

    # Who left early has the time that it had.
    def early(row: dict[str, Any]) -> float:
        first: list[float] = row[figure][:half]
        return statistics.median(first)

    winner, best = min(ours, key=early), min(hand, key=early)
    shared = min(len(winner[figure]), len(best[figure]))
    begin = half if shared > half + 1 else 0  # one of them left early, far behind
    own, other = winner[figure][begin:shared], best[figure][begin:shared]
    ratio = paired_ratio(own, other)
    return {
        "winner": winner["row"],
        "winner_ms": statistics.median(own),
        "by_hand": best["row"],
        "by_hand_ms": statistics.median(other),
        "ratio": ratio.mean,
        "ratio_ci95": (ratio.low, ratio.high),
    }


def table(directory: Path) -> str:
    """Markdown of every case there is."""
    lines = [
        "| network, batch, precision | winner, latency ms | best by hand ms | winner over by hand "
        f"(at most {_AT_MOST}) | winner, back to back ms | best by hand ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(directory.glob("*.json")):
        record = json.loads(path.read_text())
        cells = [f"{record['network']}, {record['batch']}, {record['precision']}"]
        for figure in ("latency_ms", "back_to_back_ms"):
            found = verdict(record, figure)
            if found is None:
                cells += ["no row on one side", "", ""]
                continue
            low, high = found["ratio_ci95"]
            cells += [
                f"{found['winner']} {found['winner_ms']:.3f}",
                f"{found['by_hand']} {found['by_hand_ms']:.3f}",
                f"**{found['ratio']:.3f}** ({low:.3f} to {high:.3f})",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    for network in options.networks.split(","):
        for precision in options.precisions.split(","):
            for batch in options.batches.split(","):
                yield network, int(batch), precision


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--batches", default="1,256")
    parser.add_argument("--precisions", default="fp16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--rows", default=",".join((*OURS, *BY_HAND)), help="{p}: the precision")
    parser.add_argument("--time-limit", type=float, default=570.0, help="seconds; begins no more")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    from peregrine.fingerprint import machine, versions_of
    from peregrine.results import to_builtins

    if options.out is None:
        parser.error("--out is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    began, longest = time.monotonic(), 20.0
    with tempfile.TemporaryDirectory() as temporary:
        for network, batch, precision in _cases(options):
            start = time.monotonic()
            if start - began + longest > options.time_limit:
                _say(f"{network} {batch} {precision}: no time left")
                continue
            home = Path(temporary) / network
            try:
                record = case(network, batch, precision, home, options)
            except RuntimeError as error:
                _say(f"{network} {batch} {precision}: {error}")
                continue
            record["machine"] = to_builtins(machine())
            record["versions"] = versions_of(
                (
                    *("torch", "triton", "tensorrt-rtx-cu13", "torch-tensorrt-rtx"),
                    *("onnxruntime-gpu", "nvidia-cudnn-frontend"),
                )
            )
            name = f"{network}_batch{batch}_{precision}.json"
            (options.out / name).write_text(json.dumps(record, indent=1))
            longest = max(longest, time.monotonic() - start)
            _say(f"{network} {batch} {precision}: {time.monotonic() - start:.0f} s")
    print(table(options.out))


if __name__ == "__main__":
    main()
