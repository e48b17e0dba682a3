"""Cases of single clients → choices: method, architecture, engine, precision and rule, over all who have it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any, NamedTuple

from harmony.bench.results import Precision, Tier
from harmony.bench.sweep.combine import Case
from harmony.bench.sweep.schema import Strategy
from harmony.core.bundle import EngineName
from harmony.core.spec import Frozen


class Kind(NamedTuple):
    """Everything of a choice but its rule."""

    method: str
    architecture: str
    engine: EngineName
    precision: Precision
    strategy: Strategy


class Ranged(Frozen):
    """A predicted time in seconds, and between which the truth is to be expected."""

    value: float
    low: float
    high: float


class Choice(Frozen):
    """One way to build and run a device, at one ρ on one device class over one link. tier: of its times.

    budget: what the rule promises, see Rule; clients: how many devices of the sweep have this architecture; accuracy
    and choice (the other half of the images, which a rule is chosen by), bytes and offload rate (offload_id: of own
    images): mean over them; times, memory and file: of the worst of them.
    thresholds: of exit 1 and exit 2, lowest to highest among the clients, None where there is none.
    """

    tier: Tier
    method: str
    architecture: str
    engine: EngineName
    precision: Precision
    strategy: Strategy
    rule: str
    budget: float | None
    clients: int
    accuracy: float
    choice: float
    offloaded: float
    offload_id: float
    mean: Ranged
    median: Ranged
    p90: Ranged
    p99_s: float
    first_s: float
    sent_bytes: float
    file_bytes: int
    peak_bytes: int
    thresholds: tuple[tuple[float, float] | None, tuple[float, float] | None]

    @property
    def kind(self) -> Kind:
        """See Kind."""
        return Kind(self.method, self.architecture, self.engine, self.precision, self.strategy)


def choices(cases: Iterable[Case]) -> list[Choice]:
    """Cases of one device, link, ρ and regime (rules that never ask the cloud come without a link), in their order."""
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        key = (case.method, case.architecture, case.engine, case.precision, case.strategy, case.rule)
        groups.setdefault(key, []).append(case)
    return [_choice(group) for group in groups.values()]


def _choice(group: Sequence[Case]) -> Choice:
    first = group[0]
    return Choice(
        tier=first.tier,
        method=first.method,
        architecture=first.architecture,
        engine=first.engine,
        precision=first.precision,
        strategy=first.strategy,
        rule=first.rule,
        budget=first.budget,
        clients=len(group),
        accuracy=mean(one.accuracy.overall for one in group),
        choice=mean(one.choice for one in group),
        offloaded=mean(one.offloaded for one in group),
        offload_id=mean(one.offload_id for one in group),
        mean=_ranged(group, "mean"),
        median=_ranged(group, "median"),
        p90=_ranged(group, "p90"),
        p99_s=max(one.latency.p99_s for one in group),
        first_s=max(one.first_s for one in group),
        sent_bytes=mean(one.sent_bytes for one in group),
        file_bytes=max(one.file_bytes for one in group),
        peak_bytes=max(one.peak_bytes for one in group),
        thresholds=(_span([one.threshold1 for one in group]), _span([one.threshold2 for one in group])),
    )


def _ranged(group: Sequence[Case], name: str) -> Ranged:
    value, low, high = (
        max(float(getattr(one.latency, f"{name}{part}_s")) for one in group) for part in ("", "_low", "_high")
    )
    return Ranged(value=value, low=low, high=high)


def _span(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [one for one in values if one is not None]
    return (min(known), max(known)) if known else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that no other beats in both, by ascending cost."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    kept, best = [], float("-inf")
    for index in order:
        if points[index][1] > best:
            kept.append(index)
            best = points[index][1]
    return kept
