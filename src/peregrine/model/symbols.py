"""Symbolic dimensions: readable names, which one batches, which are equal, which need a size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from peregrine.errors import OptionError, did_you_mean
from peregrine.model.feeds import check_feeds
from peregrine.model.inputs import BATCH, InputSpec
from peregrine.types import Dim, Feeds, TensorSpec

# What exporters write where nobody gave a name: Paddle, tf2onnx, torch.export, plain unknown.
_ANONYMOUS = re.compile(
    r"\?.*|-1|None|unk__\d+|(p2o\.)?DynamicDimension\.\d+|s\d+|u\d+|.*_dynamic_axes_\d+|dim_\d+"
)
_BATCH_NAME = re.compile(r"b|n|bs|batch([_ ]?(size|dim))?", re.IGNORECASE)
_NOT_BATCH = re.compile(r".*(seq|len|time|frame|token|width|height|channel).*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Symbols:
    """The inputs with their final dimension names, and what was decided on the way.

    `renames` maps each original symbol to the final one. `dims` sizes every symbol of the
    inputs but the batch. `batch` is "batch", or empty.
    """

    inputs: tuple[TensorSpec, ...]
    batch: str
    dims: Mapping[str, int]
    ranges: Mapping[str, tuple[float, float]]
    renames: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def rename(self, spec: TensorSpec) -> TensorSpec:
        """`spec` under the final names; symbols that no input has are only made readable."""
        taken = {symbol for s in self.inputs for symbol in s.symbols}
        dims: list[Dim] = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                dims.append(dim)
            elif dim in self.renames:
                dims.append(self.renames[dim])
            elif _ANONYMOUS.fullmatch(dim):
                dims.append(_free(f"{_identifier(spec.name)}_dim{axis}", taken))
            else:
                dims.append(_free(_identifier(dim), taken))
        return replace(spec, shape=tuple(dims))


def resolve(
    raw: Sequence[TensorSpec],
    *,
    given: Sequence[InputSpec] = (),
    dims: Mapping[str, int] | None = None,
    example: Feeds | None = None,
) -> Symbols:
    """Name, unify and size the symbols of `raw` inputs.

    `given` overrides: its symbols rename, its sizes fix. `example` sizes what is still open.

    Raises:
        OptionError: `given` contradicts the model, a `dims` key names nothing, or a dimension
            other than the batch has no size (the message shows the flag that gives it).
        FeedError: `example` does not fit.
    """
    merge = _Merge(raw)
    merge.apply(given)
    merge.find_batch()
    merge.make_readable()
    inputs = merge.inputs()
    sizes = _sizes(merge, inputs, dims or {})
    if example is not None:
        # One element of the batch is enough of an example for a batch of any size.
        known = check_feeds(inputs, example)
        sizes = {s: n for s, n in known.items() if s != merge.batch} | sizes
    open_symbols = [
        s for spec in inputs for s in spec.symbols if s != merge.batch and s not in sizes
    ]
    if open_symbols:
        raise _needs_sizes(inputs, list(dict.fromkeys(open_symbols)))
    ranges = {item.spec.name: item.range for item in given if item.range is not None}
    return Symbols(inputs, merge.batch, sizes, ranges, merge.renames(), tuple(merge.notes))


def from_example(example: Feeds) -> tuple[InputSpec, ...]:
    """Specs of a module's inputs from arrays: the first size they all share is the batch."""
    ranked = [v for v in example.values() if v.ndim]
    shared = len({v.shape[0] for v in ranked}) == 1
    return tuple(
        InputSpec(
            TensorSpec(
                name,
                value.dtype.name,
                (BATCH, *value.shape[1:]) if shared and value.ndim else value.shape,
            )
        )
        for name, value in example.items()
    )


class _Merge:
    """Symbols under way: a forest where equal symbols share a root."""

    def __init__(self, raw: Sequence[TensorSpec]) -> None:
        self.raw = {spec.name: spec for spec in raw}
        self.parent = {symbol: symbol for spec in raw for symbol in spec.symbols}
        self.names: dict[str, str] = {}  # root -> final name
        self.fixed: dict[str, int] = {}  # root -> size
        self.batch = ""
        self.notes: list[str] = []

    def root(self, symbol: str) -> str:
        while self.parent[symbol] != symbol:
            symbol = self.parent[symbol]
        return symbol

    def unify(self, one: str, other: str) -> None:
        a, b = self.root(one), self.root(other)
        if a != b:
            self.parent[b] = a
            if b in self.fixed:
                self.fixed.setdefault(a, self.fixed.pop(b))
            if b in self.names:
                self.names.setdefault(a, self.names.pop(b))

    def apply(self, given: Sequence[InputSpec]) -> None:
        """Lay the user's specs over the model's."""
        by_name: dict[str, str] = {}
        for item in given:
            wanted = item.spec
            have = self.raw.get(wanted.name)
            if have is None:
                raise OptionError(
                    f"The model has no input {wanted.name!r}.{did_you_mean(wanted.name, self.raw)}",
                    fix=f"Its inputs are: {', '.join(map(str, self.raw.values()))}.",
                )
            if have.dtype != wanted.dtype or len(have.shape) != len(wanted.shape):
                raise _contradiction(wanted, have)
            for mine, theirs in zip(wanted.shape, have.shape, strict=True):
                if isinstance(theirs, int):
                    if mine != theirs:
                        raise _contradiction(wanted, have)
                elif isinstance(mine, int):
                    if self.fixed.setdefault(self.root(theirs), mine) != mine:
                        raise _contradiction(wanted, have)
                else:
                    self.unify(by_name.setdefault(mine, theirs), theirs)
                    self.names[self.root(theirs)] = mine

    def find_batch(self) -> None:
        """The symbol the user called batch, or one of a batch's name, or the first input's
        first dimension. Then every dimension that must be the same one joins it."""
        free = [s for s in self.parent if self.root(s) not in self.fixed]
        named = [s for s in free if self.names.get(self.root(s)) == BATCH]
        if not named:
            unnamed = [s for s in free if self.root(s) not in self.names]
            named = [s for s in unnamed if _BATCH_NAME.fullmatch(s)]
            leading = [spec.shape[0] for spec in self.raw.values() if spec.shape]
            named = named or [
                s
                for s in leading
                if isinstance(s, str) and s in unnamed and not _NOT_BATCH.fullmatch(s)
            ]
        if not named:
            return
        batch = named[0]
        for spec in self.raw.values():
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, int) or not _ANONYMOUS.fullmatch(dim):
                    continue
                if self.root(dim) in self.fixed or self.root(dim) in self.names:
                    continue
                if axis == 0 or _is_state(spec, axis):
                    if self.root(dim) != self.root(batch):
                        self.notes.append(
                            f"dimension {axis} of input {spec.name!r} has no name; taken as batch"
                        )
                    self.unify(batch, dim)
        self.names[self.root(batch)] = self.batch = BATCH

    def make_readable(self) -> None:
        """Give every root that has none a name that a person can type."""
        for spec in self.raw.values():
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, int) or (root := self.root(dim)) in self.names:
                    continue
                wanted = _usual_name(spec, axis) if _ANONYMOUS.fullmatch(dim) else _identifier(dim)
                self.names[root] = _free(wanted, set(self.names.values()))

    def final(self, dim: Dim) -> Dim:
        return dim if isinstance(dim, int) else self.names[self.root(dim)]

    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(spec, shape=tuple(map(self.final, spec.shape))) for spec in self.raw.values()
        )

    def renames(self) -> dict[str, str]:
        return {symbol: self.names[self.root(symbol)] for symbol in self.parent}


def _is_state(spec: TensorSpec, axis: int) -> bool:
    """Whether `axis` batches a recurrent state [layers, batch, features]: the only open one."""
    return axis == 1 and len(spec.shape) == 3 and len(spec.symbols) == 1


def _usual_name(spec: TensorSpec, axis: int) -> str:
    """What the field calls this axis: height and width of an image, the length of a sequence."""
    rank = len(spec.shape)
    image = rank == 4 and spec.dtype.startswith(("float", "uint8"))
    if image and spec.shape[1] in (1, 3, 4) and axis >= 2:
        return ("height", "width")[axis - 2]
    if image and spec.shape[3] in (1, 3, 4) and axis in (1, 2):
        return ("height", "width")[axis - 1]
    if rank in (2, 3) and axis == 1:
        return "sequence"
    return f"{_identifier(spec.name)}_dim{axis}"


def _identifier(text: str) -> str:
    """`text` as a name that fits a flag: letters, digits, underscores."""
    name = re.sub(r"\W+", "_", text).strip("_") or "dim"
    return f"d{name}" if name[0].isdigit() else name


def _free(wanted: str, taken: Iterable[str]) -> str:
    name, number = wanted, 2
    while name in set(taken):
        name, number = f"{wanted}_{number}", number + 1
    return name


def _sizes(merge: _Merge, inputs: Sequence[TensorSpec], dims: Mapping[str, int]) -> dict[str, int]:
    """Sizes by final name, from what fixes them; `dims` may use original names too."""
    known = {symbol for spec in inputs for symbol in spec.symbols}
    sizes = {merge.names[root]: size for root, size in merge.fixed.items()}
    renames = merge.renames()
    for name, size in dims.items():
        final = name if name in known else renames.get(name, "")
        if final == merge.batch != "":
            raise OptionError(
                f"{name} is the batch dimension; it takes no fixed size.",
                fix=f"Use --batch {size}.",
            )
        if not final:
            free = ", ".join(sorted(known - {merge.batch})) or "none"
            raise OptionError(
                f"The model has no open dimension {name!r}.{did_you_mean(name, known)}",
                fix=f"Its open dimensions besides the batch are: {free}.",
            )
        if size < 1:
            raise OptionError(f"{name}={size} is not a size.", fix="Sizes start at 1.")
        if sizes.setdefault(final, size) != size:
            raise OptionError(
                f"{name} is given twice: {sizes[final]} and {size}.", fix="Give it once."
            )
    return sizes


def _contradiction(wanted: TensorSpec, have: TensorSpec) -> OptionError:
    return OptionError(
        f"--input {wanted} contradicts the model.",
        why=f"The model takes {have}.",
        fix="Give sizes only to dimensions that the model leaves open.",
    )


def _needs_sizes(inputs: Sequence[TensorSpec], symbols: list[str]) -> OptionError:
    guesses = {"height": 224, "width": 224, "sequence": 128}
    flags = " ".join(f"--dim {s}={guesses.get(s, 64)}" for s in symbols)
    specs = [spec for spec in inputs if set(spec.symbols) & set(symbols)]
    shapes = " ".join(
        "--input "
        + str(
            replace(
                spec,
                shape=tuple(
                    "B"
                    if dim == BATCH
                    else guesses.get(dim, 64)
                    if isinstance(dim, str) and dim in symbols
                    else dim
                    for dim in spec.shape
                ),
            )
        )
        for spec in specs
    )
    return OptionError(
        f"The model leaves {', '.join(symbols)} open, so there is no input to race it with.",
        why=f"Its inputs are: {', '.join(map(str, inputs))}.",
        fix=f"Give sizes that the network is meant for, e.g. {flags} (or {shapes}).",
    )
