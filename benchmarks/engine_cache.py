"""How much sooner a kept engine gives its first inference than building it: fresh processes.

Each measurement is one process of its own, which has imported all libraries and made its CUDA
context before the clock starts. What is compared is *build + first inference* against *fetch from
the cache + load + first inference*. Two kinds of load: `alone` finds nothing but the engine (the
caches of Triton, of CUDA and of the autotuner are empty), `again` finds what the build left on
this machine besides.

    python benchmarks/engine_cache.py --out results/h200/engine_cache.json

Every measurement's outputs are compared with PyTorch's in fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import importlib
import json
import os
import pkgutil
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

NETWORKS = "resnet18,resnet50,mobilenet_v2"
ROWS = "tensorrt fp16,native fp16,tensorrt fp32"
_LIBRARIES = (
    *("torch", "tensorrt", "tensorrt_rtx", "triton", "cudnn", "safetensors.torch"),
    *("onnx", "onnx_ir", "onnxscript", "ml_dtypes", "msgspec"),
)
_WAVE = min(16, os.cpu_count() or 1)
"""Processes that import at the same time, before any of them is measured."""
_TOP = 14
"""Functions of a profile that are kept."""


# In a process of its own


def _import_all() -> None:
    """Whatever a build or a load would import."""
    import peregrine.backends
    import peregrine.compiler

    for name in _LIBRARIES:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(name)
    for package in (peregrine.backends, peregrine.compiler):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "_triton_compile" not in module.name:  # the main module of its own processes
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)


def _serve() -> None:
    """Import, say so, and do the one thing that is asked for."""
    started = time.perf_counter()
    _import_all()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps({"imports_s": time.perf_counter() - started}), file=answers, flush=True)
    asked = json.loads(sys.stdin.readline() or "null")
    if asked is None:
        return
    try:
        work: dict[str, Callable[..., dict[str, Any]]] = {"prepare": _prepare, "measure": _measure}
        found = work[asked.pop("do")](**asked)
    except Exception as error:  # noqa: BLE001 - whatever fails is a row
        found = {"failed": (str(error).strip() or type(error).__name__)[:600]}
    print(json.dumps(found), file=answers, flush=True)
    os._exit(0)  # the exit handlers of runtimes take their time


def _prepare(network: str, home: str, batch: int) -> dict[str, Any]:
    """The network, its fp16 graph, inputs, and what PyTorch computes of them in fp32."""
    import numpy as np

    from peregrine.backends import registry
    from peregrine.conversion.convert import convert
    from peregrine.model.graphs import Graph
    from peregrine.model.inputs import random_feeds
    from peregrine.model.load import load
    from peregrine.types import Candidate, Precision, Profile, Target

    directory = Path(home)
    model = load(network, directory / "model")
    convert(model, Graph.FP16, directory / Graph.FP16)
    feeds = random_feeds(model, batch, 1)
    target = Target("cpu", Profile.fixed(model.sizes(batch)))
    eager = Candidate("pytorch", "eager", Precision.FP32)
    with registry.get("pytorch").compile(model, eager, target) as session:
        expected = session.run(feeds)
    np.savez(directory / "feeds.npz", **feeds)  # type: ignore[arg-type]
    np.savez(directory / "expected.npz", **expected)  # type: ignore[arg-type]
    return {}


def _measure(
    home: str, row: str, batch: int, device: str, how: str, engine: str, caches: str, profile: bool
) -> dict[str, Any]:
    """Build and keep, or fetch and load, one engine; then its first inferences.

    Args:
        home: what `_prepare` wrote.
        row: a candidate's id.
        how: `build`, `alone` or `again`.
        engine: directory where the build keeps what the loads fetch.
        caches: directory for the caches of libraries.
        profile: say where the time goes instead; the times are then too long.
    """
    for name in ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "PEREGRINE_CACHE"):
        os.environ[name] = str(Path(caches) / name.lower())
        Path(os.environ[name]).mkdir(parents=True, exist_ok=True)
    import numpy as np

    from peregrine.backends import registry
    from peregrine.model.model import Model
    from peregrine.store import Store
    from peregrine.types import Profile, Target

    started = time.perf_counter()
    if device.startswith("cuda"):
        import torch

        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        torch.empty(1, pin_memory=True)
        torch.cuda.synchronize()
    found: dict[str, Any] = {"context_s": time.perf_counter() - started}
    directory = Path(home)
    model = Model.open(directory / "model")
    target = Target(device, Profile.fixed(model.sizes(batch)))
    backend = registry.get(row.partition(" ")[0].partition("[")[0])
    candidate = next(c for c in backend.candidates(model, target) if c.id == row)
    if candidate.graph:
        model = Model.open(directory / candidate.graph)
    feeds, expected = (dict(np.load(directory / f"{n}.npz")) for n in ("feeds", "expected"))
    store, fetched = Store(Path(engine)), Path(caches) / "fetched"

    watch = cProfile.Profile()
    with watch if profile else contextlib.nullcontext():
        began = time.perf_counter()
        if how == "build":
            session = backend.compile(model, candidate, target)
            ready = time.perf_counter()
            found["build_s"] = ready - began
        else:
            if store.fetch("engine", fetched) is None:
                raise RuntimeError("nothing was kept")
            found["fetch_s"] = time.perf_counter() - began
            session = backend.load(fetched, model, candidate, target)
            ready = time.perf_counter()
            found["load_s"] = ready - began - found["fetch_s"]
        outputs = session.run(feeds)
        found["first_s"] = time.perf_counter() - ready
        found["total_s"] = time.perf_counter() - began
    for _ in range(4):
        outputs = session.run(feeds)
    again = time.perf_counter()
    outputs = session.run(feeds)
    found["later_s"] = time.perf_counter() - again
    found["scaled_error"] = max(
        float(np.linalg.norm(outputs[name].astype(float) - wanted) / np.linalg.norm(wanted))
        for name, wanted in expected.items()
    )
    if profile:
        found["profile"] = _slowest(watch)
    if how == "build":
        saved = time.perf_counter()
        fetched.mkdir()
        backend.save(session, fetched)
        names = [p.relative_to(fetched).as_posix() for p in fetched.rglob("*") if p.is_file()]
        store.drop("engine")
        store.put("engine", fetched, names, {"row": row})
        found["keep_s"] = time.perf_counter() - saved
        found["files"] = {name: (fetched / name).stat().st_size for name in names[:20]}
        found["engine_mb"] = sum((fetched / name).stat().st_size for name in names) / 2**20
    found["kernels_compiled"] = len(list(Path(os.environ["TRITON_CACHE_DIR"]).glob("*/*.ptx")))
    return found


def _slowest(watch: cProfile.Profile) -> list[dict[str, Any]]:
    """Where the time went: functions by the seconds in themselves."""
    stats = pstats.Stats(watch).stats  # type: ignore[attr-defined]
    rows = sorted(stats.items(), key=lambda item: item[1][2], reverse=True)[:_TOP]
    return [
        {"function": f"{Path(file).name}:{line} {name}", "calls": calls, "own_s": round(own, 4)}
        for (file, line, name), (_, calls, own, _, _) in rows
    ]


# The one that asks


class Fresh:
    """Processes that have imported everything, each for one task."""

    def __init__(self) -> None:
        self._ready: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._ready:
            process.kill()
            process.wait()

    def start(self, count: int) -> None:
        """Have so many at hand, and none that is still importing."""
        made = [
            subprocess.Popen(
                [sys.executable, __file__, "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(count - len(self._ready))
        ]
        for process in made:
            assert process.stdout is not None
            if process.stdout.readline():
                self._ready.append(process)

    def begin(self, **asked: Any) -> subprocess.Popen[str]:
        if not self._ready:
            self.start(_WAVE)
        process = self._ready.pop()
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.close()
        return process

    def call(self, **asked: Any) -> dict[str, Any]:
        return _answer(self.begin(**asked))


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    process.wait()
    answer: dict[str, Any] = json.loads(line) if line else {"failed": "the process died"}
    return answer


def _cases(networks: Sequence[str], rows: Sequence[str]) -> Iterator[tuple[str, str]]:
    for row in rows:
        for network in networks:
            yield network, row


def run_case(fresh: Fresh, scratch: Path, options: Any, network: str, row: str) -> dict[str, Any]:
    """Builds, then loads, of one row of one network."""
    engine, left = scratch / "engines" / f"{network} {row}", scratch / "left" / f"{network} {row}"
    measured: dict[str, list[dict[str, Any]]] = {}
    profiles = {}
    # What is built once more has not become faster by what it left: its caches are new.
    todo = [("build", options.builds), ("alone", options.loads), ("again", options.loads)]
    for how, times in todo:
        for number in range(times + (how == "alone" and options.profile)):
            profile = number == times
            fresh_caches = tempfile.mkdtemp(dir=scratch)
            kept = how == "build" and number == 0
            caches = left / f"{how}{number}" if how == "again" else Path(fresh_caches)
            if how == "again":
                _copy_tree(left / "caches", caches)
            found = fresh.call(
                do="measure", home=str(scratch / network), row=row, batch=options.batch,
                device=options.device, how=how, engine=str(engine), caches=str(caches),
                profile=profile,
            )  # fmt: skip
            if kept and "failed" not in found:
                _copy_tree(caches, left / "caches", without="fetched")
            if profile:
                profiles[how] = found.get("profile") or found
                continue
            measured.setdefault(how, []).append(found)
            if "failed" in found:
                _say(f"{network} {row} {how}: {found['failed'][:300]}")
                break
        if how == "build" and any("failed" in one for one in measured["build"]):
            break
    return {"network": network, "row": row, "measured": measured, "profiles": profiles}


def _copy_tree(source: Path, target: Path, without: str = "") -> None:
    import shutil

    ignored = shutil.ignore_patterns(without) if without else None
    shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Markdown: medians, their range, and how many times as fast a load is."""
    lines = [
        "| network, row | build + first s | load + first s, alone | ratio | again | ratio "
        "| fetch / load / first ms, alone | engine MB | kernels compiled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        good = {
            how: [one for one in found if "failed" not in one]
            for how, found in case["measured"].items()
        }
        if not all(good.get(how) for how in ("build", "alone", "again")):
            failed = [o["failed"] for f in case["measured"].values() for o in f if "failed" in o]
            lines.append(
                f"| {case['network']}, {case['row']} | {' '.join(' '.join(failed).split())[:200]} |"
            )
            continue
        total = {how: [one["total_s"] for one in found] for how, found in good.items()}
        median = {how: statistics.median(seconds) for how, seconds in total.items()}
        parts = " / ".join(
            f"{1e3 * statistics.median(one[part] for one in good['alone']):.0f}"
            for part in ("fetch_s", "load_s", "first_s")
        )
        lines.append(
            f"| {case['network']}, {case['row']} | {_spread(total['build'])} "
            f"| {_spread(total['alone'])} | **{median['build'] / median['alone']:.1f}** "
            f"| {_spread(total['again'])} | **{median['build'] / median['again']:.1f}** | {parts} "
            f"| {good['build'][0]['engine_mb']:.0f} | {good['alone'][0]['kernels_compiled']} |"
        )
    return "\n".join(lines)


def _spread(seconds: Sequence[float]) -> str:
    low, high = min(seconds), max(seconds)
    return f"{statistics.median(seconds):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--rows", default=ROWS, help="ids of candidates, in order of interest")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--builds", type=int, default=2)
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="and once more, profiled")
    parser.add_argument("--time-limit", type=float, default=500.0, help="seconds; begins no more")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve()
        return
    from peregrine.fingerprint import machine, versions_of
    from peregrine.results import to_builtins

    deadline = time.monotonic() + options.time_limit
    networks, rows = options.networks.split(","), options.rows.split(",")
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, Fresh() as fresh:
        scratch = Path(temporary)
        fresh.start(_WAVE)
        preparing = []
        for network in networks:
            (scratch / network).mkdir()
            home = str(scratch / network)
            preparing.append(
                fresh.begin(do="prepare", network=network, home=home, batch=options.batch)
            )
        for network, process in zip(networks, preparing, strict=True):
            if "failed" in (told := _answer(process)):
                _say(f"{network}: {told['failed']}")
        _say(f"prepared; {deadline - time.monotonic():.0f} s left")
        longest: dict[str, float] = {}
        for network, row in _cases(networks, rows):
            backend, begun = row.partition(" ")[0], time.monotonic()
            if deadline - begun < longest.get(backend, 10.0):
                _say(f"{network}, {row}: no time left")
                continue
            cases.append(run_case(fresh, scratch, options, network, row))
            longest[backend] = max(longest.get(backend, 0.0), time.monotonic() - begun)
            _say(f"{table(cases[-1:]).splitlines()[-1]}  [{time.monotonic() - begun:.0f} s]")
            record = {
                "batch": options.batch,
                "machine": to_builtins(machine()),
                "versions": versions_of(
                    ("torch", "triton", "nvidia-cudnn-frontend", "tensorrt-rtx-cu13")
                ),
                "cases": cases,
            }
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(record, indent=1))
    print(table(cases))


if __name__ == "__main__":
    main()
