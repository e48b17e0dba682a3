"""What `harmony bench sustained` is asked, and what it writes. Times in seconds, rates in requests a second."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.results import AnswerPath, Conditions, Count, Host, Regime, Share, Summary, Versioned
from harmony.core.bundle import EngineName
from harmony.core.spec import Frozen

Runtime = Literal["onnxruntime", "native", "executorch"]
FILES_OF: dict[Runtime, EngineName] = {
    "onnxruntime": "onnxruntime",
    "native": "executorch",
    "executorch": "executorch",
}
Arrivals = Literal["poisson", "fixed"]
Scenario = Literal["SingleStream", "Server"]
Rate = Annotated[float, Field(gt=0, le=1_000_000)]
SCENARIOS: tuple[Scenario, ...] = ("SingleStream", "Server")
MOST = 1_000_000
"""Requests of a run."""


class SustainedSettings(Frozen):
    """What to do. data: a data set's name or path, None for the one that the bundle names; rho, limit, seed: of the
    images, which come again and again; generator: our schedule, or MLPerf's LoadGen.

    rate: None for two runs, one at `utilisation` of what the device can do (hot), and one so slow that it pauses
    between answers (sparse). seconds, requests: a run is as long as both ask for; MLPerf Mobile asks for 60 and 1024.
    target_s: LoadGen's bound on 99 % of latencies in its scenario Server.
    """

    bundle: Path
    engine: Runtime = "onnxruntime"
    data: str | None = None
    data_dir: Path | None = None
    rho: Annotated[float, Field(ge=0, le=100)] = 1.0
    limit: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    generator: Literal["schedule", "loadgen"] = "schedule"
    arrivals: Arrivals = "poisson"
    rate: Rate | None = None
    utilisation: Annotated[float, Field(gt=0, lt=1)] = 0.8
    seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    requests: Annotated[int, Field(ge=1, le=MOST)] = 1024
    target_s: Annotated[float, Field(gt=0, le=3600)] = 0.1


class ScheduledRun(Frozen):
    """Our open loop. latency: from when a request was due to its answer; service: of the answer alone, which is all
    that a closed loop would show; late: by how much the device began after it could have, which is the host's doing.

    rate: as scheduled; utilisation: rate × median service: at 1 and above, the queue grows as long as the run lasts;
    unanswered: requests that were left when the run was given up.
    """

    conditions: Conditions
    arrivals: Arrivals
    rate: Rate
    utilisation: Annotated[float, Field(ge=0)]
    latency: Summary
    service: Summary
    late: Summary
    exits: dict[AnswerPath, Share]
    unanswered: Count


class LoadGenRun(Frozen):
    """What MLPerf's LoadGen said. rate: what it was asked for, None in SingleStream; answered_rate: what it counted;
    valid: its own word; requests: its queries; the latencies are its own, from its schedule in Server."""

    conditions: Conditions
    scenario: Scenario
    loadgen_version: str
    valid: bool
    rate: Rate | None
    answered_rate: float
    requests: Count
    min_s: float
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


class SustainedResult(Versioned):
    """One bundle under one engine; times are this host's own."""

    FORMAT: ClassVar[str] = "harmony-sustained"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-sustained"] = "harmony-sustained"
    format_version: Literal[1] = 1
    harmony_version: str
    settings: SustainedSettings
    host: Host
    architecture: str
    scheduled: tuple[ScheduledRun, ...] = ()
    loadgen: tuple[LoadGenRun, ...] = ()


def regime_of(rate: float, sparse_rate: float) -> Regime:
    """Sparse, if requests come at most as often as `sparse_rate`."""
    return "sparse" if rate <= sparse_rate * (1 + 1e-9) else "hot"
