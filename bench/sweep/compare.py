"""Two sweeps side by side: what changed in cost, memory, bytes and accuracy, bundle by bundle."""

from __future__ import annotations

from typing import NamedTuple

from harmony.bench.results import Ratio, Regime
from harmony.bench.sweep.schema import PathName, Point, SweepResult, Unit
from harmony.core.errors import ContractMismatch


class CostChange(NamedTuple):
    """After over before. apart: the rounds of the two do not overlap, so that it is more than the host's noise."""

    unit: Unit
    regime: Regime
    path: PathName
    before: Ratio
    after: Ratio

    @property
    def ratio(self) -> float:
        """1: no change."""
        return self.after.median / self.before.median

    @property
    def apart(self) -> bool:
        """Whether the lowest of one is above the highest of the other."""
        return self.after.low > self.before.high or self.after.high < self.before.low


class UnitChange(NamedTuple):
    """The same bundle under the same engine, twice. accuracy: as shipped, at the largest ρ of both."""

    before: Unit
    after: Unit
    costs: tuple[CostChange, ...]
    accuracy: tuple[float, float] | None


def compare(before: SweepResult, after: SweepResult) -> tuple[UnitChange, ...]:
    """Units that both have, in the order of the later. ContractMismatch if the tiers differ, or nothing is common."""
    if before.tier != after.tier:
        raise ContractMismatch(
            f"results of different tiers are never put side by side: {before.tier} and {after.tier}",
            mend="compare sweeps of one tier",
        )
    known = {_identity(unit): unit for unit in before.units}
    pairs = [(known[_identity(unit)], unit) for unit in after.units if _identity(unit) in known]
    if not pairs:
        raise ContractMismatch("the two sweeps have no bundle and engine in common", mend="compare sweeps of one run")
    return tuple(UnitChange(one, other, _costs(one, other), _accuracy(one, other)) for one, other in pairs)


def _identity(unit: Unit) -> tuple[object, ...]:
    return unit.run, unit.method, unit.client, unit.architecture, unit.engine, unit.runtime, unit.precision


def _costs(before: Unit, after: Unit) -> tuple[CostChange, ...]:
    found = []
    for costs in after.costs:
        earlier = before.regime(costs.regime)
        for path in costs.paths:
            one = None if earlier is None else earlier.path(path.path)
            if one is not None:
                found.append(CostChange(after, costs.regime, path.path, one.rounds, path.rounds))
    return tuple(found)


def _accuracy(before: Unit, after: Unit) -> tuple[float, float] | None:
    for name in ("fallback as shipped", "device as shipped"):
        points = [_point(unit, name) for unit in (before, after)]
        if points[0] is None or points[1] is None:
            continue
        mine, other = ({mix.rho: mix.accuracy.overall for mix in point.mixes} for point in points if point)
        if common := set(mine) & set(other):
            return mine[max(common)], other[max(common)]
    return None


def _point(unit: Unit, name: str) -> Point | None:
    return next((one for one in unit.points if one.rule.name == name), None)
