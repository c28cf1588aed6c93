"""The rules of `kernels.pdl` in what Triton's compiler makes of the kernels: it moves loads, which
no run in the interpreter shows and few on a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_WEIGHTS = {"w", "w1", "w2", "wd", "wp", "b", "bd", "bp", "bias", "bias1", "bias2"}
"""Arguments of the kernels that may be read before the wait."""

_COMPILE = """
import os
from compiler.kernels.test_conv import branches
from compiler.kernels.test_pointwise_pair import pair
from compiler.tactics.operations import H200, conv
from compiler.tactics.triton_cases import (
    conv_max_pool, depthwise_pointwise, max_pool, pool_linear)
os.environ.pop("TRITON_INTERPRET", None)  # the tests' modules choose the interpreter
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import _triton, _triton_compile, registry
from peregrine.compiler.tactics._layers import read_layer

point, same = Window((1, 1)), Window((3, 3), (1, 1), (1, 1, 1, 1))
half = Window((3, 3), (2, 2), (1, 1, 1, 1))
image = (1, 64, 16, 16)
head = pool_linear(image, 100)
operations = [
    conv(image, 64, same, dtype="float16", residual=True),
    conv(image, 64, point, dtype="float16", residual=True),
    conv(image, 64, Window((1, 1), (2, 2)), dtype="float16"),
    conv((1, 512, 7, 7), 512, same, dtype="float16", residual=True),
    conv((64, 64, 56, 56), 256, point, dtype="float16", residual=True),
    branches((1, 64, 55, 55), (64, 64), same),
    conv((1, 3, 64, 64), 64, Window((7, 7), (2, 2), (3, 3, 3, 3)), dtype="float16"),
    conv_max_pool(conv((1, 3, 64, 64), 64, Window((7, 7), (2, 2), (3, 3, 3, 3)), dtype="float16"),
                  half),
    conv(image, 64, same, dtype="float16", group=64),
    conv(image, 64, half, dtype="float16", group=64),
    depthwise_pointwise(image, 64, same, residual=True),
    pair(image, 256, 64),
    max_pool(image, half),
    head,
    pool_linear((64, 64, 16, 16), 100),
    Operation("ai.onnx.GlobalAveragePool", {}, head.inputs[:1],
              (conv(image, 64, Window((16, 16)), dtype="float16").outputs[0],)),
]
one_step = {"block_m": 64, "block_n": 32, "block_k": 64, "warps": 4, "stages": 3, "split_k": 1,
            "reduce": "last", "fetch": "tma", "programs": 0, "ahead": False, "boxed_end": False,
            "precision": "ieee", "pdl": True}

def way(config):
    "What a configuration does, but for its sizes."
    return str([(name, value if isinstance(value, (str, bool)) else value > 1)
                for name, value in config.items()
                if isinstance(value, (str, bool)) or name in
                ("split_k", "splits", "programs", "kernels", "rows", "tile_w")])

kernels = []
compile_ahead, _triton.compile_ahead = _triton.compile_ahead, lambda ours, _: kernels.extend(ours)
for operation in operations:
    for tactic in registry.tactics():
        if not tactic.name.startswith("triton") or not tactic.supports(operation, H200):
            continue
        configs = list({way(c): c for c in tactic.configs(operation, H200)}.values())
        if tactic.name == "triton_conv" and read_layer(operation).box_rank:
            configs += [one_step, {**one_step, "programs": 132}]
        assert all(config["pdl"] for config in configs)
        tactic.compile(operation, configs, H200)
compile_ahead(kernels, H200)
_triton_compile.stop()
print(len({str(_triton.specialise(kernel, H200)) for kernel in kernels}))
"""


@pytest.mark.slow
def test_every_kernel_waits_on_every_way_before_it_touches_an_activation(tmp_path):
    """By the real compiler, for a GPU that need not be here."""
    env = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ.pop('TRITON_INTERPRET', 0)\n{_COMPILE}"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = list(tmp_path.glob("*/*.ttgir"))
    assert len(compiled) == int(done.stdout)
    names = {path.stem for path in compiled}
    assert {"conv", "conv_tma", "reduce_splits", "conv_branches", "conv_branches_tma"} <= names
    assert {"stem_kernel", "depthwise_kernel", "max_pool_kernel", "pool_linear_kernel"} <= names
    found = [(path.stem, offences(path.read_text())) for path in compiled]
    assert [(name, wrong) for name, wrong in found if wrong] == []


def offences(ttgir: str) -> list[str]:
    """What a kernel in Triton's GPU dialect does, on some way through it, against the rules."""
    lines = ttgir.splitlines()
    start = next(i for i, line in enumerate(lines) if "tt.func public" in line)
    reads = {
        name: {label}
        for name, kind, label in re.findall(r'(%\w+): (!tt\.\w+)[^%]*? loc\("(\w+)"', lines[start])
    }
    """Of each value, the pointers among the arguments that it comes from."""
    waited, open_ways, found = False, [], []
    for line in lines[start + 1 :]:
        text = re.sub(r" loc\(.*", "", line.strip())
        assert not text.startswith("cf."), "ways that this test cannot follow"
        if text.startswith("tt.return"):
            return found if waited else [*found, "ends without a wait"]
        if text.startswith("} else"):
            before, _ = open_ways[-1]
            open_ways[-1] = (before, waited)
            waited = before
        elif text.startswith("}"):
            before, other = open_ways.pop()
            # A loop may run no time at all, and an `if` without `else` may not be entered.
            waited = waited and (before if other is None else other)
        results, operation = re.fullmatch(r"(?:(%[\w:, %]+) = )?(.*)", text).groups()
        used = [re.sub(r"#\d+$", "", name) for name in re.findall(r"%[\w#]+", operation)]
        origin = set().union(*(reads.get(name, set()) for name in used))
        for name in re.findall(r"%\w+", results or ""):
            reads[name] = origin
        for name, value in re.findall(r"(%\w+) = (%\w+)", operation):  # carried through a loop
            reads[name] = reads.get(value, set())
        name = operation.partition(" ")[0]
        if "griddepcontrol.wait" in operation or name == "tt.grid_dependency_wait":
            waited = True
        elif not waited and re.search(r"\.(load|descriptor_load)$|global_to_local$", name):
            if origin - _WEIGHTS:
                found.append(f"reads {sorted(origin - _WEIGHTS)} before the wait")
        elif not waited and re.search(r"(?<!local_)store$|atomic|local_to_global", name):
            found.append(f"writes {sorted(origin)} before the wait")
        if text.endswith("{") and not text.startswith("} else"):
            open_ways.append((waited, None))
    raise AssertionError("the function has no end")
