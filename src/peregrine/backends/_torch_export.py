"""A PyTorch module as a torch.export program, for the compilers that take one graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peregrine.backends import _torch
from peregrine.errors import OptionError
from peregrine.model.inputs import random_array
from peregrine.model.model import Model
from peregrine.types import Array, Precision, Target

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

_REASON_CHARS = 300


def check_profile(model: Model, target: Target) -> None:
    """Refuse a profile that leaves a symbol of the inputs without a size.

    Raises:
        OptionError: naming the symbols.
    """
    symbols = {symbol for spec in model.inputs for symbol in spec.symbols}
    if missing := sorted(symbols - set(target.profile.dims)):
        raise OptionError(
            f"The profile gives no size for {', '.join(missing)}.",
            fix=f"Give one for each of {', '.join(sorted(symbols))}.",
        )


def example(model: Model, target: Target, *, least: int = 1, most: int = 2**31) -> dict[str, Array]:
    """Valid random feeds at the sizes to optimise for, within `least` and `most` where the
    profile allows: a traced size of 1 would be taken for a constant."""
    sizes = {
        name: min(max(r.opt, min(least, r.max)), max(most, r.min))
        for name, r in target.profile.dims.items()
    }
    rng = np.random.default_rng(0)
    return {
        spec.name: random_array(spec, spec.resolve(sizes), model.ranges.get(spec.name), rng)
        for spec in model.inputs
    }


def export(
    module: nn.Module, model: Model, precision: Precision, target: Target
) -> ExportedProgram:
    """The module as a torch.export program, dynamic in the sizes that the profile leaves open.

    The module must be on the target's device, in the dtype of `precision`.
    """
    import torch

    from peregrine.model.module import Positional

    open_sizes = {
        name: torch.export.Dim(f"size{i}", min=r.min, max=r.max)
        for i, (name, r) in enumerate(target.profile.dims.items())
        if r.min != r.max
    }
    dynamic = tuple(
        {axis: open_sizes[dim] for axis, dim in enumerate(spec.shape) if dim in open_sizes}
        for spec in model.inputs
    )
    dtype = _torch.compute_dtype(precision)
    tensors = (_torch.as_tensor(a) for a in example(model, target, least=2).values())
    placed = tuple(t.to(target.device, dtype if t.is_floating_point() else None) for t in tensors)
    return torch.export.export(Positional(module), placed, dynamic_shapes=(dynamic,))


def short(error: BaseException) -> str:
    """The telling line of an exception of a compiler: the C++ compiler's first error, or the
    first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "error:" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {telling}"[:_REASON_CHARS]
