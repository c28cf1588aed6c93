"""PyTorch modules as the race calls them: tensors in by position, tensors out as a flat tuple."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peregrine.errors import ModelError, Unsupported
from peregrine.model import weights, zoo
from peregrine.model.importing import find_callable, importable_from
from peregrine.model.model import Model
from peregrine.types import Array


class Positional(nn.Module):
    """A module behind the plain calling convention.

    Inputs named in `keywords` (the last ones) are passed by keyword; whatever the module
    returns comes out as a tensor or a flat tuple of tensors.
    """

    def __init__(self, module: nn.Module, keywords: Sequence[str] = ()) -> None:
        super().__init__()
        self.module = module
        self.keywords = tuple(keywords)
        self.training = False

    def forward(self, *inputs: Tensor) -> Any:
        outputs = [tensor for _, tensor in named_tensors(self.raw(*inputs))]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def raw(self, *inputs: Tensor) -> object:
        """What the module itself returns, with whatever names it gives its outputs."""
        split = len(inputs) - len(self.keywords)
        named = dict(zip(self.keywords, inputs[split:], strict=True))
        return self.module(*inputs[:split], **named)


class Frozen(Positional):
    """`Positional` over a graph that torch.export made: it has no training mode to leave."""

    def __init__(self, module: nn.Module, keywords: Sequence[str] = ()) -> None:
        super().__init__(module, keywords)
        for part in module.modules():
            part.training = False

    def train(self, mode: bool = True) -> Frozen:
        return self


def named_tensors(outputs: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a module's result, in order, with a name where a mapping gives one.

    Raises:
        ModelError: the result holds something that is neither tensor, tuple, list nor mapping.
    """
    if isinstance(outputs, Tensor):
        yield name, outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            if value is not None:
                yield from named_tensors(value, f"{name}_{key}" if name else str(key))
    elif isinstance(outputs, (tuple, list)):
        fields = getattr(outputs, "_fields", [""] * len(outputs))
        for position, (field, value) in enumerate(zip(fields, outputs, strict=True)):
            own = field or (str(position) if name else "")
            yield from named_tensors(value, f"{name}_{own}" if name else own)
    else:
        raise ModelError(
            f"The module returned a {type(outputs).__name__}.",
            why="Outputs must be tensors, or tuples, lists or mappings of tensors.",
            fix="Wrap it in a module whose forward returns tensors.",
        )


def keyword_inputs(module: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The inputs that must go by keyword: all of them, when every name is a parameter of
    `forward` and they are not simply its first parameters in order; else none."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward in C++ or in TorchScript
        return ()
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    usable = [p for p in parameters if p.kind in by_keyword]
    leading = [p.name for p in usable if p.kind is by_keyword[0]]
    if list(names) == leading[: len(names)]:
        return ()
    return tuple(names) if set(names) <= {p.name for p in usable} else ()


def is_plain(outputs: object) -> bool:
    """Whether a result is already a tensor or a flat tuple of tensors."""
    return isinstance(outputs, Tensor) or (
        type(outputs) is tuple and all(isinstance(value, Tensor) for value in outputs)
    )


def load_module(model: Model) -> nn.Module:
    """Rebuild a model's module in eval mode on the CPU.

    It takes tensors in the order of `model.inputs` and returns a tensor, or a tuple of them in
    the order of `model.outputs`.

    Raises:
        Unsupported: the model has no module.
        ModelError: the module cannot be rebuilt in this interpreter.
    """
    source = model.module
    if source is None:
        raise Unsupported(
            f"{model.name} has no PyTorch module.",
            why="It came as an ONNX graph.",
            fix="Name a .pt2, a `package.module:factory` or a zoo network to race PyTorch too.",
        )
    if source.kind == "exported":
        from peregrine.model.program import module_of, open_program

        return module_of(open_program(model.directory / source.program))
    if source.kind == "torchscript":
        module = open_torchscript(model.directory / source.program)
    elif source.kind == "zoo":
        module = zoo.architecture(source.ref)
    else:
        module = call_factory(source.ref, source.search_path)
    if source.weights:
        weights.load(module, model.directory / source.weights, assign=source.kind == "zoo")
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    names = [spec.name for spec in model.inputs]
    return Positional(module, keyword_inputs(module, names)) if source.adapt else module


def open_torchscript(path: Path) -> nn.Module:
    """A TorchScript file in eval mode on the CPU.

    Raises:
        ModelError: torch cannot read it.
    """
    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be loaded as TorchScript.", why=str(error)[:400]
        ) from error
    return module


def call_factory(ref: str, search_path: Sequence[str] = ()) -> nn.Module:
    """Import `package.module:factory`, call it without arguments, return the module.

    Raises:
        ModelNotFound: there is no such module or attribute.
        ModelError: importing or calling it failed, or it returned something else.
    """
    location, _, attribute = ref.partition(":")
    with importable_from(search_path):
        factory = find_callable(location, attribute, search_path)
        try:
            module = factory()
        except Exception as error:
            raise ModelError(
                f"{ref}() failed.", why=f"{type(error).__name__}: {error}", fix="Call it in Python."
            ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{ref}() returned a {type(module).__name__}.",
            fix="Return a torch.nn.Module from a function that takes no arguments.",
        )
    return module


def to_tensor(array: Array) -> Tensor:
    """A tensor over a copy of the array's values, of the same dtype (bfloat16 too)."""
    if array.dtype.name == "bfloat16":  # torch reads no ml_dtypes
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: Tensor) -> Array:
    """A host array of the tensor's values, of the same dtype (bfloat16 too)."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def parameter_count(module: nn.Module) -> int:
    """Elements of all parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
