"""Device memory that no tensor holds, kept by libraries and the allocator of work that is done."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def release(device: str) -> None:
    """Give back to the GPU what PyTorch's allocator holds and no tensor uses, after cuBLAS gave
    back its workspaces: one for each stream that it was called on, of 32 MiB on an H200, each of
    them a piece that keeps a larger block from being freed.

    Waits for the device. CUDA graphs stay valid: the memory that they were captured with is theirs.

    Args:
        device: a CUDA device as torch names it.
    """
    import torch

    gc.collect()  # what only a cycle or a kept traceback still holds
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        # PyTorch's own CUDA graph trees call it, and there is no public name for it.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device with the strides it has: `Tensor.to` closes the gaps of a view."""
    if not tensor.numel() or tensor.is_contiguous():
        return tensor.to(device)
    shape, strides = tensor.shape, tensor.stride()
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return tensor.as_strided((span,), (1,)).to(device).as_strided(shape, strides)
