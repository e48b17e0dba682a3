"""What a sweep's results.json holds. Times in seconds, sizes in bytes, shares from 0 to 1; None: not measured, or
does not apply.

A unit is one bundle under one engine. Its costs are multiples of what MobileNetV1-224 costs in the same engine on the
same machine in the same minutes, so that the machine's speed cancels out, and so that CPU time and counted instructions
share one form:

    time on a device = cost × milliseconds that were published for MobileNetV1-224 there

What was measured is written once; `harmony.bench.sweep.combine` makes every latency from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harmony.bench.devices import Device, ModelName
from harmony.bench.links import Link
from harmony.bench.results import (
    Bar,
    Count,
    Host,
    MixResult,
    Precision,
    Ratio,
    Regime,
    Seconds,
    Share,
    Summary,
    Tier,
    Versioned,
)
from harmony.core.bundle import EngineName
from harmony.core.sealed import Sha256
from harmony.core.spec import Frozen
from harmony.core.wire import Codec

Strategy = Literal["device", "fallback", "following", "cloud-feature", "cloud-image"]
"""Who answers: the device alone; early exit with the cloud for what it is not sure of, by a fixed threshold or by one
that follows the stream (`harmony.core.adaptive`); the cloud alone, which is sent the feature of every image, or every
image itself (an image then leaves the device)."""
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PathName = Literal["exit1", "exit2", "send"]
"""Where the device's own work ends: at exit 1, at exit 2, or with the frame that is ready to be sent."""
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
SHIPPED = ("following as shipped", "fallback as shipped", "device as shipped")
"""Names of rules: the first that a bundle has is what it does as it stands."""


class PathCost(Frozen):
    """Work of the device until the end of a path, from the image on.

    samples: up to 100 equally spaced quantiles of it, ascending, as multiples of the reference; rounds: the median of
    each round; host_s: CPU seconds of this host, None where no time was taken (instructions).
    """

    path: PathName
    samples: Annotated[tuple[Cost, ...], Field(min_length=1, max_length=1000)]
    rounds: Ratio
    host_s: Summary | None = None


class RegimeCosts(Frozen):
    """Costs in one regime. Those of the sparse one are multiples of the reference in the hot one, too.

    processes: how many were timed for them, at different times. Where memory happens to lie decides some percent of a
    process's speed, so several are, and units of one shape, which differ in their weights alone, share theirs.
    """

    regime: Regime
    processes: Annotated[int, Field(ge=1)] = 1
    paths: Annotated[tuple[PathCost, ...], Field(min_length=1)]

    def path(self, name: PathName) -> PathCost | None:
        """The cost of that path, if it was measured."""
        return next((one for one in self.paths if one.path == name), None)


class Memory(Frozen):
    """Most memory that a process with this bundle alone ever held. process: what kind of process."""

    peak_bytes: Count
    process: Literal["harmony-run", "python"]


class Rule(Frozen):
    """A strategy with its thresholds.

    budget: share of own-class images that may go on, to exit 2 (`device`) or to the cloud (`fallback`, `following`);
    None for the thresholds as shipped and for strategies without any. threshold1, threshold2: scores at which an image
    leaves; None: every image (or, at exit 1 of a cloud strategy, none) leaves there. Of `following`, threshold2 holds
    while foreign inputs come; else nothing is sent.
    """

    strategy: Strategy
    budget: Share | None
    threshold1: float | None = None
    threshold2: float | None = None

    @property
    def name(self) -> str:
        """Short, the same for all bundles."""
        if self.strategy in {"cloud-feature", "cloud-image"}:
            return self.strategy
        return f"{self.strategy} {'as shipped' if self.budget is None else f'{100 * self.budget:g} %'}"


class Point(Frozen):
    """What a rule gives, over every ρ, on the images that no threshold was chosen on.

    choice: overall accuracy by ρ on the other half of the images, which is what a rule is to be chosen by.
    """

    rule: Rule
    mixes: Annotated[tuple[MixResult, ...], Field(min_length=1)]
    choice: tuple[Share, ...]

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.choice) != len(self.mixes):
            raise ValueError("choice needs one value for each mix")
        return self


class Unit(Frozen):
    """One device bundle under one engine.

    runtime: what ran the engine's files; threads: of it; program: SHA-256 of those files, in the order of their names;
    macs: multiply-accumulates until exit 1 and exit 2, None where no ONNX graph tells; first_cost: of opening the
    bundle and answering once, in multiples of the reference; request_bytes, answer_bytes: HTTP bodies of one
    offload, headers apart; cloud: the key of its back end in `clouds`, None without one.
    """

    name: str
    run: str
    method: str
    client: Count
    architecture: str
    dataset: str
    own_classes: tuple[str, ...]
    engine: EngineName
    runtime: Literal["onnxruntime", "native", "executorch"]
    threads: Literal[1] = 1
    precision: Precision
    parameters: Count
    program: Sha256
    macs: tuple[Count, Count] | None
    file_bytes: Count
    memory: Memory
    first_cost: Cost
    costs: Annotated[tuple[RegimeCosts, ...], Field(min_length=1)]
    codec: Codec
    frame_bytes: Count
    image_bytes: Count
    request_bytes: Count
    answer_bytes: Count
    cloud: str | None
    points: Annotated[tuple[Point, ...], Field(min_length=1)]

    @property
    def shape(self) -> tuple[object, ...]:
        """All that decides a graph: units of one differ in their weights alone. A gate makes a difference of MACs."""
        return (self.architecture, len(self.own_classes), self.macs, self.dataset, self.engine, self.runtime,
                self.precision, self.codec, self.parameters)  # fmt: skip

    @property
    def shipped(self) -> Point:
        """What the bundle does as it stands."""
        named = {one.rule.name: one for one in self.points}
        return next((named[name] for name in SHIPPED if name in named), self.points[0])

    def regime(self, name: Regime) -> RegimeCosts | None:
        """Costs in that regime, if they were measured."""
        return next((one for one in self.costs if one.regime == name), None)


class Checked(Frozen):
    """A published figure that calibration has not seen, and what is predicted in its place."""

    device: str
    model: ModelName
    published_s: Seconds
    predicted_s: Seconds

    @property
    def error(self) -> float:
        """Relative; positive: predicted too slow."""
        return self.predicted_s / self.published_s - 1


class Calibration(Frozen):
    """One engine on this host against the reference. host_s: CPU seconds of the reference here, None for instructions.

    precision: of the reference program; checks: how far off the same way of predicting is for other models; harness_s:
    CPU seconds of measuring one image with an engine that does nothing, which is a part of every cost.
    """

    engine: EngineName
    runtime: Literal["onnxruntime", "native", "executorch"]
    precision: Precision = "fp32"
    reference: ModelName
    host_s: Summary | None
    checks: tuple[Checked, ...]
    harness_s: Seconds | None = None


class CloudCost(Frozen):
    """One answer of the cloud. server_s: CPU seconds of the service for one request, everything included;
    envelope_bytes: of a request's body beside the frame."""

    server_s: Seconds
    envelope_bytes: Count
    answer_bytes: Count
    requests: Annotated[int, Field(ge=1)]


class SweepSettings(Frozen):
    """What to sweep. bundles: device bundles; clouds: cloud bundles of their runs; budgets: see Rule; passes: processes
    that time each unit, in each of them rounds of per_round images; limit: images a bundle at most."""

    bundles: Annotated[tuple[Path, ...], Field(min_length=1)]
    clouds: tuple[Path, ...] = ()
    data: str | None = None
    data_dir: Path | None = None
    engines: Annotated[tuple[EngineName, ...], Field(min_length=1)] = ("onnxruntime", "executorch")
    devices: Annotated[tuple[str, ...], Field(min_length=1)] = ("pixel-3a", "cortex-a53", "raspberry-pi-5")
    links: Annotated[tuple[str, ...], Field(min_length=1)] = ("wifi", "lte", "3g")
    rhos: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], Field(min_length=1)] = (0, 0.2, 0.4, 0.6, 0.8, 1)
    budgets: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = BUDGETS
    regimes: Annotated[tuple[Regime, ...], Field(min_length=1)] = ("hot",)
    passes: Annotated[int, Field(ge=1, le=100)] = 2
    rounds: Annotated[int, Field(ge=1, le=1000)] = 31
    per_round: Annotated[int, Field(ge=1, le=1000)] = 8
    limit: Annotated[int, Field(ge=8)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class SweepResult(Versioned):
    """A sweep's results.json. Everything in it is of one tier."""

    FORMAT: ClassVar[str] = "harmony-sweep"
    VERSION: ClassVar[int] = 2

    format: Literal["harmony-sweep"] = "harmony-sweep"
    format_version: Literal[2] = 2
    harmony_version: str
    tier: Tier
    settings: SweepSettings
    host: Host
    seconds: Seconds
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    calibrations: Annotated[tuple[Calibration, ...], Field(min_length=1)]
    clouds: dict[str, CloudCost]
    units: Annotated[tuple[Unit, ...], Field(min_length=1)]
    speed: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _one_kind_of_cost(self) -> Self:
        """CPU time and instructions are never in one file, and every unit has a calibration of its own engine."""
        timed = self.tier == "virtual-time"
        hosts = [one.host_s for one in self.calibrations]
        hosts += [path.host_s for unit in self.units for costs in unit.costs for path in costs.paths]
        if any((host is not None) != timed for host in hosts):
            raise ValueError(f"costs of another tier among those of {self.tier}")
        known = {(one.engine, one.runtime) for one in self.calibrations}
        for unit in self.units:
            if (unit.engine, unit.runtime) not in known:
                raise ValueError(f"{unit.name} ran in {unit.runtime}, which was not calibrated")
            if unit.cloud is not None and unit.cloud not in self.clouds:
                raise ValueError(f"{unit.name} asks a cloud that is not among the clouds")
        return self

    def calibration(self, unit: Unit) -> Calibration:
        """The one of the unit's engine, of its precision if there is one."""
        mine = [one for one in self.calibrations if (one.engine, one.runtime) == (unit.engine, unit.runtime)]
        return next((one for one in mine if one.precision == unit.precision), mine[0])
