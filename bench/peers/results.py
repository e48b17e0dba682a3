"""The result file of `harmony bench peers`: what its fields mean. CPU milliseconds, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.results import Host, Summary, Versioned
from harmony.core.spec import Frozen


class PeersSettings(Frozen):
    """What is measured. run: that the bundle was exported from, for PyTorch itself; install: peers that are missing,
    each into an environment of its own; images: random ones; count: answers a round and path; seed: of the images."""

    bundle: Path
    run: Path | None = None
    install: bool = False
    rounds: Annotated[int, Field(ge=1)] = 5
    count: Annotated[int, Field(ge=1)] = 200
    images: Annotated[int, Field(ge=1, le=1000)] = 16
    seed: Annotated[int, Field(ge=0)] = 0


class RuntimeCost(Frozen):
    """One runtime. exit1_ms, exit2_ms: CPU milliseconds an image that leaves there, over rounds; start_cpu_s: of its
    process, until the first answer by both exits; peak_bytes: of the process; difference: the largest from our answers,
    in shares of an output's largest value."""

    name: str
    version: str
    exit1_ms: Summary
    exit2_ms: Summary
    start_cpu_s: float
    peak_bytes: int
    difference: float


class PeersBench(Versioned):
    """One front end in every runtime that is here. digest: of the bundle; skipped: the others, and why."""

    FORMAT: ClassVar[str] = "harmony-peers-bench"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-peers-bench"] = "harmony-peers-bench"
    format_version: Literal[1] = 1
    settings: PeersSettings
    digest: str
    architecture: str
    parameters: int
    runtimes: tuple[RuntimeCost, ...]
    skipped: dict[str, str]
    host: Host
