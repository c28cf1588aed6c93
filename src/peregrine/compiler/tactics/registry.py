"""All tactics, by name. A tactic's module is imported when it is first asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from peregrine.compiler.tactics.base import Tactic
from peregrine.errors import Unsupported

if TYPE_CHECKING:
    from peregrine.compiler.tactics.torch_ops import TorchOps

_PACKAGE = __name__.rpartition(".")[0]

_TACTICS = {
    "cudnn_graph": "cudnn_graph:CudnnGraph",
    "cublaslt": "cublaslt:CublasLt",
    "cudnn_fused": "cudnn_fused:CudnnFused",
    "gluon_rows": "gluon_rows:GluonRows",
    "gluon_pointwise": "gluon_pointwise:GluonPointwise",
    "triton_conv": "triton_conv:TritonConv",
    "triton_branches": "triton_branches:TritonBranches",
    "triton_pointwise_pair": "triton_pointwise_pair:TritonPointwisePair",
    "triton_stem": "triton_stem:TritonStem",
    "triton_conv_max_pool": "triton_stem:TritonConvMaxPool",
    "triton_stem_planes": "triton_stem_planes:TritonStemPlanes",
    "triton_conv_max_pool_planes": "triton_stem_planes:TritonConvMaxPoolPlanes",
    "triton_depthwise": "triton_depthwise:TritonDepthwise",
    "triton_depthwise_walk": "triton_depthwise_walk:TritonDepthwiseWalk",
    "triton_depthwise_pointwise": "triton_depthwise_pointwise:TritonDepthwisePointwise",
    "triton_max_pool": "triton_pooling:TritonMaxPool",
    "triton_global_pool": "triton_pooling:TritonGlobalPool",
    "triton_pool_linear": "triton_pooling:TritonPoolLinear",
    "torch_ops": "torch_ops:TorchOps",
}
"""Name -> module of this package and class. Libraries' tactics first, the one that takes
everything last: where predictions are equal, the earlier one is tried first."""


def tactics() -> tuple[Tactic, ...]:
    """Every tactic, in a fixed order; each says itself where its library is missing."""
    return tuple(get(name) for name in _TACTICS)


@cache
def get(name: str) -> Tactic:
    """The tactic of a name, always the same object.

    Raises:
        Unsupported: there is none of that name here.
    """
    if name not in _TACTICS:
        raise Unsupported(
            f"There is no tactic {name!r} in this version of Peregrine.",
            why=f"Its tactics: {', '.join(_TACTICS)}.",
            fix="Build the engine again.",
        )
    module, _, kind = _TACTICS[name].partition(":")
    tactic: Tactic = getattr(import_module(f"{_PACKAGE}.{module}"), kind)()
    return tactic


def torch_ops() -> TorchOps:
    """The one that takes every operator there is."""
    from peregrine.compiler.tactics.torch_ops import TorchOps

    found = get(TorchOps.name)
    assert isinstance(found, TorchOps)
    return found
