"""Accuracy over ρ for one training method: what the report draws, whoever measured it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harmony.bench.results import Accuracy, BundleResult, mean_accuracy
from harmony.core.spec import Frozen


class CurvePoint(Frozen):
    """Accuracy at one ρ."""

    rho: Annotated[float, Field(ge=0)]
    accuracy: Accuracy


class ClientCurve(Frozen):
    """One client's points, by ascending ρ."""

    client: Annotated[int, Field(ge=0)]
    architecture: str
    points: Annotated[tuple[CurvePoint, ...], Field(min_length=1)]


class MethodCurves(Frozen):
    """A method's clients, all with the same values of ρ."""

    clients: Annotated[tuple[ClientCurve, ...], Field(min_length=1)]

    @property
    def rhos(self) -> tuple[float, ...]:
        """The values of ρ, ascending."""
        return tuple(point.rho for point in self.clients[0].points)

    @property
    def mean(self) -> tuple[CurvePoint, ...]:
        """Mean over the clients at each ρ."""
        columns = zip(*(one.points for one in self.clients), strict=True)
        return tuple(
            CurvePoint(rho=column[0].rho, accuracy=mean_accuracy(point.accuracy for point in column))
            for column in columns
        )


def curves_of(bundles: tuple[BundleResult, ...]) -> dict[str, MethodCurves]:
    """The curves that a bench of device bundles measured, by method; of several engines the first one counts."""
    methods: dict[str, dict[int, ClientCurve]] = {}
    for one in bundles:
        points = tuple(CurvePoint(rho=mix.rho, accuracy=mix.accuracy) for mix in one.mixes)
        curve = ClientCurve(client=one.client, architecture=one.architecture, points=points)
        methods.setdefault(one.method, {}).setdefault(one.client, curve)
    return {method: MethodCurves(clients=tuple(clients.values())) for method, clients in methods.items()}
