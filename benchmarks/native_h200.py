"""The native engine against every peer on one NVIDIA GPU: fp16, device boundary, checked outputs.

Each network and batch is a process of its own in which all rows are built, compared with PyTorch's
fp32, and timed in the same interleaved rounds: their ratios are of times moments apart.

    python benchmarks/native_h200.py --out results/h200/native                 # the four networks
    python benchmarks/native_h200.py --networks all --peers all --resume --out ...
    python benchmarks/native_h200.py --networks resnet34,resnet101 --batches 1 --out ...

Writes one JSON a network and batch, and prints the table from those alone. A row that cannot be
built, or whose outputs are wrong, is there with its reason; with `--blame` a wrong native row names
the step that is the first to be wrong.

A case with two peers takes about a minute, with all of them two to three. Where that is more than
`--time-limit` allows, begin with `--resume` again: it goes on with the cases that have no JSON.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from peregrine.backends import registry
from peregrine.backends.base import Session
from peregrine.backends.native import NativeSession
from peregrine.compiler.device_memory import release
from peregrine.conversion.convert import convert
from peregrine.errors import PeregrineError
from peregrine.fingerprint import machine, versions_of
from peregrine.harness.cuda_events import time_by_events
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.ratios import paired_ratio
from peregrine.results import to_builtins
from peregrine.thresholds import DEFAULTS
from peregrine.types import Array, Candidate, Feeds, Precision, Profile, Target

NATIVE = "native fp16"
WANTED = {1: 1.4, 256: 1.5}
FOUR = ("resnet18", "resnet50", "mobilenet_v2", "squeezenet1_0")
EIGHT = (*FOUR, "resnet34", "resnet101", "resnet152", "squeezenet1_1")
PEERS = {
    "tensorrt": Candidate("tensorrt", "", Precision.FP16, {}, Graph.FP16),
    "torch_compile": Candidate("torch_compile", "inductor", Precision.FP16, {"cuda_graph": True}),
}
"""The two that are the fastest on an H200; torch.compile as one CUDA graph, which spares it the
copy of the inputs that its mode reduce-overhead makes at each call. `--peers all` adds what else
the backends offer."""
_ROUND_S = 0.06
"""Seconds of back-to-back inferences of one row in one round."""
_TRIAL_ROUNDS, _HOPELESS = 3, 1.5
"""A row that after so many rounds takes so many times the fastest is timed no more."""
_OFF = 4e-3
"""Relative error of one step's output: what the autotuner lets pass in float16."""
_LEAST_CASE_S = 40
"""What the shortest case takes: with less time left none is begun."""


def rows(model: Model, target: Target, peers: str) -> Iterator[Candidate]:
    yield Candidate("native", precision=Precision.FP16)
    if peers == "none":
        return
    offered = list(PEERS.values())
    if peers == "all":
        for name in ("onnxruntime", "tensorrt", "torch_compile", "torch_tensorrt", "pytorch"):
            backend = registry.get(name)
            if backend.available() and backend.supports(model, target):
                offered += backend.candidates(model, target)
    seen = set()
    for candidate in offered:
        if candidate.precision is Precision.FP16 and candidate.id not in seen:
            seen.add(candidate.id)
            yield candidate


class Row:
    """One candidate: its session, or why there is none, and its samples."""

    def __init__(self, candidate: Candidate) -> None:
        self.id = candidate.id
        self.candidate = candidate
        self.session: Session | None = None
        self.facts: dict[str, Any] = {}
        self.b2b_ms: list[float] = []
        self.latency_ms: list[float] = []
        self.events_ms: list[float] = []

    def build(self, model: Model, graph: Model, target: Target) -> None:
        import torch

        read = graph if self.candidate.graph else model
        backend = registry.get(self.candidate.backend)
        if not (here := backend.available()):
            self.facts["refused"] = here.reason
            return
        release(target.device)  # or what rows before this one left would be given back meanwhile
        before = torch.cuda.mem_get_info()[0]
        started = time.perf_counter()
        try:
            self.session = backend.compile(read, self.candidate, target)
        except (PeregrineError, RuntimeError) as error:
            self.facts["refused"] = str(error).strip()[:600]
            return
        self.facts["build_s"] = time.perf_counter() - started
        self._before = before

    def check(
        self, feeds: Feeds, expected: dict[str, Array], blamed: Callable[[NativeSession], Any]
    ) -> None:
        import numpy as np
        import torch

        if self.session is None:
            return
        started = time.perf_counter()
        outputs = self.session.run(feeds)
        self.facts["first_inference_ms"] = (time.perf_counter() - started) * 1e3
        for _ in range(4):
            outputs = self.session.run(feeds)
        worst = 0.0
        for name, reference in expected.items():
            wide = reference.astype(np.float64)
            off = float(np.linalg.norm(outputs[name].astype(np.float64) - wide))
            worst = max(worst, off / float(np.linalg.norm(wide)))
        self.facts["scaled_error"] = worst
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.facts["memory_mb"] = (self._before - torch.cuda.mem_get_info()[0]) / 2**20
        if not worst <= DEFAULTS[Precision.FP16].scaled_error:  # not <=, so that NaN fails
            self.facts["refused"] = f"wrong: scaled error {worst:.2e}"
            if isinstance(self.session, NativeSession):
                self.facts["blamed"] = blamed(self.session)
            self.close()
            return
        self.session.bind(feeds)
        if isinstance(self.session, NativeSession):
            plan = self.session.executable.plan
            self.facts["plan_memory"] = msgspec.to_builtins(plan.memory)
            self.facts["steps"] = len(plan.steps)

    def round(self) -> None:
        session = self.session
        assert session is not None
        for _ in range(3):
            session.enqueue()
        session.synchronize()
        started = time.perf_counter()
        session.enqueue()
        session.synchronize()
        once = time.perf_counter() - started
        count = max(3, min(200, int(_ROUND_S / once)))
        started = time.perf_counter()
        for _ in range(count):
            session.enqueue()
        session.synchronize()
        self.b2b_ms.append((time.perf_counter() - started) * 1e3 / count)
        taken = []
        for _ in range(min(count, 30)):
            started = time.perf_counter()
            session.enqueue()
            session.synchronize()
            taken.append((time.perf_counter() - started) * 1e3)
        self.latency_ms.append(statistics.median(taken))
        if events := time_by_events(session, runs=10, max_s=0.1):
            self.events_ms.append(statistics.median(events))

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
        self.session = None

    def record(self) -> dict[str, Any]:
        return {
            "candidate": self.id,
            **self.facts,
            "back_to_back_ms": self.b2b_ms,
            "latency_ms": self.latency_ms,
            "events_ms": self.events_ms,
        }


def case(
    network: str, batch: int, rounds: int, peers: str, engine: Path | None, *, blame: bool
) -> Any:
    """All rows of one network and batch, in this process."""
    from peregrine.compiler.devices import describe

    with tempfile.TemporaryDirectory() as scratch:
        model = load(network, Path(scratch) / "model")
        convert(model, Graph.FP16, Path(scratch) / "fp16")
        graph = Model.open(Path(scratch) / "fp16")
        target = Target("cuda:0", Profile.fixed(model.sizes(batch)))
        device = describe("cuda:0")
        feeds = random_feeds(model, batch, 1)
        reference = Candidate("pytorch", "eager", Precision.FP32)
        with registry.get("pytorch").compile(model, reference, target) as exact:
            expected = exact.run(feeds)
        found = [Row(candidate) for candidate in rows(model, target, peers)]
        for row in found:
            _say(f"{network} {batch}: building {row.id}")
            row.build(model, graph, target)
            row.check(
                feeds, expected, lambda session: _blamed(session, model, target) if blame else []
            )
            if "refused" in row.facts:
                _say(f"  {row.facts['refused']}")
                for line in row.facts.get("blamed", ()):
                    _say(f"  {line}")
        _race([row for row in found if row.session is not None], rounds)
        native = next(row for row in found if row.id == NATIVE)
        if native.session is not None:
            kept = _fresh(engine or Path(scratch) / "engine")
            registry.get("native").save(native.session, kept)
            native.facts["cold"] = cold(model, kept, batch)
            started = time.perf_counter()
            registry.get("native").compile(model, native.candidate, target).close()
            native.facts["build_again_s"] = time.perf_counter() - started
        record = {
            "network": network,
            "batch": batch,
            "machine": to_builtins(machine()),
            "device": to_builtins(device),
            "versions": versions_of(
                ("torch", "triton", "nvidia-cudnn-frontend", "tensorrt-rtx-cu13", "onnxruntime-gpu")
            ),
            "rows": [row.record() for row in found],
        }
        for row in found:
            row.close()
        return record


def _race(racing: list[Row], rounds: int) -> None:
    """Rounds in which each row has its turn, in a new order each time."""
    order = random.Random(0)
    for done in range(rounds):
        if done == _TRIAL_ROUNDS:
            times = {row.id: statistics.median(row.b2b_ms) for row in racing}
            limit = _HOPELESS * min(times.values())
            kept = (NATIVE, *(candidate.id for candidate in PEERS.values()))
            racing = [row for row in racing if times[row.id] <= limit or row.id in kept]
        order.shuffle(racing)
        for row in racing:
            row.round()


def _blamed(session: NativeSession, model: Model, target: Target) -> list[str]:
    """The steps of a wrong plan that are off, a line each; one that says so where none is."""
    import torch

    from peregrine.compiler.blame import InTorch, blame
    from peregrine.compiler.build import rebuild
    from peregrine.compiler.devices import describe
    from peregrine.compiler.runtime import Executable

    executable = session.executable
    sizes = target.profile.opt
    plan = rebuild(model, executable.plan, InTorch(describe(target.device)))
    reference = Executable(plan.plan, plan.weights, target.device)
    feeds = [
        {
            name: torch.from_numpy(given[spec.name])
            for name, spec in zip(executable.inputs, model.inputs, strict=True)
        }
        for given in (random_feeds(model, next(iter(sizes.values()), 1), seed) for seed in range(3))
    ]
    lines = []
    for index, one in enumerate(blame(executable, reference, feeds)):
        if not max(one.alone, one.in_graph or 0.0) <= _OFF:
            in_graph = "" if one.in_graph is None else f", {one.in_graph:.1e} in a graph"
            lines.append(
                f"step {index} {one.step.name} {one.step.chosen.tactic} "
                f"{json.dumps(one.step.chosen.config)}: off by {one.alone:.1e} alone{in_graph}"
            )
    return lines or ["every step is right alone, and in a graph of those up to it"]


_COLD = """
import json, sys, time
from pathlib import Path
started = time.perf_counter()
from peregrine.backends.native import NativeBackend
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Profile, Target
import torch
torch.zeros(1, device="cuda")
ready = time.perf_counter()
def used():
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20
model, batch = Model.open(Path(sys.argv[1])), int(sys.argv[3])
candidate = Candidate("native", precision=Precision.FP16)
target = Target("cuda:0", Profile.fixed(model.sizes(batch)))
feeds = random_feeds(model, batch, 1)
before = used()
begun = time.perf_counter()
session = NativeBackend().load(Path(sys.argv[2]), model, candidate, target)
loaded = time.perf_counter()
session.run(feeds)
done = time.perf_counter()
for _ in range(4):
    session.run(feeds)
session.bind(feeds)
print(json.dumps({"start_s": ready - started, "load_s": loaded - begun,
                  "first_inference_s": done - loaded, "memory_mb": used() - before,
                  "note": session.note}))
"""


def cold(model: Model, engine: Path, batch: int) -> dict[str, Any]:
    """Of a fresh process whose kernel cache is empty: seconds for importing torch and starting
    CUDA, for loading the saved engine and for its first inference; the device memory that it then
    takes beside its CUDA context, after as many inferences as the rows had; and how many of the
    engine's kernels it compiled anew."""
    with tempfile.TemporaryDirectory() as empty:
        ran = subprocess.run(
            [sys.executable, "-c", _COLD, str(model.directory), str(engine), str(batch)],
            env={**os.environ, "TRITON_CACHE_DIR": empty},
            capture_output=True,
            text=True,
            check=False,
        )
        compiled = len(list(Path(empty).glob("*/*.ptx")))
    if ran.returncode:
        return {"failed": ran.stderr.strip()[-600:]}
    return {
        **json.loads(ran.stdout.splitlines()[-1]),
        "kernels": len(list(engine.glob("kernels/*/*.cubin"))),
        "kernels_compiled": compiled,
    }


def _fresh(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(directory: Path) -> str:
    """Markdown of every case that was measured."""
    lines = [
        "| network, batch | native b2b / latency ms | best peer b2b ms | ratio (95 %) | wanted "
        "| MiB built, loaded | least peer MiB | least of all | build s, again s "
        "| cold load, first s | compiled of kernels |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    empty = " |" * (lines[0].count("|") - 3)
    for path in sorted(directory.glob("*.json")):
        record = json.loads(path.read_text())
        timed = [row for row in record["rows"] if row["back_to_back_ms"]]
        native = next((row for row in timed if row["candidate"] == NATIVE), None)
        peers = [row for row in timed if row["candidate"] != NATIVE]
        name = f"{record['network']}, {record['batch']}"
        median: Callable[[Any], float] = lambda row: statistics.median(row["back_to_back_ms"])  # noqa: E731
        if native is not None and not peers:
            lines.append(f"| {name} | **{median(native):.3f}** |{empty}")
            continue
        if native is None:
            wrong = next(row for row in record["rows"] if row["candidate"] == NATIVE)
            said = "; ".join([str(wrong.get("refused", "")), *wrong.get("blamed", ())[:1]])
            lines.append(f"| {name} | {said[:300]} |{empty}")
            continue
        best, least = min(peers, key=median), min(row["memory_mb"] for row in peers)
        cold = native["cold"]
        loaded = cold.get("memory_mb")
        taken = [native["memory_mb"], *([loaded] if loaded is not None else [])]
        ratio = paired_ratio(best["back_to_back_ms"], native["back_to_back_ms"])
        lines.append(
            f"| {name} | **{median(native):.3f}** / {statistics.median(native['latency_ms']):.3f} "
            f"| {median(best):.3f} {best['candidate']} "
            f"| {ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) "
            f"| {WANTED.get(record['batch'], 1.0):g} "
            f"| {', '.join(f'{mb:.0f}' for mb in taken)} | {least:.0f} "
            f"| {'yes' if max(taken) <= least else 'no'} "
            f"| {native['build_s']:.1f}, {native['build_again_s']:.1f} "
            f"| {cold.get('load_s', 0):.2f}, {cold.get('first_inference_s', 0):.2f} "
            f"| {cold.get('kernels_compiled', '')} of {cold.get('kernels', '')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", default=",".join(FOUR), help="names, or `all` eight")
    parser.add_argument("--batches", default="1,256")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", choices=("best", "all", "none"), default="best")
    parser.add_argument("--time-limit", type=float, default=570.0, help="seconds; begins no more")
    parser.add_argument("--resume", action="store_true", help="only the cases that have no JSON")
    parser.add_argument("--blame", action="store_true", help="find the step that is wrong")
    parser.add_argument("--engines", type=Path, help="keep the engines here")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", help="for the process of one case: NETWORK,BATCH")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.case:
        network, batch = options.case.split(",")
        engine = options.engines / f"{network}_batch{batch}" if options.engines else None
        record = case(
            network, int(batch), options.rounds, options.peers, engine, blame=options.blame
        )
        (options.out / f"{network}_batch{batch}.json").write_text(json.dumps(record, indent=1))
        return
    deadline = time.monotonic() + options.time_limit
    networks = EIGHT if options.networks == "all" else options.networks.split(",")
    for network in networks:
        for batch in options.batches.split(","):
            if options.resume and (options.out / f"{network}_batch{batch}.json").exists():
                continue
            left = deadline - time.monotonic()
            if left < _LEAST_CASE_S:
                _say(f"{network} {batch}: no time left")
                continue
            try:
                subprocess.run(
                    [sys.executable, *sys.argv, "--case", f"{network},{batch}"],
                    check=False,
                    timeout=left,
                )
            except subprocess.TimeoutExpired:
                _say(f"{network} {batch}: out of time")
    print(table(options.out))


if __name__ == "__main__":
    main()
