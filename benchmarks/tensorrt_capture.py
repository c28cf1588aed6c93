"""Whether an inference of TensorRT-RTX is wrong because of how it is launched.

The same engine is launched call by call, captured as a CUDA graph behind its first or its third
inference, or left to capture itself (`CudaGraphStrategy.WHOLE_GRAPH_CAPTURE`); engines are built as
by default and with REQUIRE_USER_ALLOCATION, which TensorRT-RTX's release notes ask for where a
stream is captured (an engine built so makes no context that allocates by itself: a row that says
so). Every inference has new inputs, and is compared with PyTorch's in fp32.

    python benchmarks/tensorrt_capture.py --out results/h200/tensorrt_capture.json --time-limit 90
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.backends import registry
from peregrine.conversion.convert import convert
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Precision, Profile, Target

CASES = (
    ("resnet50", "", False, 1),
    ("squeezenet1_0", "fp16", False, 1),
    ("resnet50", "fp16", False, 1),
    ("resnet50", "", True, 1),
    ("resnet50", "fp16", False, 256),
    ("resnet50", "", False, 256),
    ("mobilenet_v2", "fp16", False, 1),
)
"""Network, graph, whether TF32 is allowed, batch."""
WAYS = ("launch", "capture1", "capture3", "own")
_INFERENCES = 5
_ROUNDS = 7


def build(model: Model, batch: int, tf32: bool, flag: bool) -> tuple[bytes, float]:
    """A serialised engine of one size, and the seconds it took."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model.onnx_path)):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 4 << 30)
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if flag:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    profile = builder.create_optimization_profile()
    for spec in model.inputs:
        profile.set_shape(spec.name, *[spec.resolve(model.sizes(batch))] * 3)
    config.add_optimization_profile(profile)
    started = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    return bytes(engine), time.perf_counter() - started


def run(
    engine_bytes: bytes,
    model: Model,
    batch: int,
    how: str,
    feeds: Sequence[Feeds],
    expected: Sequence[Mapping[str, Array]],
) -> dict[str, Any]:
    """Every inference's error, and the time of one of many, back to back."""
    import tensorrt_rtx as trt
    import torch

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(engine_bytes)
    free = torch.cuda.mem_get_info()[0]
    config = engine.create_runtime_config()
    cache = config.create_runtime_cache()
    config.set_runtime_cache(cache)
    if how == "own":
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    context = engine.create_execution_context(runtime_config=config)
    if context is None:
        return {"failed": "no execution context"}
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    buffers = {}
    for spec in (*model.inputs, *model.outputs):
        shape = spec.resolve(model.sizes(batch))
        buffers[spec.name] = torch.zeros(shape, device="cuda")
        context.set_tensor_address(spec.name, buffers[spec.name].data_ptr())
        if spec in model.inputs:
            context.set_input_shape(spec.name, shape)
    torch.cuda.synchronize()
    found: dict[str, Any] = {
        "capturable": context.is_stream_capturable(stream.cuda_stream),
        "device_memory_MiB": engine.device_memory_size_v2 / 2**20,
    }
    graph: torch.cuda.CUDAGraph | None = None
    errors = []
    for number, (feed, wanted) in enumerate(zip(feeds, expected, strict=True)):
        for name, value in feed.items():
            buffers[name].copy_(torch.from_numpy(np.array(value)))
        torch.cuda.synchronize()
        if how == f"capture{number}":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                context.execute_async_v3(stream.cuda_stream)
        _start(graph, context, stream)
        stream.synchronize()
        got = {name: buffers[name].cpu().numpy().astype(float) for name in wanted}
        errors.append(
            max(float(np.linalg.norm(got[n] - w) / np.linalg.norm(w)) for n, w in wanted.items())
        )
    found["errors"] = [f"{error:.1e}" for error in errors]
    found["capturable_later"] = context.is_stream_capturable(stream.cuda_stream)
    count = 20 if batch > 16 else 200
    rounds = []
    for _ in range(_ROUNDS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record(stream)
        for _ in range(count):
            _start(graph, context, stream)
        end.record(stream)
        end.synchronize()
        rounds.append(begin.elapsed_time(end) / count)
    found["ms"] = round(statistics.median(rounds), 4)
    found["MiB"] = (free - torch.cuda.mem_get_info()[0]) / 2**20
    return found


def _start(graph: Any, context: Any, stream: Any) -> None:
    import torch

    if graph is None:
        context.execute_async_v3(stream.cuda_stream)
        return
    with torch.cuda.stream(stream):
        graph.replay()


def main() -> None:
    import torch

    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--out", type=Path, required=True, help="JSON")
    asked.add_argument("--time-limit", type=float, default=600, help="begin no case after it")
    options = asked.parse_args()
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        for network, graph, tf32, batch in CASES:
            if time.monotonic() - began > options.time_limit:
                break
            where = Path(scratch) / network
            base = Model.open(where) if where.exists() else load(network, where)
            model = base
            if graph:
                converted = Path(scratch) / f"{network}-{graph}"
                if not converted.exists():
                    convert(base, Graph(graph), converted)
                model = Model.open(converted)
            target = Target("cuda:0", Profile.fixed(base.sizes(batch)))
            feeds = [random_feeds(base, batch, seed) for seed in range(_INFERENCES)]
            eager = Candidate("pytorch", "eager", Precision.FP32)
            with registry.get("pytorch").compile(base, eager, target) as reference:
                expected = [reference.run(feed) for feed in feeds]
            for flag in (False, True):
                engine, seconds = build(model, batch, tf32, flag)
                for how in WAYS:
                    torch.cuda.empty_cache()
                    found = run(engine, model, batch, how, feeds, expected)
                    rows.append(
                        {
                            "network": network,
                            "graph": graph,
                            "tf32": tf32,
                            "batch": batch,
                            "flag": flag,
                            "how": how,
                            "build_s": round(seconds, 2),
                            **found,
                        }
                    )
                    print(json.dumps(rows[-1]), flush=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
