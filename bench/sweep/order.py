"""What a sweep asks of its probe process, and what it gets. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from harmony.bench.results import Regime
from harmony.bench.sweep.schema import PathName
from harmony.core.spec import Frozen
from harmony.device.engine import EngineChoice

COSTS_FILE, SCORES_FILE = "costs.json", "scores.safetensors"


class Order(Frozen):
    """One bundle under one engine. images: a safetensors file with the tensor `images`; reference: the bundle of the
    reference model for the same engine; scores: what is said to every image too, not only costs; back_end: the cloud
    bundle's folder, None without a cloud; out: a folder."""

    bundle: Path
    runtime: EngineChoice
    images: Path
    reference: Path
    scores: bool
    back_end: Path | None
    regimes: tuple[Regime, ...]
    rounds: Annotated[int, Field(ge=1)]
    per_round: Annotated[int, Field(ge=1)]
    out: Path


class Timed(Frozen):
    """CPU seconds of one regime: of the reference, one value a round; of the device's work until the end of each path,
    one row a round, one column an image."""

    regime: Regime
    reference_s: tuple[float, ...]
    paths: dict[PathName, tuple[tuple[float, ...], ...]]


class Costs(Frozen):
    """What a probe timed. first_s: CPU seconds of opening the bundle and one answer."""

    first_s: float
    regimes: tuple[Timed, ...]


class Models(Frozen):
    """What the calibration asks: bundles of published models by name, timed in turns."""

    runtime: EngineChoice
    bundles: dict[str, Path]
    rounds: Annotated[int, Field(ge=1)]


class ModelTimes(Frozen):
    """CPU seconds of each model, one value a round; harness_s: of the stopwatch itself, for one image."""

    times: dict[str, tuple[float, ...]]
    harness_s: Annotated[float, Field(ge=0)]
