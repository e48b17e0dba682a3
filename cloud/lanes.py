"""Who answers a path: the served versions of each model, the names they go by, and their shares of the traffic.

A `Table` is never changed, only replaced whole, on the event loop: a request sees the old one or the new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from harmony.cloud.batcher import Batcher
from harmony.cloud.metrics import Metrics, ModelStatistics
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import Refusal
from harmony.cloud.request import Expected
from harmony.cloud.settings import ServiceSettings

LATEST = "latest"


@dataclass(slots=True, eq=False)
class Lane:
    """One served version of a model with its queue, its limits and what was counted."""

    model: ServedModel
    expected: Expected
    batcher: Batcher
    statistics: ModelStatistics

    @classmethod
    def of(
        cls, model: ServedModel, settings: ServiceSettings, metrics: Metrics, counted: ModelStatistics | None = None
    ) -> Self:
        """The lane of a model under the service's settings. Runs the model: not for the event loop.

        counted: what the version had counted when it was served before.
        """
        statistics = counted or ModelStatistics(metrics, model.name, model.version)
        expected = Expected(model.name, model.feature, model.tokens, settings.max_batch, settings.max_json_bytes)
        return cls(model, expected, Batcher(model, statistics, settings.max_batch), statistics)

    @property
    def cut(self) -> str:
        """The cut contract as callers write it."""
        return str(self.model.feature)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a version. There is one of each name for each cut contract of a model.

    share: part of the traffic that asks for no version, of this cut, which goes here instead of to `latest`.
    """

    model: str
    name: str
    version: str
    share: float = 0.0
    cut: str = ""


class _Canary:
    """A lane that is owed a share of the requests."""

    __slots__ = ("lane", "owed", "share")

    def __init__(self, lane: Lane, share: float) -> None:
        self.lane, self.share, self.owed = lane, share, 0.0


class _Choice:
    """Lanes of one cut contract: one takes what the canaries do not."""

    __slots__ = ("_canaries", "lane")

    def __init__(self, lane: Lane, canaries: Sequence[tuple[Lane, float]] = ()) -> None:
        self.lane = lane
        self._canaries = [_Canary(*one) for one in canaries]

    def take(self) -> Lane:
        """The lane of the next request. Shares are counted out, not drawn: 0.1 is every tenth request."""
        if not self._canaries:
            return self.lane
        for one in self._canaries:
            one.owed += one.share
        first = max(self._canaries, key=lambda one: one.owed)
        if first.owed < 1 - 1e-9:  # ten times 0.1 is a little less than 1
            return self.lane
        first.owed -= 1
        return first.lane


class Route:
    """Where one path leads: for each cut contract, the lanes that take its requests."""

    __slots__ = ("_choices", "lane")

    def __init__(self, choices: Sequence[_Choice]) -> None:
        newest = max(choices, key=lambda one: int(one.lane.model.version))
        self.lane = newest.lane
        """The lane of a caller that names no cut contract: the newest."""
        self._choices: dict[str | None, _Choice] = {one.lane.cut: one for one in choices}
        self._choices[None] = newest

    def lane_for(self, cut: str | None) -> Lane:
        """The lane that answers a caller of this cut contract, without counting it; 409 naming both sides."""
        return self._choice(cut).lane

    def take(self, cut: str | None) -> Lane:
        """The lane of the next request of this cut contract; 409 naming both sides if there is none."""
        return self._choice(cut).take()

    def _choice(self, cut: str | None) -> _Choice:
        found = self._choices.get(cut)
        if found is None:
            have = " and ".join(one for one in self._choices if one is not None)
            name = self.lane.model.name
            raise Refusal(409, "contract", f"the cut contract differs: model '{name}' has {have}, the caller has {cut}")
        return found


class Table:
    """Every lane and every path to one."""

    def __init__(self, lanes: Iterable[Lane], aliases: Iterable[Alias]) -> None:
        """aliases: those of versions that have no lane are left out. A model needs `latest` to be asked by its name."""
        self.lanes = {(lane.model.name, lane.model.version): lane for lane in lanes}
        self.aliases = tuple(alias for alias in aliases if (alias.model, alias.version) in self.lanes)
        self._routes: dict[tuple[str, str | None], Route] = {}
        self._by_path: dict[str, Route] = {}
        for key, lane in self.lanes.items():
            self._add(key, [_Choice(lane)])
        for model, name in {(alias.model, alias.name) for alias in self.aliases}:
            self._add((model, name), [_Choice(self._lane(one)) for one in self._named(model, name)])
        for model in {name for name, _ in self.lanes}:
            if latest := [self._default(one) for one in self._named(model, LATEST)]:
                self._add((model, None), latest)

    def _add(self, key: tuple[str, str | None], choices: Sequence[_Choice]) -> None:
        model, version = key
        self._routes[key] = route = Route(choices)
        place = f"/v2/models/{model}" if version is None else f"/v2/models/{model}/versions/{version}"
        self._by_path[f"{place}/infer"] = route

    def _named(self, model: str, name: str) -> list[Alias]:
        return [one for one in self.aliases if (one.model, one.name) == (model, name)]

    def _lane(self, alias: Alias) -> Lane:
        return self.lanes[alias.model, alias.version]

    def _default(self, latest: Alias) -> _Choice:
        lane = self._lane(latest)
        rivals = [(self._lane(one), one.share) for one in self.aliases if one.model == latest.model and one.share]
        return _Choice(lane, [(other, share) for other, share in rivals if other.cut == lane.cut])

    def of_model(self, name: str) -> list[Lane]:
        """Lanes of every served version of a model, oldest first; 404 if there is none."""
        found = [lane for (model, _), lane in self.lanes.items() if model == name]
        if not found:
            raise Refusal(404, "not_found", f"unknown model '{name[:64]}'")
        return sorted(found, key=lambda lane: int(lane.model.version))

    def route(self, name: str, version: str | None = None) -> Route:
        """The route of a model, by version or alias if one is given; 404 naming what is not there."""
        found = self._routes.get((name, version))
        if found is None:
            self.of_model(name)
            raise Refusal(404, "not_found", f"model '{name}' has no version '{str(version or LATEST)[:64]}'")
        return found

    def route_at(self, path: str) -> Route:
        """The route of an infer path; 404 naming the model or version that is not there."""
        found = self._by_path.get(path)
        if found is not None:
            return found
        parts = path.split("/")  # "", v2, models, NAME, [versions, VERSION,] infer
        if len(parts) == 5:
            return self.route(parts[3])
        if len(parts) == 7 and parts[4] == "versions":
            return self.route(parts[3], parts[5])
        raise Refusal(404, "not_found", "no such path")
