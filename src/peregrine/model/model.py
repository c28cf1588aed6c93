"""The model as every room sees it: specs, files, provenance. No runtime is imported here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peregrine.errors import ModelCorrupt, Unsupported
from peregrine.types import TensorSpec

if TYPE_CHECKING:
    import torch

MODEL_FILE = "model.json"


@dataclass(frozen=True, slots=True)
class ModuleSource:
    """How a worker rebuilds the PyTorch module, without pickles.

    `kind` is "zoo" or "factory" (call `ref`, then load `weights`), or "exported" or
    "torchscript" (open the file at `program`). Paths are relative to the model directory.
    """

    kind: str
    ref: str = ""
    """The zoo name, or `package.module:factory`."""
    weights: str = ""
    """A safetensors file of the state dict."""
    program: str = ""
    """A `.pt2` file, or a TorchScript one that the user trusted."""
    search_path: tuple[str, ...] = ()
    """Directories to import the factory from, beyond the interpreter's own."""
    adapt: bool = False
    """Whether the module takes inputs by keyword or returns more than a flat tuple, so that
    `load_module` must wrap it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A directory with `model.json`, usually `model.onnx`, and what rebuilds the module.

    Equal symbols in the specs are equal sizes. `batch` names the symbol that batches, or is
    empty when the model fixes its batch. `dims` holds the sizes given for the other symbols.
    """

    name: str
    directory: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: str = ""
    dims: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Input name -> [low, high) for random values, where [0, 1) will not do: token ids, a
    sampling rate. low == high means that one value."""
    onnx: str = ""
    """The graph's file in `directory`; empty when there is none, and `onnx_error` says why."""
    onnx_error: str = ""
    graph: str = ""
    """Which conversion of the user's graph this is, as `model.graphs` names them; empty for the
    graph as it came."""
    ir: str = ""
    """OpenVINO's form of a converted graph (`model.xml`, its weights beside it), where the
    converter writes that; `onnx` is then still the graph as it came."""
    module: ModuleSource | None = None
    sha256: str = ""
    """Of the ONNX graph with its external data, or of the exported program."""
    source: str = ""
    """What the user named, e.g. `resnet50` or `nets/model.onnx`."""
    weights: str = ""
    """Where the weights come from, in words for the report: `pretrained (...)`, `from the
    file`, `random, seed 0, BatchNorm statistics conditioned on random inputs`."""
    parameters: int | None = None
    """Elements of all weights; None where nobody counted."""
    classifier: bool = False
    """Whether the first output is scores over classes, so that top-1 means something: of weights
    known to be random it means nothing, their classes lie too close together."""
    notes: tuple[str, ...] = ()
    """Anything the report must say of how the model was read or exported."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """How an image becomes an input; empty when the model takes none. See `model.images`."""

    @property
    def onnx_path(self) -> Path:
        """The ONNX file. Raises `Unsupported` when the model has none."""
        if not self.onnx:
            raise Unsupported(f"{self.name} has no ONNX graph.", why=self.onnx_error)
        return self.directory / self.onnx

    @property
    def free_symbols(self) -> tuple[str, ...]:
        """Input symbols other than the batch, in order, each once."""
        symbols = dict.fromkeys(s for spec in self.inputs for s in spec.symbols)
        return tuple(s for s in symbols if s != self.batch)

    def sizes(self, batch: int) -> dict[str, int]:
        """The size of every input symbol at this batch."""
        sizes = {symbol: self.dims[symbol] for symbol in self.free_symbols}
        return {self.batch: batch, **sizes} if self.batch else sizes

    def load_module(self) -> torch.nn.Module:
        """The PyTorch module in eval mode on the CPU. Imports torch.

        Raises:
            Unsupported: the model came as ONNX and has no module.
        """
        from peregrine.model.module import load_module

        return load_module(self)

    def save(self) -> None:
        """Write `model.json`."""
        record = dataclasses.asdict(self)
        del record["directory"]
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MODEL_FILE).write_text(json.dumps(record, indent=1, sort_keys=True))

    @classmethod
    def open(cls, directory: Path) -> Model:
        """Read a directory that `save` wrote.

        Raises:
            ModelCorrupt: there is no readable `model.json`.
        """
        try:
            record = json.loads((directory / MODEL_FILE).read_text())
            for key in ("inputs", "outputs"):
                record[key] = tuple(
                    TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in record[key]
                )
            if record["module"] is not None:
                record["module"]["search_path"] = tuple(record["module"]["search_path"])
                record["module"] = ModuleSource(**record["module"])
            record["ranges"] = {k: (v[0], v[1]) for k, v in record["ranges"].items()}
            record["notes"] = tuple(record["notes"])
            return cls(directory=directory, **record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelCorrupt(
                f"{directory} is not a model directory.",
                why=f"{type(error).__name__}: {error}",
                fix="Start a new run from the original model.",
            ) from error
