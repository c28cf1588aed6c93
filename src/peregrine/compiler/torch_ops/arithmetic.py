"""In which dtype an operator computes, shared by the modules of operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, where sums are kept; anything else as it is."""
    return x.float() if x.dtype in HALVES else x


@contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Whether CUDA's float32 convolutions, recurrences and matrix products may round their inputs
    to TF32, for as long as the block lasts; other devices know no TF32."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn  # torch's types lack the settings of its parts
    settings: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
