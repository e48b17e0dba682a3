"""Two sweeps side by side: what changed in cost, memory, bytes and accuracy, bundle by bundle."""

from __future__ import annotations

from typing import NamedTuple

from harmony.bench.results import Ratio, Regime
from harmony.bench.sweep.schema import PathName, SweepResult, Unit
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
    """The same bundle under the same engine, twice. accuracy: as each is shipped, at the largest ρ of both."""

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
    changes = tuple(UnitChange(one, other, _costs(one, other), _accuracy(one, other)) for one, other in pairs)
    if not any(change.costs for change in changes):
        raise ContractMismatch("the two sweeps have no regime in common", mend="sweep both with or without --sparse")
    return changes


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
    mine, other = ({mix.rho: mix.accuracy.overall for mix in unit.shipped.mixes} for unit in (before, after))
    common = set(mine) & set(other)
    return (mine[max(common)], other[max(common)]) if common else None
