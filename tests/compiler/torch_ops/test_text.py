"""Counted n-grams against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, ours, runtime
from peregrine.errors import Unsupported

POOL = {
    "pool_int64s": (2, 3, 5, 4, 5, 6, 7, 8, 6, 7, 1, 2, 3),
    "ngram_counts": (0, 4, 10),
    "ngram_indexes": (6, 1, 2, 3, 4, 5, 0, 9),
    "weights": (0.5, 1.5, 2.0, 3.0, 0.25, 4.0, 5.0, 7.0),
}


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("skips", [0, 1, 4])
@pytest.mark.parametrize("shape", [(40,), (3, 30), (2, 1)])
def test_as_onnx_runtime_counts(shape, skips, lengths, mode):
    x = np.random.default_rng(SEED).integers(1, 9, shape)
    options = {
        **POOL,
        "mode": mode,
        "min_gram_length": lengths[0],
        "max_gram_length": lengths[1],
        "max_skip_count": skips,
    }
    actual = ours("TfIdfVectorizer", 9, x, **options)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, runtime("TfIdfVectorizer", 9, x, **options))


def test_strings_are_refused():
    with pytest.raises(Unsupported, match="strings"):
        ours("TfIdfVectorizer", 9, np.ones(3, "i8"), pool_strings=("a",), ngram_indexes=(0,))
