import copy

import pytest
import torch
from torch import nn

from peregrine.model import zoo
from peregrine.model.condition import condition

FP16_MAX, FP16_NORMAL = 65504.0, 6.1e-5


def extremes(module, x):
    """Over all layers: the largest magnitude, and the smallest standard deviation."""
    largest, spreads = 0.0, []

    def look(_, __, output):
        nonlocal largest
        largest = max(largest, float(output.abs().max()))
        spreads.append(float(output.float().std()))

    handles = [m.register_forward_hook(look) for m in module.modules()]
    with torch.inference_mode():
        module(x)
    for handle in handles:
        handle.remove()
    return largest, min(spreads)


@pytest.mark.parametrize(
    ("name", "size"),
    [("mobilenet_v2", 224), ("squeezenet1_0", 224), ("resnet101", 112), ("resnet152", 112)],
)
def test_every_layer_stays_in_the_range_of_fp16(name, size):
    module, words = zoo.build(name, weights="random")
    assert "conditioned" in words or "unit variance" in words
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(99))
    largest, narrowest = extremes(module, x)
    assert largest < FP16_MAX / 100
    assert narrowest > FP16_NORMAL * 100
    with torch.inference_mode():
        single = module(x).double()
        exact = copy.deepcopy(module).double()(x.double())
        half = copy.deepcopy(module).bfloat16()(x.bfloat16()).double()
    # Rounding must not be amplified: two right fp32 runtimes would differ as much.
    assert (single - exact).norm() / exact.norm() < 2e-5
    assert (half - exact).norm() / exact.norm() < 0.1
    assert exact.std() > 0.01


def test_plain_weights_would_not_do():
    """The trap that conditioning is for: plain mobilenet_v2 underflows."""
    from peregrine.model.vision import torchvision_models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = torchvision_models().mobilenet_v2(weights=None).eval()
    _, narrowest = extremes(plain, torch.rand(1, 3, 224, 224))
    assert narrowest < FP16_NORMAL


def test_without_batchnorm_each_channel_gets_unit_variance():
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 1)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(392, 5)
    )
    seen = []
    words = condition(module, (3, 9, 9), seed=4)
    assert "unit variance" in words
    module[0].register_forward_hook(lambda *a: seen.append(a[2]))
    x = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        module(x)
    assert torch.allclose(seen[0].std((0, 2, 3)), torch.ones(8), atol=1e-3)
    assert torch.allclose(seen[0].mean((0, 2, 3)), torch.zeros(8), atol=1e-3)


def test_batchnorm_takes_the_statistics_of_the_pass_and_its_settings_stay():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.3), nn.Dropout(0.9))
    condition(module, (3, 9, 9), seed=4)
    assert not module.training
    assert not module[1].training
    assert module[1].momentum == 0.3
    x = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        y = module(x)
    assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(y.std((0, 2, 3)), torch.ones(8), atol=1e-2)
