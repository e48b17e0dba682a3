"""What a bench asks of its stopwatch process, and what it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from harmony.bench.results import AnswerPath, Regime
from harmony.core.bundle import EngineName
from harmony.core.spec import Frozen

IMAGES = "images"
"""Name of the tensor in the images file, (n, H, W, C)."""
KEY_ENV = "HARMONY_BENCH_KEY"
"""Variable that carries the API key to a device process: arguments are visible to every user of the machine."""


class Job(Frozen):
    """What to time. images: a safetensors file; paths: for each, rows of its images that take it."""

    bundle: Path
    engine: EngineName
    images: Path
    paths: dict[AnswerPath, tuple[int, ...]]
    server: str | None
    deadline_s: float
    rounds: Annotated[int, Field(ge=1)]
    regime: Regime


class Samples(Frozen):
    """Seconds of one path, one row a round, one column an image. bare_s: None where there is nothing to compare."""

    wall_s: tuple[tuple[float, ...], ...]
    cpu_s: tuple[tuple[float, ...], ...]
    bare_s: tuple[tuple[float, ...], ...] | None


class Measured(Frozen):
    """What a probe writes. first_answer_s: the first call after opening, nothing warm."""

    first_answer_s: float
    paths: dict[AnswerPath, Samples]
