"""Tokens counted: n-grams of whole numbers. torch has no strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported


def _levels(pool: Sequence[int], starts: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """Each length of n-grams with the numbers of all of its n-grams, one after the other."""
    for length, start in enumerate(starts, start=1):
        end = starts[length] if length < len(starts) else len(pool)
        yield length, pool[start:end]


def _counts(tokens: Tensor, grams: Tensor, skips: range) -> Tensor:
    """How often each of (G, n) n-grams is in each row of (N, C) tokens, its tokens being one more
    than a number of `skips` apart: (N, G)."""
    length = grams.shape[1]
    found = tokens.new_zeros(tokens.shape[0], grams.shape[0])
    for skip in skips:
        span = (length - 1) * (skip + 1) + 1
        if span > tokens.shape[1]:
            break
        windows = tokens.unfold(1, span, 1)[:, :, :: skip + 1]
        found += (windows.unsqueeze(2) == grams).all(-1).sum(1)
    return found


def _tables(call: Call, device: torch.device) -> tuple[dict[int, Tensor], Tensor, Tensor | None]:
    """On the device: by length its n-grams (G, n); their places and their weights, all in one
    row."""

    def whole(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=device)

    levels = _levels(call.attributes["pool_int64s"], call.attributes["ngram_counts"])
    grams = {length: whole(numbers).reshape(-1, length) for length, numbers in levels}
    weights = call.get("weights")
    return (
        grams,
        whole(call.attributes["ngram_indexes"]),
        torch.tensor(weights, dtype=torch.float32, device=device) if weights else None,
    )


@operator("ai.onnx.TfIdfVectorizer", since=9)
def tf_idf_vectorizer(call: Call, tokens: Tensor) -> Tensor:
    """Counts (TF), weights of what is there (IDF), or weighted counts (TFIDF) of the n-grams of a
    pool, each at its place of `ngram_indexes`, in each row."""
    pool, places = call.get("pool_int64s"), call.attributes["ngram_indexes"]
    if not pool:
        raise Unsupported("TfIdfVectorizer of strings: the native engine takes whole numbers.")
    rows = tokens.to(torch.int64).reshape(-1, tokens.shape[-1])
    most = range(call.attributes["max_skip_count"] + 1)
    lengths = range(call.attributes["min_gram_length"], call.attributes["max_gram_length"] + 1)
    grams_of, place, weights = call.table(rows.device, lambda: _tables(call, rows.device))
    counted = []
    for length, grams in grams_of.items():
        # One token has no gaps that could be wider.
        skips = range(0) if length not in lengths else most if length > 1 else range(1)
        counted.append(_counts(rows, grams, skips))
    counts = torch.cat(counted, 1).float()
    mode = call.attributes["mode"]
    if mode == "IDF":
        counts = counts.clamp(max=1)
    if mode != "TF" and weights is not None:
        counts = counts * weights
    y = counts.new_zeros(rows.shape[0], max(places) + 1).index_add(1, place, counts)
    return y.reshape(*tokens.shape[:-1], -1)
