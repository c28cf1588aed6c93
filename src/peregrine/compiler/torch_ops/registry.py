"""The standard operators as functions of PyTorch tensors, found by name and opset version.

A function is registered for the versions of its operator that it implements:

    @operator("ai.onnx.Reshape", since=5, host=(1,))
    def reshape(call: Call, data: Tensor, shape: Tensor) -> Tensor: ...

`since` is the first opset whose meaning it has; the entry with the highest `since` that is not
above the graph's opset is taken. `host` names inputs that it reads as Python numbers: as constants
they lie in the CPU's memory, and otherwise each inference waits for the device to tell them.
Absent optional inputs come as None. A function returns its output, or a tuple of them, never
writes to its inputs, and may return a view of one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOST_TABLES = 64
"""Of one step; beyond it come those of sizes that change with each inference, which is never a
CUDA graph: none of these is lost."""

Result: TypeAlias = "Tensor | tuple[Tensor | None, ...]"
Function: TypeAlias = "Callable[..., Result]"
_F = TypeVar("_F", bound="Function")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """What an operator is called with beside its inputs."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    """ONNX's attributes as plain values: ints, floats, str, tuples of them; a tensor as a
    `torch.Tensor` on the CPU; a subgraph as a function of its formal inputs that gives a tuple
    of its outputs, what it captures being bound already."""
    opset: int = 0
    outputs: int = 1
    """How many outputs are asked for."""
    tf32: bool = False
    device: torch.device | str = "cpu"
    """Where an output that comes from no tensor on the device is made: a range, a shape."""
    tables: MutableMapping[Hashable, Any] = field(default_factory=dict)
    """What `table` keeps, as long as the step lives."""

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def table(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Tensors that follow from attributes, sizes and dtypes alone, which `key` says: made by
        the first inference and kept. A CUDA graph that is being captured may not copy from the
        host, and a captured one reads them where they lie."""
        if key not in self.tables:
            if len(self.tables) >= _MOST_TABLES:
                self.tables.clear()
            self.tables[key] = make()
        made: _T = self.tables[key]
        return made


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered function."""

    operator: str
    function: Function
    since: int
    host: frozenset[int]


_ENTRIES: dict[str, list[Entry]] = {}


def operator(name: str, *, since: int = 1, host: tuple[int, ...] = ()) -> Callable[[_F], _F]:
    """Register the decorated function; `name` is `ai.onnx.Relu`, `ai.onnx.ml.Scaler`,
    `peregrine.Conv`. May be stacked for several names or versions; each is registered once."""

    def register(function: _F) -> _F:
        entries = _ENTRIES.setdefault(name, [])
        if any(entry.since == since for entry in entries):
            raise ValueError(f"{name} since opset {since} is registered twice")
        entries.append(Entry(name, function, since, frozenset(host)))
        entries.sort(key=lambda entry: entry.since)
        return function

    return register


def find(name: str, opset: int) -> Entry | None:
    """The entry for an operator at an opset version, or None where there is none."""
    _load()
    found = None
    for entry in _ENTRIES.get(name, ()):
        if entry.since <= opset:
            found = entry
    return found


def names() -> Iterator[str]:
    """Every registered operator."""
    _load()
    yield from sorted(_ENTRIES)


def _load() -> None:
    """Import the modules that register; each imports torch."""
    from importlib import import_module
    from pkgutil import iter_modules

    from peregrine.compiler import torch_ops

    for module in iter_modules(torch_ops.__path__):
        import_module(f"{torch_ops.__name__}.{module.name}")
