"""Tensors change devices with their strides, and nothing stays that no tensor uses."""

from __future__ import annotations

import pytest
import torch

from peregrine.compiler.device_memory import moved, release


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4),
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0).reshape(4, 6)[1:3, ::2],
        torch.arange(24.0).reshape(4, 6)[:, 2:5],
        torch.arange(3.0).expand(4, 3),
        torch.zeros(3, 0, 2).permute(2, 1, 0),
        torch.tensor(3),
    ],
    ids=["whole", "permuted", "stepped", "with gaps", "expanded", "empty", "scalar"],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_moved_tensor_keeps_values_and_strides(tensor, device):
    found = moved(tensor, device)
    assert found.device.type == device
    assert found.shape == tensor.shape
    assert found.stride() == tensor.stride()
    assert torch.equal(found.cpu(), tensor)


@pytest.mark.gpu
def test_nothing_stays_of_matrix_products_on_many_streams():
    device = "cuda:0"
    release(device)
    before = torch.cuda.memory_reserved(device)
    kept = torch.ones(256, 256, device=device)
    for _ in range(8):
        with torch.cuda.stream(torch.cuda.Stream(device)):
            kept @ kept
    workspaces = torch.cuda.memory_reserved(device) - before
    release(device)
    left = torch.cuda.memory_reserved(device) - before
    assert left <= 2**21  # the segment of the one small tensor
    assert left < workspaces
