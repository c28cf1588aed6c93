"""Recording a CUDA graph, so that where it fails the process stays as it was.

`torch.cuda.graph` of PyTorch 2.11 to 2.13 stops halfway where CUDA refuses to end a capture. Its
stream stays the current one. Its random generator goes on believing that it is recorded, and every
random number of the process's GPU then raises "Offset increment outside graph capture" (in 2.11):
TorchInductor draws some as it compiles. And its allocators go on asking the graph, which may be
gone, whether a stream is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_failed: list[torch.cuda.CUDAGraph] = []
"""What the allocators still ask."""


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
    """Record in `graph` what the block launches, on the current device. Other threads may use the
    GPU meanwhile.

    Args:
        graph: a new one.
        stream: to capture on; None for the one that PyTorch keeps for it.

    Raises:
        RuntimeError: something in the block cannot be recorded; or any exception of the block.
    """
    import torch

    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield
    except BaseException:
        _failed.append(graph)
        torch.cuda.set_stream(before)
        # The same seed and place in its numbers, in a state that no capture has marked. What was
        # recorded before keeps the old state.
        generator = torch.cuda.default_generators[before.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
