"""Times and sizes as people write them: 30ms, 1.5s, 32MiB, 200kB."""

from __future__ import annotations

import re

from harmony.core.errors import ConfigError

TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
SIZES = {
    "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-zµ]*)\s*", re.ASCII)


def seconds(text: str, where: str) -> float:
    """Seconds of a text such as 30ms. ConfigError, naming `where` and the known units, for anything else."""
    return _quantity(text, where, TIMES, "30ms")


def size(text: str, where: str) -> float:
    """Bytes of a text such as 32MiB. ConfigError as there."""
    return _quantity(text, where, SIZES, "32MiB")


def _quantity(text: str, where: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    match = _QUANTITY.fullmatch(text)
    known = ", ".join(units)
    if match is None:
        raise ConfigError(f"'{text}' is no number with a unit", where=where, mend=f"write for example {example}")
    number, unit = match.groups()
    if not unit:
        raise ConfigError(f"'{text}' has no unit", where=where, mend=f"write for example {example}; units: {known}")
    exact = {name.lower(): name for name in units}.get(unit.lower())
    if exact is None:
        raise ConfigError(f"'{unit}' is no unit of it", where=where, mend=f"use one of {known}")
    value = float(number) * units[exact]
    if value <= 0:
        raise ConfigError("must be more than nothing", where=where, mend=f"write for example {example}")
    return value
