"""A capture that fails leaves streams, random numbers and later captures as they were."""

from __future__ import annotations

import pytest
import torch

from peregrine.compiler.capture import capture


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("own_stream", [False, True])
def test_what_cannot_be_recorded_leaves_the_process_as_it_was(own_stream: bool) -> None:
    x = torch.arange(4.0, device="cuda")
    before = torch.cuda.current_stream()
    stream = torch.cuda.Stream() if own_stream else None
    torch.cuda.manual_seed(7)
    torch.rand(3, device="cuda")
    expected = torch.cuda.get_rng_state()
    with pytest.raises(RuntimeError), capture(torch.cuda.CUDAGraph(), stream):
        (x * 2).sum().item()  # waits for what is only recorded
    assert torch.cuda.current_stream() == before
    assert torch.equal(torch.cuda.get_rng_state(), expected)
    drawn = torch.rand(3, device="cuda")
    torch.cuda.set_rng_state(expected)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
    graph = torch.cuda.CUDAGraph()
    with capture(graph, stream):
        y = x * 2
    x += 1
    graph.replay()
    assert y.tolist() == [2, 4, 6, 8]
