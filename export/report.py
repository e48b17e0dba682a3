"""What an export did: files, sizes, parity, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harmony.core.errors import ConfigError

Format = Literal["onnx", "executorch"]
FORMATS: tuple[Format, ...] = ("onnx", "executorch")
OnEvent = Callable[[str, int, int], None]
"""Called as (what was finished, how many are, of how many)."""


@dataclass(frozen=True)
class EngineReport:
    """One engine of one bundle.

    files: bytes by file name; max_error: largest |engine − eager PyTorch| over the test vectors and all outputs;
    delegated: share of the operators that XNNPACK runs (None for ONNX); seconds: filling in or lowering, and parity;
    agreement: share of unseen images for which both exits say what they said before they were quantised, None for fp32.
    """

    engine: str
    files: dict[str, int]
    max_error: float
    delegated: float | None
    seconds: float
    agreement: float | None = None


@dataclass(frozen=True)
class ExportReport:
    """One bundle. client, architecture: None for the cloud's; kept: it was there already, whole and the same."""

    bundle: Path
    client: int | None
    architecture: str | None
    parameters: int
    engines: tuple[EngineReport, ...]
    kept: bool
    seconds: float


def check_formats(formats: Sequence[Format]) -> tuple[Format, ...]:
    """The formats in one order, so that the manifest is always the same. ConfigError for none, or an unknown one."""
    unknown = [one for one in formats if one not in FORMATS]
    if unknown or not formats:
        raise ConfigError(
            f"'{unknown[0]}' is no format" if unknown else "no format is chosen", mend=f"choose {','.join(FORMATS)}"
        )
    return tuple(one for one in FORMATS if one in formats)
