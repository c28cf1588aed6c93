"""A `Model` of any module, without the ONNX export that the PyTorch backends do not need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from peregrine.model import weights
from peregrine.model.inputs import random_array
from peregrine.model.model import Model, ModuleSource
from peregrine.model.module import named_tensors
from peregrine.types import Array, Feeds, TensorSpec
from small_models import SMALL

_PROBE_BATCH = 7


def torch_model(
    directory: Path,
    factory: str,
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    ranges: Mapping[str, tuple[float, float]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> Model:
    """`factory`, an importable `module:function`, makes what `module` is."""
    ranges, dims = ranges or {}, dims or {}
    sizes = {"batch": _PROBE_BATCH, **dims}
    rng = np.random.default_rng(0)
    feeds = {s.name: random_array(s, s.resolve(sizes), ranges.get(s.name), rng) for s in inputs}
    weights.save(module, directory / weights.WEIGHTS_FILE)
    model = Model(
        name=factory.rpartition(":")[2],
        directory=directory,
        inputs=inputs,
        outputs=tuple(
            TensorSpec(
                name or f"output_{i}",
                str(tensor.dtype).removeprefix("torch."),
                tuple("batch" if size == _PROBE_BATCH else size for size in tensor.shape),
            )
            for i, (name, tensor) in enumerate(_call(module, inputs, feeds))
        ),
        batch="batch",
        dims=dims,
        ranges=ranges,
        module=ModuleSource(
            "factory",
            ref=factory,
            weights=weights.WEIGHTS_FILE,
            search_path=(str(Path(__file__).parent),),
            adapt=True,
        ),
    )
    model.save()
    return model


def small_torch_model(directory: Path, name: str) -> Model:
    small = SMALL[name]()
    return torch_model(
        directory, f"small_models:{name}", small.module, small.inputs, small.ranges, small.dims
    )


def bare_outputs(module: nn.Module, model: Model, feeds: Feeds) -> dict[str, Array]:
    """What the module itself returns for copies of `feeds`, named as the model's outputs."""
    tensors = [tensor for _, tensor in _call(module, model.inputs, feeds)]
    return {
        spec.name: tensor.clone().numpy()
        for spec, tensor in zip(model.outputs, tensors, strict=True)
    }


def _call(
    module: nn.Module, inputs: tuple[TensorSpec, ...], feeds: Feeds
) -> list[tuple[str, torch.Tensor]]:
    with torch.no_grad():
        return list(named_tensors(module(*(torch.tensor(feeds[s.name]) for s in inputs))))


def odd_torch_model(directory: Path, name: str) -> Model:
    """A module of `odd_modules`: each takes x, [batch, 6] of float32."""
    import odd_modules

    inputs = (TensorSpec("x", "float32", ("batch", 6)),)
    return torch_model(directory, f"odd_modules:{name}", getattr(odd_modules, name)(), inputs)
