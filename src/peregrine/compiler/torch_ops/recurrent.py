"""RNN, GRU and LSTM: torch's kernels (cuDNN's on a GPU) where the attributes are the usual ones,
and otherwise step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import HALVES, float32_products, wide
from peregrine.compiler.torch_ops.registry import Call, Result, operator
from peregrine.errors import Unsupported

Function: TypeAlias = "Callable[[Tensor], Tensor]"
Step: TypeAlias = "Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]"

_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], dict[str, float]]] = {
    "relu": (torch.relu, {}),
    "tanh": (torch.tanh, {}),
    "sigmoid": (torch.sigmoid, {}),
    "softsign": (F.softsign, {}),
    "softplus": (F.softplus, {}),
    "elu": (F.elu, {"alpha": 1.0}),
    "leakyrelu": (lambda x, alpha: F.leaky_relu(x, alpha), {"alpha": 0.01}),
    "thresholdedrelu": (lambda x, alpha: F.threshold(x, alpha, 0), {"alpha": 1.0}),
    "affine": (lambda x, alpha, beta: alpha * x + beta, {"alpha": 1.0, "beta": 0.0}),
    "scaledtanh": (
        lambda x, alpha, beta: alpha * torch.tanh(beta * x),
        {"alpha": 1.0, "beta": 1.0},
    ),
    "hardsigmoid": (
        lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
        {"alpha": 0.2, "beta": 0.5},
    ),
}
"""By ONNX's name in small letters: the function and its parameters where none are given."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A kind of recurrence."""

    name: str
    gates: int
    states: int
    activations: tuple[str, ...]
    """Of one direction, where none are named."""


_RNN = _Cell("RNN", 1, 1, ("Tanh",))
_GRU = _Cell("GRU", 3, 1, ("Sigmoid", "Tanh"))
_LSTM = _Cell("LSTM", 4, 2, ("Sigmoid", "Tanh", "Tanh"))


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Time first: x (T, N, I); weights (D, gates * H, I or H), bias (D, 2 * gates * H), states
    (D, N, H), peepholes (D, 3 * H), where D is the number of directions."""

    x: Tensor
    w: Tensor
    r: Tensor
    b: Tensor
    lengths: Tensor | None
    states: tuple[Tensor, ...]
    peepholes: Tensor | None = None

    @property
    def hidden(self) -> int:
        return self.r.shape[2]


@operator("ai.onnx.RNN", since=7)
def rnn(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> Result:
    return _run(_RNN, call, x, w, r, b, lengths, (h,))


@operator("ai.onnx.GRU", since=7)
def gru(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> Result:
    return _run(_GRU, call, x, w, r, b, lengths, (h,))


@operator("ai.onnx.LSTM", since=7)
def lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
) -> Result:
    return _run(_LSTM, call, x, w, r, b, lengths, (h, c), p)


def _run(
    cell: _Cell,
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    states: tuple[Tensor | None, ...],
    peepholes: Tensor | None = None,
) -> Result:
    """Y (T, D, N, H), Y_h (D, N, H), and an LSTM's Y_c; batch first in layout 1."""
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        states = tuple(s.transpose(0, 1) if s is not None else None for s in states)
    directions, hidden = r.shape[0], r.shape[2]
    usual = _is_usual(cell, call, directions, plain=lengths is None and peepholes is None)
    dtype = x.dtype if usual and x.is_cuda and x.dtype in HALVES else wide(x).dtype
    inputs = _Inputs(
        x.to(dtype),
        w.to(dtype),
        r.to(dtype),
        b.to(dtype) if b is not None else x.new_zeros(directions, 2 * r.shape[1], dtype=dtype),
        lengths,
        tuple(
            s.to(dtype)
            if s is not None
            else x.new_zeros(directions, x.shape[1], hidden, dtype=dtype)
            for s in states
        ),
        peepholes,
    )
    with float32_products(x.device, tf32=call.tf32):
        run = _by_torch if usual else _step_by_step
        outputs = tuple(y.to(x.dtype) for y in run(cell, call, inputs))
    if batch_first:
        y, *last = outputs
        outputs = (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last))
    return outputs[: call.outputs] if call.outputs > 1 else outputs[0]


def _is_usual(cell: _Cell, call: Call, directions: int, *, plain: bool) -> bool:
    """Whether torch's own recurrences mean the same; `plain`: no lengths and no peepholes."""
    names = _activation_names(cell, call)
    plain_rnn = cell is _RNN and names in ([name] * directions for name in ("tanh", "relu"))
    return (
        plain
        and (names == [name.lower() for name in cell.activations] * directions or plain_rnn)
        and call.get("direction", "forward") in ("forward", "bidirectional")
        and not call.get("clip")
        and not call.get("input_forget", 0)
        and (cell is not _GRU or bool(call.get("linear_before_reset", 0)))
    )


def _activation_names(cell: _Cell, call: Call) -> list[str]:
    directions = 2 if call.get("direction", "forward") == "bidirectional" else 1
    names = call.get("activations") or cell.activations * directions
    return [name.lower() for name in names]


def _by_torch(cell: _Cell, call: Call, inputs: _Inputs) -> tuple[Tensor, ...]:
    directions, hidden = inputs.r.shape[0], inputs.hidden
    # ONNX's order of gates to torch's: LSTM iofc -> ifco, GRU zrh -> rzh.
    order = {_LSTM: (0, 2, 3, 1), _GRU: (1, 0, 2), _RNN: (0,)}[cell]

    def reordered(gates: Tensor) -> Tensor:
        return torch.cat([gates.narrow(0, gate * hidden, hidden) for gate in order])

    weights: list[Tensor] = []
    for direction in range(directions):
        biases = inputs.b[direction].chunk(2)
        weights += map(reordered, (inputs.w[direction], inputs.r[direction], *biases))
    weights = _in_one_block(weights) if inputs.x.is_cuda else weights
    rest = (weights, True, 1, 0.0, False, directions == 2, False)
    if cell is _LSTM:
        y, *last = torch.lstm(inputs.x, inputs.states, *rest)
    elif cell is _GRU:
        y, *last = torch.gru(inputs.x, inputs.states[0], *rest)
    else:
        relu = _activation_names(cell, call)[0] == "relu"
        y, *last = (torch.rnn_relu if relu else torch.rnn_tanh)(inputs.x, inputs.states[0], *rest)
    length, batch = y.shape[:2]
    return y.reshape(length, batch, directions, hidden).transpose(1, 2), *last


def _in_one_block(weights: Sequence[Tensor]) -> list[Tensor]:
    """The same in one piece of memory, matrices before biases as cuDNN lays them out; it copies
    them itself otherwise, and warns."""
    ordered = [w for w in weights if w.dim() == 2] + [w for w in weights if w.dim() == 1]
    block = torch.cat([w.reshape(-1) for w in ordered])
    pieces = torch.split(block, [w.numel() for w in ordered])
    views = {id(w): piece.view(w.shape) for w, piece in zip(ordered, pieces, strict=True)}
    return [views[id(w)] for w in weights]


def _step_by_step(cell: _Cell, call: Call, inputs: _Inputs) -> tuple[Tensor, ...]:
    directions = inputs.r.shape[0]
    functions = list(_activations(cell, call))
    per = len(cell.activations)
    if len(functions) != per * directions:
        raise Unsupported(f"{cell.name} with {len(functions)} activations")
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    sequences, finals = [], []
    for index, backward in enumerate(backwards[call.get("direction", "forward")]):
        step = _step(cell, call, inputs, index, functions[index * per : (index + 1) * per])
        sequence, final = _one_direction(inputs, index, step, backward)
        sequences.append(sequence)
        finals.append(final)
    return torch.stack(sequences, 1), *map(torch.stack, zip(*finals, strict=True))


def _activations(cell: _Cell, call: Call) -> Iterator[Function]:
    """The named functions; alphas and betas go in turn to those that take one."""
    given = {name: iter(call.get(f"activation_{name}") or ()) for name in ("alpha", "beta")}
    for name in _activation_names(cell, call):
        if name not in _ACTIVATIONS:
            raise Unsupported(f"{cell.name} with activation {name!r}")
        function, defaults = _ACTIVATIONS[name]
        yield partial(function, **{key: next(given[key], value) for key, value in defaults.items()})


def _one_direction(
    inputs: _Inputs, index: int, step: Step, backward: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All of Y (T, N, H) and the last states. Beyond a sequence's length Y is 0, and its state
    stays; backwards, each sequence begins at its own end."""
    bias = inputs.b[index].chunk(2)[0]
    fed = torch.matmul(inputs.x, inputs.w[index].t()) + bias
    times = range(inputs.x.shape[0])
    state = tuple(s[index] for s in inputs.states)
    outputs: dict[int, Tensor] = {}
    for time in reversed(times) if backward else times:
        after = step(fed[time], state)
        if inputs.lengths is not None:
            alive = (time < inputs.lengths).unsqueeze(1)
            after = tuple(torch.where(alive, a, s) for a, s in zip(after, state, strict=True))
            outputs[time] = torch.where(alive, after[0], 0)
        else:
            outputs[time] = after[0]
        state = after
    return torch.stack([outputs[time] for time in times]), state


def _step(
    cell: _Cell, call: Call, inputs: _Inputs, index: int, functions: Sequence[Function]
) -> Step:
    """One time step of one direction: (what x gives the gates, states) -> states after."""
    limit = call.get("clip")
    recurrent, bias = inputs.r[index].t(), inputs.b[index].chunk(2)[1]

    def clipped(x: Tensor) -> Tensor:
        return x.clamp(-limit, limit) if limit else x

    def rnn_step(fed: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (f,) = functions
        return (f(clipped(fed + state[0] @ recurrent + bias)),)

    def gru_step(fed: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        f, g = functions
        (h,) = state
        hidden = h.shape[1]
        gates = fed[:, : 2 * hidden] + h @ recurrent[:, : 2 * hidden] + bias[: 2 * hidden]
        z, r = (f(clipped(gate)) for gate in gates.chunk(2, 1))
        own, own_bias = recurrent[:, 2 * hidden :], bias[2 * hidden :]
        if call.get("linear_before_reset", 0):
            fresh = r * (h @ own + own_bias)
        else:
            fresh = (r * h) @ own + own_bias
        return ((1 - z) * g(clipped(fed[:, 2 * hidden :] + fresh)) + z * h,)

    def lstm_step(fed: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        f, g, h_of = functions
        h, c = state
        i, o, forget, fresh = (fed + h @ recurrent + bias).chunk(4, 1)
        if inputs.peepholes is not None:
            p_i, p_o, p_f = inputs.peepholes[index].to(c.dtype).chunk(3)
            i, forget = i + p_i * c, forget + p_f * c
        i = f(clipped(i))
        forget = 1 - i if call.get("input_forget", 0) else f(clipped(forget))
        c = forget * c + i * g(clipped(fresh))
        if inputs.peepholes is not None:
            o = o + p_o * c
        return f(clipped(o)) * h_of(c), c

    return {_RNN: rnn_step, _GRU: gru_step, _LSTM: lstm_step}[cell]
