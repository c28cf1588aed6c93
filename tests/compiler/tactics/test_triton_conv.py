"""What the tactics of the implicit GEMM take, offer and predict, and that what they compile ahead
is what they launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import conv, image, linear, random_convs
from peregrine.compiler.operation import TensorType
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import _tiles, _triton_cache
from peregrine.compiler.tactics._layers import Layer, read_layer
from peregrine.compiler.tactics._tiles import Product, Tiling
from peregrine.compiler.tactics.triton_branches import TritonBranches
from peregrine.compiler.tactics.triton_conv import TritonConv

SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
ONE = Window((1, 1))
H200 = cases.H200


def test_a_matrix_product_of_four_dimensions_is_no_image():
    operation = linear((1, 1, 4, 5), 8)
    layer = read_layer(operation)
    assert (layer.images, layer.channels, layer.x_stride, layer.y_stride) == (4, 5, 5, 8)
    assert cases.worst(TritonConv(), linear((2, 3, 4, 20), 24, residual=True), most=4) < 1e-5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"operator": "peregrine.ConvMaxPool"}, "not peregrine.ConvMaxPool"),
        ({"constants": frozenset()}, "no constants"),
        ({"constants": frozenset({1})}, "no constants"),
        ({"attributes": {**SAME.attributes(), "group": 2}}, "grouped"),
        ({"attributes": {**Window((40, 1)).attributes(), "group": 1}}, "larger than 31"),
        ({"outputs": (TensorType("float16", None, None),)}, "not known"),
    ],
)
def test_what_it_refuses(change, reason):
    operation = replace(conv((2, 16, 8, 8), 16, SAME, dtype="float16"), **change)
    answer = TritonConv().supports(operation, H200)
    assert not answer
    assert reason in answer.reason


def test_layouts_and_dtypes_it_refuses():
    operation = conv((2, 16, 8, 8), 16, SAME, dtype="float16")
    _, w, bias, z = operation.inputs
    assert w is not None
    for inputs, reason in [
        ((TensorType.contiguous("float16", (2, 16, 8, 8)), w, bias, z), "innermost"),
        ((image("float32", (2, 16, 8, 8)), w, bias, z), "different dtypes"),
        ((image("float64", (2, 16, 8, 8)), replace(w, dtype="float64"), bias, z), "float32"),
    ]:
        answer = TritonConv().supports(replace(operation, inputs=inputs), H200)
        assert reason in answer.reason
    assert TritonConv().supports(operation, H200)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_every_layer_has_configurations_that_can_be_launched(batch):
    """A few seconds' worth to compile, tiles that fit shared memory, each predicted to take
    longer than a launch."""
    tactic = TritonConv()
    layers = random_convs(5, 12, "float16")
    layers += [linear((batch, 2048), 1000, dtype="float16"), conv((batch, 3, 9, 9), 5, SAME)]
    for operation in layers:
        assert tactic.supports(operation, H200)
        configs = tactic.configs(operation, H200)
        assert 1 <= len(configs) <= 40
        assert len({json.dumps(config) for config in configs}) == len(configs)
        product = read_layer(operation).product
        for config in configs:
            json.dumps(dict(config))
            assert 1e-7 < tactic.predict(operation, config, H200) < 1
            assert Tiling.read(config).shared_memory(product) <= 227 * 1024
            assert tactic.workspace(operation, config, H200) % 4 == 0


def test_one_image_is_split_over_the_multiprocessors_and_many_are_not():
    def splits(batch: int) -> set[int]:
        layer = conv((batch, 512, 7, 7), 512, SAME, dtype="float16")
        return {int(config["split_k"]) for config in TritonConv().configs(layer, H200)[:5]}

    assert min(splits(1)) > 1
    assert splits(256) == {1}


@pytest.mark.parametrize(
    ("pixels", "block", "boxes"),
    [((256, 56, 56), 128, 6272), ((1, 7, 7), 64, 1), ((1, 14, 14), 64, 4), ((3, 5, 9), 16, 15)],
)
def test_boxes_cover_the_output_with_few_pixels_too_many(pixels, block, boxes):
    product = Product(pixels, 64, 9, 64, 2, 1, box_rank=4)
    tiling = Tiling(block, 64, 64, 4, 4, fetch="tma")
    n, h, w = tiling.box(product)
    assert n * h * w == block
    assert tiling.rows(product) == boxes


@pytest.mark.parametrize(
    ("window", "size", "rank"),
    [
        (ONE, 7, 2),
        (SAME, 7, 4),
        (Window((1, 1), (2, 2)), 7, 4),
        (Window((3, 3), (2, 2), (1, 1, 1, 1)), 8, 5),
        (Window((3, 3), (2, 2), (1, 1, 1, 1)), 7, 0),
        (Window((3, 3), (2, 1), (1, 1, 1, 1)), 8, 0),
    ],
)
def test_what_the_accelerator_can_fetch(window, size, rank):
    operation = conv((2, 16, size, size), 16, window, dtype="float16")
    assert read_layer(operation).box_rank == rank


def test_pixels_that_are_not_16_bytes_apart_are_fetched_by_pointers():
    operation = conv((2, 12, 8, 8), 16, SAME, dtype="float16")
    assert read_layer(operation).box_rank == 0
    configs = TritonConv().configs(operation, H200)
    assert {config["fetch"] for config in configs} == {"pointers"}


def test_large_offsets_are_counted_in_64_bits():
    small = Layer.read(conv((8, 64, 512, 512), 64, SAME, dtype="float16"))
    large = Layer.read(conv((256, 64, 512, 512), 64, SAME, dtype="float16"))
    assert isinstance(small, Layer)
    assert isinstance(large, Layer)
    assert not small.wide
    assert large.wide


def test_best_keeps_different_tiles():
    product = read_layer(conv((1, 512, 7, 7), 512, SAME, dtype="float16")).product
    kept = _tiles.best(product, H200)
    assert len({(t.block_m, t.block_n, t.block_k, t.stages, t.fetch) for t in kept[:10]}) >= 5
    costs = [_tiles.predict(product, tiling, H200) for tiling in kept]
    assert costs == sorted(costs)


def test_entries_with_other_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name in ("conv.cubin", "../x/conv.cubin", "ABC/../../x", "ABC/.hidden", "A.B/conv.json"):
        done = _triton_cache.restore({name: b""})
        assert done.written == 0
        assert "no entry" in done.problems[0]
    assert list(tmp_path.iterdir()) == []


_AHEAD = """
import json, os, sys
from pathlib import Path
from compiler.tactics.operations import conv, H200
from compiler.kernels.test_conv import branches
os.environ.pop("TRITON_INTERPRET", None)  # the tests' modules choose the interpreter
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import _triton, _triton_cache, _triton_compile
from peregrine.compiler.tactics.triton_branches import TritonBranches
from peregrine.compiler.tactics.triton_conv import TritonConv

same = Window((3, 3), (1, 1), (1, 1, 1, 1))
layer = conv((1, 64, 8, 8), 64, same, dtype="float16", residual=True)
every = TritonConv().configs(layer, H200)
ways = {(c["fetch"], c["split_k"] > 1): c for c in every}
ways["tma"] = {**every[0], "block_m": 128, "block_n": 256, "block_k": 64, "warps": 8, "stages": 4,
               "split_k": 1, "fetch": "tma", "programs": 0, "ahead": False, "boxed_end": False}
kernels = [k for c in ways.values() for k in TritonConv().kernels(layer, c)]
pair = branches((1, 64, 8, 8), (32, 32), same)
kernels.append(TritonBranches().kernel(pair, TritonBranches().configs(pair, H200)[0]))
first, second = Path(sys.argv[1]), Path(sys.argv[2])

def found(directory):
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    knobs.cache.dir = str(directory)
    with _triton.CacheWatch() as watch:
        for kernel in kernels:
            made = _triton.specialise(kernel, H200)
            triton.compile(
                ASTSource(kernel.function, made["signature"], dict(made["constants"]),
                          dict(made["attributes"])),
                target=GPUTarget(*made["target"]), options=made["options"])
    return watch.hits, watch.misses

_triton.compile_ahead(kernels, H200)
ahead = found(first)
files = {
    f"{path.parent.name}/{path.name}": path.read_bytes()
    for path in first.glob("*/*") if path.suffix in (".cubin", ".json")
    and not path.name.startswith("__grp__")
}
written = _triton_cache.restore(files).written  # all is there
from triton import knobs
knobs.cache.dir = str(second)
_triton_cache.restore(files)
print(json.dumps([len(kernels), ahead, written, found(second)]))
_triton_compile.stop()
"""


@pytest.mark.slow
def test_what_is_compiled_ahead_or_restored_is_not_compiled_again(tmp_path):
    """By the real compiler, for a GPU that need not be here, in a process that interprets nothing;
    and once more from a cache that holds only what an engine keeps."""
    first, second = tmp_path / "first", tmp_path / "second"
    env = {
        **os.environ,
        "TRITON_CACHE_DIR": str(first),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        "PEREGRINE_COMPILE_WORKERS": "2",
    }
    if cases.DEVICE.is_cuda:
        pytest.skip("checked by launching where there is a GPU")
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ.pop('TRITON_INTERPRET', 0)\n{_AHEAD}",
         str(first), str(second)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    count, ahead, written, restored = json.loads(done.stdout.splitlines()[-1])
    assert ahead == [count, 0]
    assert written == 0
    dots = [
        line
        for path in first.glob("*/*.ttgir")
        for line in path.read_text().splitlines()
        if "warp_group_dot " in line
    ]
    # Read from registers, the first operand is overwritten too early (see `kernels.conv_tma`).
    assert dots
    assert not [line for line in dots if "dot_op" in line]
    assert restored == [count, 0]


@pytest.mark.gpu
def test_a_launch_finds_what_was_compiled_ahead():
    from peregrine.compiler.tactics import _triton

    operation = conv((1, 48, 9, 9), 56, SAME, dtype="float16", residual=True)
    tactic = TritonConv()
    configs = tactic.configs(operation, H200)
    tactic.compile(operation, configs, H200)
    inputs = cases.tensors(operation, cases.DEVICE.name)
    with _triton.CacheWatch() as watch, _triton.launched() as launched:
        for config in configs:
            cases.run(tactic, operation, config, inputs)
    assert watch.misses == 0, watch.names
    kept = _triton_cache.collect(launched)
    assert {Path(name).suffix for name in kept} == {".cubin", ".json", ".so", ".source"}


def test_branches_offer_what_they_take():
    from compiler.kernels.test_conv import branches

    operation = branches((2, 16, 9, 7), (8, 24), SAME)
    assert TritonBranches().supports(operation, H200)
    configs = TritonBranches().configs(operation, H200)
    assert configs
    assert all(config["split_k"] == 1 and not config["programs"] for config in configs)
    answer = TritonBranches().supports(conv((2, 16, 8, 8), 16, SAME), H200)
    assert "pairs" in answer.reason
