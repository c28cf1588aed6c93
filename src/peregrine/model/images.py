"""Photos as inputs: preprocessing said once, as data, and applied to a directory of images."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine.errors import BackendUnavailable, FeedError, ModelError, OptionError
from peregrine.model.model import Model
from peregrine.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

LABELS_FILE = "labels.txt"
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_DEFAULT_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")
_EXAMPLE = (
    '{"size": 224, "resize": "short side 256, bilinear", "crop": "center 224", "channels": "RGB", '
    '"scale": "0..1", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], '
    '"layout": "NCHW"}'
)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a photo becomes [channels, size, size]: resize, crop, scale, (x - mean) / std."""

    size: int
    resize_to: int
    """Of the short side, or of both when `squash`."""
    squash: bool = False
    interpolation: str = "bilinear"
    channels: str = "RGB"
    scale: float = 255.0
    """The largest pixel value: 1 or 255."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: str = "NCHW"

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Preprocessing:
        """Read the form that zoo entries and JSON files use.

        Raises:
            OptionError: naming the key that is missing or cannot be read.
        """
        unknown = set(said) - _KEYS
        if unknown or "size" not in said:
            what = f"unknown: {', '.join(sorted(unknown))}" if unknown else "size is missing"
            raise OptionError(f"The preprocessing is incomplete: {what}.", fix=f"E.g. {_EXAMPLE}")
        size = _positive(said, "size")
        resize_to, squash, interpolation = _parse_resize(str(said.get("resize", size)))
        _expect(said, "crop", rf"cent(er|re)( {size})?", f"center {size}")
        channels = _expect(said, "channels", "RGB|BGR", "RGB")
        scale = _expect(said, "scale", r"0\.\.(1|255)", "0..1")
        layout = _expect(said, "layout", "NCHW|NHWC", "NCHW")
        if resize_to < size:
            raise OptionError(f"A crop of {size} does not fit an image resized to {resize_to}.")
        return cls(
            size,
            resize_to,
            squash,
            interpolation,
            channels,
            float(scale.partition("..")[2]),
            _three(said, "mean", 0.0),
            _three(said, "std", 1.0),
            layout,
        )

    def apply(self, image: Image) -> Array:
        """A photo as float32 [3, size, size], or [size, size, 3] where the layout is NHWC."""
        from PIL.Image import Resampling

        rgb = image.convert("RGB")
        width, height = rgb.size
        if self.squash:
            width = height = self.resize_to
        else:
            short = min(width, height)
            width, height = (side * self.resize_to // short for side in (width, height))
        rgb = rgb.resize((width, height), getattr(Resampling, self.interpolation.upper()))
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        rgb = rgb.crop((left, top, left + self.size, top + self.size))
        pixels: Array = np.asarray(rgb, np.float32) * np.float32(self.scale / 255.0)
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels, np.float32)


_KEYS = {"size", "resize", "crop", "channels", "scale", "mean", "std", "layout"}


def _positive(said: Mapping[str, Any], key: str) -> int:
    value = said[key]
    if not isinstance(value, int) or value < 1:
        raise OptionError(f"Preprocessing {key}={value!r} is not a size.", fix=f"E.g. {_EXAMPLE}")
    return value


def _expect(said: Mapping[str, Any], key: str, pattern: str, default: str) -> str:
    value = str(said.get(key, default))
    if not re.fullmatch(pattern, value):
        raise OptionError(
            f"Preprocessing {key}={value!r} is not understood.",
            why=f"It should look like {default!r}.",
            fix=f"E.g. {_EXAMPLE}",
        )
    return value


def _three(said: Mapping[str, Any], key: str, default: float) -> tuple[float, ...]:
    value = said.get(key, [default] * 3)
    numbers = isinstance(value, Sequence) and all(isinstance(v, (int, float)) for v in value)
    if not numbers or len(value) != 3 or (key == "std" and 0 in value):
        raise OptionError(
            f"Preprocessing {key}={value!r} is not three numbers.", fix=f"E.g. {_EXAMPLE}"
        )
    return tuple(map(float, value))


def _parse_resize(text: str) -> tuple[int, bool, str]:
    """`short side 256, bicubic` or `256x256 squash, bilinear` -> size, squash, interpolation."""
    found = re.fullmatch(
        r"(?:short side )?(\d+)(?:x(\d+))?( squash)?(?:, (bilinear|bicubic|nearest|lanczos|box))?",
        text,
    )
    if not found or (found[2] or found[1]) != found[1]:
        raise OptionError(
            f"Preprocessing resize={text!r} is not understood.",
            fix="Write 'short side 256, bicubic' or '256x256 squash, bilinear'.",
        )
    return int(found[1]), bool(found[2] or found[3]), found[4] or "bilinear"


def load_preprocessing(path: Path) -> dict[str, Any]:
    """Read a user's preprocessing from a JSON file: its `preprocessing` object, or all of it.

    Raises:
        OptionError: it cannot be read, or says something that is not understood.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{path} cannot be read as JSON.", why=str(error), fix=f"E.g. {_EXAMPLE}"
        ) from error
    said = record.get("preprocessing", record) if isinstance(record, dict) else record
    if not isinstance(said, dict):
        raise OptionError(f"{path} describes no preprocessing.", fix=f"E.g. {_EXAMPLE}")
    Preprocessing.parse(said)
    return said


@dataclass(frozen=True, slots=True)
class Photos:
    """A directory of photos that fit a model, none of them decoded yet."""

    directory: Path
    steps: Preprocessing
    listed: tuple[tuple[str, int | None], ...]
    """File names, and their class indices where somebody says them."""

    def read(self, name: str) -> Array:
        """One photo as `Preprocessing.apply` makes it. Raises FeedError: it is damaged."""
        return _read(self.directory / name, self.steps)


def list_photos(
    directory: Path,
    model: Model,
    preprocessing: Mapping[str, Any] | None = None,
    labels: Path | None = None,
) -> Photos:
    """Photos of a directory as inputs of a model of one float32 image input.

    Where there are labels (`file class-index` a line), the photos are those that they list, in
    that order; else all of the directory, by name.

    Args:
        directory: of .jpg, .png, .webp or .bmp files.
        model: whose `preprocessing` is used when none is given.
        preprocessing: instead of the model's; see `Preprocessing.parse`.
        labels: a file of labels in place of the directory's own `labels.txt`. It may list more
            photos than there are: it often belongs to a larger set.

    Raises:
        OptionError: nobody says how to preprocess, or it does not fit the model's input.
        FeedError: no photos, or wrong labels.
    """
    said = preprocessing or model.preprocessing
    if not said:
        raise OptionError(
            f"{model.name} does not say how a photo becomes its input.",
            fix=f"Write a JSON file, {model.name}.json beside the .onnx or anywhere with "
            f"--preprocessing FILE: {_EXAMPLE}",
        )
    steps = Preprocessing.parse(said)
    _check_fit(steps, model)
    return Photos(directory, steps, tuple(_listed(directory, labels)))


def _check_fit(steps: Preprocessing, model: Model) -> None:
    inputs = [spec for spec in model.inputs if len(spec.shape) == 4]
    side = steps.size
    made = (3, side, side) if steps.layout == "NCHW" else (side, side, 3)
    fits = (
        len(model.inputs) == 1
        and len(inputs) == 1
        and inputs[0].dtype == "float32"
        and all(
            model.dims.get(want, have) == have if isinstance(want, str) else want == have
            for want, have in zip(inputs[0].shape[1:], made, strict=True)
        )
    )
    if not fits:
        raise OptionError(
            f"Photos of {'x'.join(map(str, made))} do not fit {model.name}.",
            why=f"It takes {', '.join(map(str, model.inputs))}.",
            fix="Give the preprocessing that the model was trained with, or feed arrays.",
        )


def is_photo(path: Path) -> bool:
    """Whether a file is one of the kinds that are read, by its name."""
    return path.suffix.lower() in _SUFFIXES


def _listed(directory: Path, labels: Path | None) -> list[tuple[str, int | None]]:
    """File names with labels: of `labels`, of the directory's own, or of nobody."""
    if not directory.is_dir():
        raise FeedError(f"There is no directory {directory}.", fix="Check the path.")
    own = directory / LABELS_FILE
    if labels is not None:
        found = [pair for pair in _labels(labels) if (directory / pair[0]).is_file()]
        if not found:
            raise FeedError(
                f"{labels} lists none of the photos in {directory}.",
                fix="Write `file class-index` lines with names as they are in that directory.",
            )
        return [*found]
    if not own.is_file():
        names = sorted(p.name for p in directory.iterdir() if is_photo(p))
        if not names:
            raise FeedError(
                f"{directory} holds no photos.",
                fix=f"Name a directory of {', '.join(sorted(_SUFFIXES))} files.",
            )
        return [(name, None) for name in names]
    listed = _labels(own)
    for name, _ in listed:
        if not (directory / name).is_file():
            raise FeedError(
                f"{own} lists {name}, which is not there.", fix="Remove its line, or add the photo."
            )
    return [*listed]


def _labels(path: Path) -> list[tuple[str, int]]:
    """The lines of a labels file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FeedError(
            f"The labels {path} cannot be read.",
            why=str(error),
            fix="Name a text file of `file class-index` lines.",
        ) from error
    listed: list[tuple[str, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        name, _, index = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if not name or not index.isdecimal():
            raise FeedError(
                f"Line {number} of {path} is not understood: {line[:80]!r}.",
                fix="Write `file class-index`, e.g. `cat.jpg 281`.",
            )
        listed.append((name.strip(), int(index)))
    if not listed:
        raise FeedError(f"{path} lists no photos.", fix="Write `file class-index` lines.")
    return listed


def _read(path: Path, steps: Preprocessing) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise ModelError(
            "Reading photos needs Pillow.", why=str(error), fix="pip install pillow"
        ) from error
    try:
        with Image.open(path) as image:
            return steps.apply(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        # Pillow says SyntaxError of a broken PNG and OSError of a truncated JPEG.
        raise FeedError(
            f"{path} is not a readable image.",
            why=str(error),
            fix="Remove it or replace it; a half decoded photo would pass for a wrong answer.",
        ) from error


def default_photos() -> Path:
    """A directory of three real photos (a cat, a cup, a face) that scikit-image's wheel brings.

    They are copied to this user's cache, since the wheel's own directory holds much else.

    Raises:
        BackendUnavailable: scikit-image is not installed.
    """
    import platformdirs

    # Found without importing it: that would pull in scipy.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise BackendUnavailable(
            "The default photos come with scikit-image, which is not installed.",
            fix="pip install scikit-image, or name your own with --images DIR.",
        )
    wheel = Path(spec.origin).parent / "data"
    photos = platformdirs.user_cache_path("peregrine") / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for name in _DEFAULT_PHOTOS:
        source, target = wheel / name, photos / name
        if not target.is_file() or target.stat().st_size != source.stat().st_size:
            shutil.copyfile(source, target)
    return photos
