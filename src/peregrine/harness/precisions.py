"""Which precisions are worth asking for on a device: the word `auto`, and lists of names."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from peregrine.errors import OptionError
from peregrine.types import Precision

AUTO = "auto"
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def worth_racing(device: str, cpu_flags: Collection[str]) -> tuple[Precision, ...]:
    """What `auto` stands for.

    A CPU has fp32 and INT8 kernels; bf16 ones where its instructions multiply bf16, else
    runtimes compute in fp32 and only convert. No runtime here has fp16 kernels for a CPU.
    A GPU is asked for all: what it lacks is a row with its reason.

    Args:
        device: `cpu` or `cuda:N`.
        cpu_flags: the processor's extensions, in Linux's spelling.
    """
    if device.startswith("cuda"):
        return (
            Precision.FP32,
            Precision.TF32,
            Precision.FP16,
            Precision.BF16,
            Precision.FP8,
            Precision.INT8,
        )
    bf16 = (Precision.BF16,) if _BF16_FLAGS.intersection(cpu_flags) else ()
    return (Precision.FP32, *bf16, Precision.INT8)


def resolve(
    said: str | Iterable[str], device: str, cpu_flags: Collection[str]
) -> tuple[Precision, ...]:
    """Precisions as a request has them, each once, in the order given.

    Args:
        said: `auto`, names joined by commas, or names.
        device: see `worth_racing`.
        cpu_flags: see `worth_racing`.

    Raises:
        OptionError: a name that is none, or none at all.
    """
    names = said.split(",") if isinstance(said, str) else [*said]
    names = [str(name).strip() for name in names]
    if names == [AUTO]:
        return worth_racing(device, cpu_flags)
    try:
        found = tuple(dict.fromkeys(map(Precision, names)))
    except ValueError:
        found = ()
    if not found:
        raise OptionError(
            f"{', '.join(names)!r} is no list of precisions.",
            fix=f"Use auto, or some of: {', '.join(Precision)}.",
        )
    return found
