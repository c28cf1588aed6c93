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


@pytest.mark.gpu
@pytest.mark.slow
def test_a_session_holds_little_more_than_its_plan(tmp_path, monkeypatch):
    """Tuning leaves nothing with the allocator: neither in the process that built, nor later."""
    from peregrine.backends.native import NativeBackend
    from peregrine.model.inputs import random_feeds
    from peregrine.model.load import load
    from peregrine.types import Candidate, Precision, Profile, Target

    monkeypatch.setenv("PEREGRINE_CACHE", str(tmp_path / "cache"))
    release("cuda:0")
    before = torch.cuda.memory_reserved()
    model = load("squeezenet1_1", tmp_path / "model")
    target = Target("cuda:0", Profile.fixed(model.sizes(64)))
    candidate = Candidate("native", precision=Precision.FP16)
    with NativeBackend().compile(model, candidate, target) as session:
        for _ in range(5):
            session.run(random_feeds(model, 64, 1))
        plan = session.executable.plan
        inputs = sum(plan.tensors[name].type.bytes for name in plan.inputs)
        memory = plan.memory
        needed = memory.arena + memory.weights + memory.workspace + inputs
        held = torch.cuda.memory_reserved() - before
    # A workspace of cuBLAS, and what the allocator rounds up.
    assert held - needed < 64 * 2**20
