"""Passes over onnx-ir graphs that write the fused operators of `peregrine.compiler.operators`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import onnx_ir as ir
import onnx_ir.passes.common as common

from peregrine.compiler.operators import Fused
from peregrine.compiler.passes.absorb_casts import AbsorbCasts
from peregrine.compiler.passes.fuse_branches import FuseBranches
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.fuse_conv_max_pool import FuseConvMaxPool
from peregrine.compiler.passes.fuse_depthwise_pointwise import FuseDepthwisePointwise
from peregrine.compiler.passes.fuse_linear import FuseLinear
from peregrine.compiler.passes.fuse_pointwise_pair import FusePointwisePair
from peregrine.compiler.passes.fuse_pool_linear import FusePoolLinear
from peregrine.compiler.passes.rewriting import Fusion
from peregrine.compiler.passes.slice_batch import Chain, SliceBatch

OPTIONAL: dict[Fused, type[Fusion]] = {
    Fused.DEPTHWISE_POINTWISE: FuseDepthwisePointwise,
    Fused.CONV_MAX_POOL: FuseConvMaxPool,
    Fused.CONV_BRANCHES: FuseBranches,
    Fused.POOL_LINEAR: FusePoolLinear,
    # After those that have other plans with a pointwise convolution.
    Fused.POINTWISE_PAIR: FusePointwisePair,
}
"""What is not always faster than its parts, so that the autotuner compares."""


def optimise(
    model: ir.Model,
    *,
    fuse: Collection[str] | None = None,
    apart: Collection[frozenset[str]] = (),
    slices: Mapping[Chain, int] = MappingProxyType({}),
) -> ir.Model:
    """Write fused operators into a graph of `importing.specialise`, in place.

    Args:
        model: with the shapes and dtypes of its values; inputs, outputs and their names stay.
        fuse: which of `OPTIONAL` may be written (`Fused` values); None for all of them.
        apart: sets of the user's nodes, by name, that these leave as they are.
        slices: chains of fused nodes that are done for a part of the images at a time, and in how
            many parts (`passes.slice_batch`).

    Returns:
        the same model.

    Raises:
        ValueError: `fuse` names something that is not optional.
    """
    wanted = set(OPTIONAL) if fuse is None else {Fused(name) for name in fuse}
    if not wanted <= set(OPTIONAL):
        raise ValueError(f"not optional: {', '.join(sorted(wanted - set(OPTIONAL)))}")
    ir.passes.Sequential(
        FuseConv(),
        FuseLinear(),
        *(write(apart) for fused, write in OPTIONAL.items() if fused in wanted),
        AbsorbCasts(),
        *([SliceBatch(slices)] if slices else []),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
    )(model)
    return model
