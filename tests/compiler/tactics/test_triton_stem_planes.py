"""What the tactics of windows that slide over shared memory take, and how they cut them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as functional

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import conv
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import _gluon
from peregrine.compiler.tactics.base import Device
from peregrine.compiler.tactics.triton_stem_planes import (
    Planes,
    TritonConvMaxPoolPlanes,
    TritonStemPlanes,
)

_SEVEN = Window((7, 7), (2, 2), (3, 3, 3, 3))
_THREE = Window((3, 3), (2, 2), (1, 1, 1, 1))
_POOL = Window((3, 3), (2, 2), (1, 1, 1, 1))
_LANES = 128


def _stem(shape=(1, 3, 32, 32), channels=16, window=_SEVEN, **options) -> Operation:
    return conv(shape, channels, window, dtype="float16", **options)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (_stem((1, 8, 32, 32)), "at most 4 channels"),
        (_stem((1, 4, 32, 32), group=4), "dense"),
        (_stem(residual=True), "adds no Z"),
        (_stem(channels=129), "at most 128 outputs"),
        (_stem(window=replace(_SEVEN, strides=(1, 1))), "move by 2"),
        (_stem(window=replace(_SEVEN, dilations=(2, 2))), "move by 2"),
        (_stem(window=Window((5, 5), (2, 2), (2, 2, 2, 2))), "fours"),
        (_stem(window=Window((8, 10), (2, 2), (4, 4, 4, 4))), "elements"),
        (conv((1, 3, 32, 32), 16, _SEVEN, dtype="float32"), "W as float16, bfloat16"),
        (_stem(output_dtype="float32"), "Y as float16, bfloat16"),
        (replace(_stem(), constants=frozenset({2})), "no constant"),
        (
            replace(_stem(), outputs=(TensorType.contiguous("float16", (1, 16, 16, 16)),)),
            "not innermost",
        ),
        (_stem((65536, 3, 8, 8)), "65536 images"),
    ],
)
def test_what_it_does_not_take_has_a_reason(operation, reason):
    assert reason in TritonStemPlanes().problem(operation)
    assert reason in TritonStemPlanes().supports(operation, cases.H200).reason


def test_each_takes_its_own_operator():
    pooled = cases.conv_max_pool(_stem(), _POOL)
    assert "peregrine.Conv," in TritonStemPlanes().supports(pooled, cases.H200).reason
    assert "ConvMaxPool" in TritonConvMaxPoolPlanes().supports(_stem(), cases.H200).reason
    assert not TritonStemPlanes().problem(_stem())
    assert not TritonConvMaxPoolPlanes().problem(pooled)


@pytest.mark.parametrize("pool", [Window((2, 2), (2, 2)), Window((3, 3), (1, 1))])
def test_poolings_it_does_not_take(pool):
    operation = cases.conv_max_pool(_stem(), pool)
    assert "not 3x3" in TritonConvMaxPoolPlanes().problem(operation)


@pytest.mark.parametrize(
    "device", [Device("cpu"), Device("cuda:0", (8, 0)), Device("cuda:0", (10, 0))]
)
def test_other_devices_have_other_tensor_cores(device, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "compute capability 9" in _gluon.missing(device, overlapping=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in _gluon.missing(cases.H200, overlapping=True)


def _slots(image: torch.Tensor, geometry: Planes, first: int) -> list[torch.Tensor]:
    """The planes of each pair of rows of a window, the window's first row given, as
    `kernels.stem_planes` lays them out: (positions, 8) each, one behind the other."""
    channels, height, width = image.shape
    found = []
    for row in range(first, first + geometry.window.kernel[0], 2):
        rows = torch.zeros(2, _LANES, 8, dtype=image.dtype)
        for which in range(2):
            for position in range(_LANES):
                for channel in range(channels):
                    for odd in range(2):
                        column = 2 * position - geometry.left + odd
                        if 0 <= row + which < height and 0 <= column < width:
                            rows[which, position, 2 * channel + odd] = image[
                                channel, row + which, column
                            ]
        a, b = rows
        odd = torch.arange(8) % 2 == 1
        planes = [b * odd, a * odd] if geometry.before else []
        if geometry.window.kernel[0] % 2:
            planes.append(torch.cat([a[1:], a[:1]]))
        found.append(torch.cat([*planes, a, b]))
    return found


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "window",
    [
        _SEVEN,
        Window((7, 7), (2, 2)),
        _THREE,
        Window((3, 3), (2, 2), (0, 0, 1, 1)),
        Window((4, 6), (2, 2), (1, 2, 0, 1)),
        Window((6, 4), (2, 2), (2, 1, 2, 1)),
        Window((2, 5), (2, 2), (0, 2, 0, 2)),
    ],
    ids=lambda window: f"{window.kernel} {window.pads}",
)
def test_packed_weights_times_the_planes_are_the_convolution(window, channels):
    """Tensor cores read two neighbouring planes of 16 bytes a position; here by hand."""
    geometry = Planes(window, channels)
    assert not geometry.problem
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(channels, 13, 15, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, channels, *window.kernel, generator=generator, dtype=torch.float64)
    top, left, bottom, right = window.pads
    padded = functional.pad(image[None], (left, right, top, bottom))
    expected = functional.conv2d(padded, weights, stride=2)[0]
    packed = geometry.pack(weights, 64).reshape(64, geometry.steps, 2, 8)
    assert not packed[5:].any()

    single = window.kernel[0] % 2
    a = (2 * geometry.before + single) * _LANES
    width = expected.shape[2]
    for oh in range(expected.shape[1]):
        sums = torch.zeros(64, width, dtype=torch.float64)
        step = 0
        for slot in _slots(image, geometry, 2 * oh - top)[: window.kernel[0] // 2]:
            for tap in range(geometry.taps):
                at = 0 if geometry.before and tap == 0 else a + tap
                for plane in range(2):
                    read = slot[at + plane * _LANES :][:width]
                    sums += packed[:, step, plane] @ read.T
                step += 1
        if single:
            slot = _slots(image, geometry, 2 * oh - top)[-1]
            for pair in range(geometry.taps // 2):
                at = a - _LANES + 2 * pair
                if geometry.before and pair == 0:
                    at = _LANES
                for plane in range(2):
                    read = slot[at + plane * _LANES :][:width]
                    sums += packed[:, step, plane] @ read.T
                step += 1
        assert step == geometry.steps
        torch.testing.assert_close(sums[:5], expected[:, oh])


@pytest.mark.parametrize("images", [1, 16, 256])
@pytest.mark.parametrize("channels", [32, 64, 96])
def test_configurations_are_few_distinct_and_predicted(images, channels):
    stem = _stem((images, 3, 224, 224), channels)
    for tactic, operation in (
        (TritonStemPlanes(), stem),
        (TritonConvMaxPoolPlanes(), cases.conv_max_pool(stem, _POOL)),
    ):
        cases.check_configs(tactic, operation)


@pytest.mark.parametrize("width", [1, 13, 224, 249, 250, 1000])
@pytest.mark.parametrize("window", [_SEVEN, _THREE])
def test_strips_cover_the_output_and_read_no_further_than_a_plane(width, window):
    stem = _stem((2, 3, 40, 2 * width), 16, window)
    pooled = cases.conv_max_pool(stem, _POOL)
    taps = Planes(window, 3).taps
    for tactic, operation, columns in (
        (TritonStemPlanes(), stem, lambda strip: strip),
        (TritonConvMaxPoolPlanes(), pooled, lambda strip: 2 * strip + 1),
    ):
        strip = tactic.strip(operation)
        written = operation.outputs[0].shape[3]
        strips, _, images = tactic.grid(operation, {"rows": 4})
        assert (strips - 1) * strip < written <= strips * strip
        assert images == 2
        # The last position of a plane is written by the shift of the plane behind.
        assert columns(strip) - 1 + taps - 1 < _LANES - 1


def test_one_image_fills_the_device():
    operation = _stem((1, 3, 224, 224), 64)
    tactic = TritonStemPlanes()
    best = min(
        tactic.configs(operation, cases.H200),
        key=lambda config: tactic.predict(operation, config, cases.H200),
    )
    assert tactic.grid(operation, best)[1] == 112
