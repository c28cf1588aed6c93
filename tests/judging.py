"""One output judged against the reference's, and outputs to judge."""

import numpy as np

from peregrine.types import Precision, TensorSpec
from peregrine.validate import compare


def spec(array, name="y"):
    return TensorSpec(name, array.dtype.name, array.shape)


def judge(reference, candidate, precision=Precision.FP32, *, classifier=False, **more):
    """One output named y; lists are several inputs."""
    references = reference if isinstance(reference, list) else [reference]
    candidates = candidate if isinstance(candidate, list) else [candidate]
    return compare(
        [{"y": r} for r in references],
        [{"y": c} for c in candidates],
        outputs=[spec(references[0])],
        precision=precision,
        classifier=classifier,
        **more,
    )


def logits(rows=8, classes=10, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (rows, classes)).astype(np.float32)


def disturbed(values, scale, seed=1):
    """Values with independent noise of `scale` times their norm."""
    noise = np.random.default_rng(seed).normal(0, 1, values.shape)
    noise *= scale * np.linalg.norm(values) / np.linalg.norm(noise)
    return (values + noise).astype(values.dtype)
