"""What a device can do, measured and remembered."""

from __future__ import annotations

import json

import pytest
import torch

from peregrine.compiler import devices
from peregrine.errors import BackendUnavailable
from peregrine.store import cache_directory

_FACTS = {"gpu": "Some GPU", "driver": "580.1"}


@pytest.fixture(autouse=True)
def _afresh():
    devices.describe.cache_clear()
    yield
    devices.describe.cache_clear()


def test_a_cpu():
    device = devices.describe("cpu")
    assert device.name == "cpu"
    assert not device.is_cuda
    assert device.capability == (0, 0)
    assert device.multiprocessors == torch.get_num_threads()
    # From a microcontroller to a rack.
    assert 1e7 < device.flops < 1e15
    assert 1e7 < device.bandwidth < 1e14


def test_a_process_measures_once():
    assert devices.describe("cpu") is devices.describe("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "xpu", "mps:0"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(BackendUnavailable) as caught:
        devices.describe(name)
    assert name in caught.value.what
    assert caught.value.fix


def test_what_was_measured_is_remembered_on_disk_by_all_that_it_hangs_on():
    asked = []

    def measure() -> tuple[float, float]:
        asked.append(1)
        return 7.9e14 + len(asked), 4.3e12

    first = devices.remembered(_FACTS, measure)
    assert devices.remembered(dict(_FACTS), measure) == first == (7.9e14 + 1, 4.3e12)
    assert len(asked) == 1
    assert devices.remembered({**_FACTS, "driver": "590.2"}, measure) != first
    assert len(asked) == 2


def test_a_record_that_was_changed_does_not_count():
    devices.remembered(_FACTS, lambda: (1.0, 2.0))
    directory = cache_directory("devices")
    assert directory is not None
    (path,) = directory.glob("*/entry.json")
    entry = json.loads(path.read_text())
    entry["record"]["flops"] = 99.0
    path.write_text(json.dumps(entry))
    assert devices.remembered(_FACTS, lambda: (3.0, 4.0)) == (3.0, 4.0)


@pytest.mark.gpu
def test_a_gpu_is_measured_once_and_read_from_disk_then(monkeypatch):
    device = devices.describe("cuda:0")
    assert device.is_cuda
    assert device.capability == torch.cuda.get_device_capability(0)
    assert 1e12 < device.flops < 1e16
    assert 1e10 < device.bandwidth < 1e14
    devices.describe.cache_clear()

    def fail(device: torch.device) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(devices, "_matrix_flops", fail)
    monkeypatch.setattr(devices, "_copy_bandwidth", fail)
    assert devices.describe("cuda:0") == device
