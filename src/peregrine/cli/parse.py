"""Words of the command line as values: sizes, batches, precisions, NAME=VALUE pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from peregrine.errors import OptionError

if TYPE_CHECKING:
    from peregrine.types import Precision

_T = TypeVar("_T")

_MIB_PER_UNIT = {"": 1.0, "k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0**2}


def parse_size_mb(text: str) -> float:
    """A size such as `500`, `500MB` or `4GiB` in MiB; a bare number is MiB."""
    number = text.strip().lower().removesuffix("ib").removesuffix("b").strip()
    unit = number[-1:] if number[-1:].isalpha() else ""
    try:
        value = float(number.removesuffix(unit)) * _MIB_PER_UNIT[unit]
    except (KeyError, ValueError):
        raise OptionError(
            f"{text!r} is no size.", fix="Write it as 500MB or 4GiB; a bare number is MB."
        ) from None
    if not value > 0:
        raise OptionError(f"A size of {text} cannot be met.", fix="Give a size above 0.")
    return value


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,8,32` as integers, each once, in the order given."""
    return parse_counts(text, "--batch", "batches")


def parse_counts(text: str, flag: str, what: str = "numbers") -> tuple[int, ...]:
    """`1,8,32` as integers, each once, in the order given; an error names `flag`."""
    try:
        counts = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise OptionError(
            f"{text!r} is no list of {what}.", fix=f"Write whole numbers: {flag} 1,8,32."
        ) from None
    return tuple(dict.fromkeys(counts))


def parse_precisions(text: str) -> tuple[Precision | str, ...]:
    """`fp32,fp16` as precisions, each once, in the order given; `auto` alone as that word."""
    # Its module brings numpy, which `--help` does not wait for.
    from peregrine.types import Precision

    if text.strip() == "auto":
        return ("auto",)
    try:
        return tuple(dict.fromkeys(Precision(part.strip()) for part in text.split(",")))
    except ValueError:
        raise OptionError(
            f"{text!r} is no list of precisions.",
            fix=f"Use auto, or some of: {', '.join(Precision)}.",
        ) from None


def parse_pairs(pairs: Sequence[str], flag: str, kind: Callable[[str], _T]) -> dict[str, _T]:
    """`NAME=VALUE` options as a dict; `kind` (int, float) reads a value or raises ValueError."""
    parsed: dict[str, _T] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            parsed[name] = kind(value)
        except ValueError:
            equals = ""
        if not equals:
            raise OptionError(f"{pair!r} is not NAME=VALUE.", fix=f"Write it as {flag} name=4.")
    return parsed


def existing_file(path: Path) -> str:
    """The absolute path of a file: workers and a later --resume may start elsewhere."""
    if not path.is_file():
        raise OptionError(f"There is no file {path}.", fix="Check the path.")
    return str(path.absolute())


def existing_data(word: str) -> str:
    """The absolute path of a file or a directory of calibration data; the word `random` as it
    is."""
    if word == "random":
        return word
    if not Path(word).exists():
        raise OptionError(
            f"There is no calibration data {word}.",
            fix="Check the path. Random numbers are taken where you ask for them: "
            "--calibration random.",
        )
    return str(Path(word).absolute())
