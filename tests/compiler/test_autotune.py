"""What a trial finds wrong: outputs that are off, and promises that are not kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compiler.tactics.operations import conv
from peregrine.compiler.autotune import Trial
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics.base import Config, Device
from peregrine.compiler.tactics.torch_ops import TorchOps

LAYER = conv((2, 8, 6, 5), 8, Window((3, 3), (1, 1), (1, 1, 1, 1)), residual=True)


class Tampered(TorchOps):
    """Does something to its first output and its residual before it computes."""

    def __init__(self, tamper: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        self._tamper = tamper

    def writes_over(self, operation: Operation, config: Config) -> frozenset[int]:
        return frozenset({3})

    def bind(self, operation, config, inputs, outputs, workspace, state):
        launch = super().bind(operation, config, inputs, outputs, workspace, state)

        def tampered() -> None:
            self._tamper(outputs[0], inputs[3])
            launch()

        return tampered


def errors(tamper: Callable[[torch.Tensor, torch.Tensor], object]) -> tuple[float, float]:
    """Beside its inputs and over its residual."""
    trial, tactic = Trial(LAYER, Device("cpu"), 0), Tampered(tamper)
    return trial.error(trial.bind(tactic, {})), trial.error_in_place(tactic, {})


def test_who_reads_before_it_writes_is_right_in_place():
    assert errors(lambda y, z: None) == pytest.approx((0, 0), abs=1e-6)


def test_who_writes_before_it_reads_is_wrong_in_place_alone():
    beside, over = errors(lambda y, z: y.zero_())
    assert beside < 1e-6
    assert over > 0.1


def test_who_spoils_one_element_is_found():
    beside, over = errors(lambda y, z: y[1, 3, 2, 1].fill_(5.0))
    assert beside < 1e-6
    assert over > 1e-3


def test_who_promises_nothing_is_not_tried_in_place():
    trial = Trial(LAYER, Device("cpu"), 0)
    tactic = Tampered(lambda y, z: y.zero_())
    tactic.writes_over = lambda operation, config: frozenset()
    assert trial.error_in_place(tactic, {}) == 0


def test_a_number_that_is_not_finite_never_passes():
    beside, _ = errors(lambda y, z: z[0, 0, 0, 0].fill_(float("nan")))
    assert beside == float("inf")
