"""Numbers as a person reads them: three significant digits, a unit, a dash for what is missing."""

from __future__ import annotations

import math

DASH = MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def decimals(value: float) -> int:
    """Decimal places that leave about three significant digits."""
    size = abs(value)
    if size >= 100 or not math.isfinite(size):
        return 0
    if size >= 10:
        return 1
    if size >= 1:
        return 2
    return 3 if size >= 0.1 or size == 0 else min(6, 2 - math.floor(math.log10(size)))


def number(value: float | None) -> str:
    """12.3, 0.138, 1,234; a dash for None, NaN for NaN."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:,.{decimals(value)}f}"


def interval(low: float, high: float) -> str:
    """7.01–7.05, with as many places as tell the two ends apart, within reason."""
    places = decimals(low)
    while (
        places < decimals(low) + 2 and low != high and f"{low:.{places}f}" == f"{high:.{places}f}"
    ):
        places += 1
    return f"{low:,.{places}f}{DASH}{high:,.{places}f}"


def times(value: float | None) -> str:
    """A ratio: 4.42x, with the proper sign."""
    return MISSING if value is None else f"{number(value)}{TIMES}"


def memory(megabytes: float | None) -> str:
    """MiB below 10 GiB, GiB above."""
    if megabytes is None:
        return MISSING
    if megabytes >= 10 * 1024:
        return f"{megabytes / 1024:,.1f} GiB"
    return f"{megabytes:,.0f} MiB" if megabytes >= 10 else f"{megabytes:.1f} MiB"


def energy(joules: float | None) -> str:
    """0.138 J, 21.4 mJ."""
    if joules is None or not math.isfinite(joules):
        return number(joules)
    return f"{number(joules)} J" if joules >= 0.1 else f"{number(1e3 * joules)} mJ"


def seconds(value: float | None) -> str:
    """0.35 s, 42.3 s, 3 min 12 s."""
    if value is None:
        return MISSING
    if 0.01 <= value < 1:
        return f"{value:.2f} s"
    if value < 120:
        return f"{number(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def clock(value: float) -> str:
    """Elapsed time: 1:23, 1:02:03."""
    minutes, rest = divmod(max(0, int(value)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(value: float | None) -> str:
    """A value that is in percent already. Only an exact zero shows as 0%."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return number(value)
    if value == 0:
        return "0%"
    if abs(value) < 0.01:
        return "<0.01%" if value > 0 else ">-0.01%"
    # 99.996% must not read as all of them.
    text = _trim(f"{value:.{min(decimals(value), 2)}f}%")
    return "99.99%" if text == "100%" and value < 100 else text


def share(value: float | None) -> str:
    """A share from 0 to 1, in percent."""
    return MISSING if value is None else percent(100 * value)


def points(value: float | None) -> str:
    """A difference with at most two places: 0.62, -1.25, 0."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{round(value, 2) + 0.0:,.2f}".rstrip("0").rstrip(".")


def points_interval(low: float, high: float) -> str:
    """-0.62 to 1.87: its ends may be negative, where a dash would read as a minus."""
    return f"{points(low)} to {points(high)}"


def error(value: float | None) -> str:
    """An error relative to the reference: 2.3e-07; exactly 0 as 0."""
    if value is None:
        return MISSING
    if not math.isfinite(value) or value == 0:
        return number(value) if value else "0"
    return f"{value:.1e}"


def cosine(value: float) -> str:
    """0.9999998; never rounded up to 1 where it is less."""
    if not math.isfinite(value):
        return number(value)
    return "1" if value == 1 else f"{min(value, 0.9999999):.7f}" if value < 1 else f"{value:.7f}"


def limit(value: float) -> str:
    """A threshold as it was set."""
    return f"{value:g}" if math.isfinite(value) else "unlimited"


def count(quantity: int, noun: str, plural: str = "") -> str:
    """1 image, 3 images."""
    return f"{quantity:,} {noun if quantity == 1 else plural or noun + 's'}"


def _trim(text: str) -> str:
    """12.50% as 12.5%, 3.00% as 3%."""
    figure = text.removesuffix("%")
    return (figure.rstrip("0").rstrip(".") if "." in figure else figure) + "%"
