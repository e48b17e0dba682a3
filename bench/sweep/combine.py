"""Every case by arithmetic: unit × rule × ρ × device × link → latency, bytes, accuracy. Nothing is measured here.

    on the device, left at exit e    cost(e) · reference
    answered by the cloud            cost(send) · reference + link(request, answer) + service
    an image sent instead            link(image, answer) + service + the front end's own CPU time on this host

The reference's time on the device is published (`harmony.bench.devices`); the link is that of `harmony.bench.links`, on
a connection that is kept open; the service is its CPU time here, without a queue. The range beside every latency covers
what a prediction of this kind was off by for published models (`Calibration.checks`), and more where the device's own
figure was measured with another engine or precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harmony.bench.devices import Device
from harmony.bench.links import Link
from harmony.bench.predict import ANSWER_HEADERS, REQUEST_HEADERS
from harmony.bench.results import Accuracy, Count, MixResult, Precision, Regime, Seconds, Share, Tier
from harmony.bench.sweep.calibrate import spread
from harmony.bench.sweep.schema import Calibration, Point, Strategy, SweepResult, Unit
from harmony.core.bundle import EngineName
from harmony.core.spec import Frozen

Values = NDArray[np.float64]
OTHER_ENGINE, OTHER_PRECISION = 1.25, 2.0
"""ncnn and XNNPACK differ by 18 % and 25 % on the two chips that both published MobileNetV1 for (Snapdragon 820 and
835), hence the first; half precision at best halves the time, hence the second."""


class Latency(Frozen):
    """Over all images of a mix. *_low, *_high: between these the truth is to be expected. Nearest-rank percentiles."""

    min_s: Seconds
    mean_s: Seconds
    mean_low_s: Seconds
    mean_high_s: Seconds
    median_s: Seconds
    median_low_s: Seconds
    median_high_s: Seconds
    p90_s: Seconds
    p90_low_s: Seconds
    p90_high_s: Seconds
    p99_s: Seconds


class Case(Frozen):
    """One combination, as it stands in cases.csv and cases.json.

    budget: what the rule promises, see Rule; offload_id: the share of own images that were sent; sent_bytes,
    received_bytes: HTTP bodies and headers, mean over all images; first_s: opening and answering once; latency: over
    all images; macs: mean over all images, on the device.
    """

    tier: Tier
    name: str
    method: str
    client: Count
    architecture: str
    engine: EngineName
    runtime: str
    threads: int
    precision: Precision
    regime: Regime
    strategy: Strategy
    rule: str
    budget: Share | None
    threshold1: float | None
    threshold2: float | None
    device: str
    calibration: str
    link: str | None
    rho: Annotated[float, Field(ge=0)]
    exit1: Share
    exit2: Share
    offloaded: Share
    offload_id: Share
    accuracy: Accuracy
    choice: Share
    latency: Latency
    first_s: Seconds
    sent_bytes: float
    received_bytes: float
    file_bytes: Count
    peak_bytes: Count
    macs: float | None


class Bounds(NamedTuple):
    """Factors on a time on the device."""

    low: float
    high: float


def bounds_of(calibration: Calibration, device: Device, precision: Precision) -> Bounds:
    """How far the truth may lie from a prediction. See OTHER_ENGINE, OTHER_PRECISION."""
    low, high = spread(calibration.checks)
    row = device.reference
    if row.engine != "XNNPACK":
        low, high = low / OTHER_ENGINE, high * OTHER_ENGINE
    if row.precision == "fp16":
        high *= OTHER_PRECISION
    if precision != calibration.precision:
        low, high = low / OTHER_PRECISION, high * OTHER_PRECISION
    return Bounds(low, high)


class Combiner:
    """All cases of one unit in one regime. Sorts are done once a device and link, not once a rule."""

    def __init__(self, result: SweepResult, unit: Unit, regime: Regime) -> None:
        costs = unit.regime(regime)
        if costs is None:
            raise ValueError(f"{unit.name} was not measured in the {regime} regime")
        self._result, self.unit, self.regime = result, unit, regime
        self._costs = {one.path: np.asarray(one.samples) for one in costs.paths}
        self._host = {one.path: one.host_s.median if one.host_s else 0.0 for one in costs.paths}
        self._calibration = result.calibration(unit)
        self._cloud = None if unit.cloud is None else result.clouds[unit.cloud]

    def latency(self, point: Point, mix: MixResult, device: Device, link: Link | None) -> Latency:
        """Of one rule at one ρ. link: None for rules that never ask the cloud."""
        shares = (mix.exit1, mix.exit2, mix.cloud)
        return self._mixed(lambda factor: _Mixture(self._parts(point, device, link, factor), shares), device)

    def by_path(self, device: Device, links: Sequence[Link]) -> dict[str, Latency]:
        """Of an answer by exit 1, by exit 2, and by the cloud over each link, if there is a cloud."""
        found = {
            name: self._mixed(partial(self._alone, device, None, place), device)
            for place, name in enumerate(("exit 1", "exit 2"))
        }
        for link in links if self._cloud else ():
            found[f"cloud, {link.name}"] = self._mixed(partial(self._alone, device, link, 2), device)
        return found

    def _alone(self, device: Device, link: Link | None, place: int, factor: float) -> _Mixture:
        return _Mixture([self._parts(None, device, link, factor)[place]], [1.0])

    def _mixed(self, make: Callable[[float], _Mixture], device: Device) -> Latency:
        bounds = bounds_of(self._calibration, device, self.unit.precision)
        middle, low, high = make(1.0), make(bounds.low), make(bounds.high)
        return Latency(
            min_s=middle.at(0),
            mean_s=middle.mean,
            mean_low_s=low.mean,
            mean_high_s=high.mean,
            median_s=middle.at(0.5),
            median_low_s=low.at(0.5),
            median_high_s=high.at(0.5),
            p90_s=middle.at(0.9),
            p90_low_s=low.at(0.9),
            p90_high_s=high.at(0.9),
            p99_s=middle.at(0.99),
        )

    def _parts(
        self, point: Point | None, device: Device, link: Link | None, factor: float
    ) -> tuple[Values, Values, Values]:
        """Seconds by exit 1, exit 2 and the cloud (exit 2 again without a link). point: None for a feature's way."""
        reference_s = factor * device.reference.ms / 1000
        exit1, exit2, send = (self._costs[name] * reference_s for name in ("exit1", "exit2", "send"))
        if link is None or self._cloud is None:
            return exit1, exit2, exit2
        if point is not None and point.rule.strategy == "cloud-image":
            image = self._image_s(link)
            return exit1, exit2, np.full(1, image)
        return exit1, exit2, send + self._exchange_s(link)

    def _exchange_s(self, link: Link) -> float:
        assert self._cloud is not None  # noqa: S101  (asked before)
        up, down = self.unit.request_bytes + REQUEST_HEADERS, self.unit.answer_bytes + ANSWER_HEADERS
        return link.exchange_s(up, down) + self._cloud.server_s

    def _image_s(self, link: Link) -> float:
        assert self._cloud is not None  # noqa: S101  (asked before)
        up = self._cloud.envelope_bytes + self.unit.image_bytes + REQUEST_HEADERS
        exchange = link.exchange_s(up, self.unit.answer_bytes + ANSWER_HEADERS)
        return exchange + self._cloud.server_s + self._host["exit2"]

    def case(self, point: Point, index: int, device: Device, link: Link | None) -> Case:
        """Everything about one combination. index: of the mix."""
        unit, rule, mix = self.unit, point.rule, point.mixes[index]
        image = rule.strategy == "cloud-image"
        request = self._cloud.envelope_bytes + unit.image_bytes if image and self._cloud else unit.request_bytes
        first = 0.0 if image else unit.first_cost * device.reference.ms / 1000
        row = device.reference
        return Case(
            tier=self._result.tier,
            name=unit.name,
            method=unit.method,
            client=unit.client,
            architecture=unit.architecture,
            engine=unit.engine,
            runtime=unit.runtime,
            threads=unit.threads,
            precision=unit.precision,
            regime=self.regime,
            strategy=rule.strategy,
            rule=rule.name,
            budget=rule.budget,
            threshold1=rule.threshold1,
            threshold2=rule.threshold2,
            device=device.name,
            calibration=f"{row.model} {row.ms:g} ms, {row.engine}, {row.precision}, {row.date or 'undated'}",
            link=None if link is None else link.name,
            rho=mix.rho,
            exit1=mix.exit1,
            exit2=mix.exit2,
            offloaded=mix.cloud,
            offload_id=mix.offload_id,
            accuracy=mix.accuracy,
            choice=point.choice[index],
            latency=self.latency(point, mix, device, link),
            first_s=first,
            sent_bytes=mix.cloud * (request + REQUEST_HEADERS),
            received_bytes=mix.cloud * (unit.answer_bytes + ANSWER_HEADERS),
            file_bytes=0 if image else unit.file_bytes,
            peak_bytes=0 if image else unit.memory.peak_bytes,
            macs=0.0 if image else _mean_macs(unit, mix),
        )


def _mean_macs(unit: Unit, mix: MixResult) -> float | None:
    return None if unit.macs is None else mix.exit1 * unit.macs[0] + (1 - mix.exit1) * unit.macs[1]


class _Mixture:
    """Quantiles and mean of values that are drawn from several sets of equally likely ones."""

    def __init__(self, parts: Sequence[Values], shares: Sequence[float]) -> None:
        kept = [(part, share) for part, share in zip(parts, shares, strict=True) if share > 0]
        values = np.concatenate([part for part, _ in kept])
        weights = np.concatenate([np.full(len(part), share / len(part)) for part, share in kept])
        order = np.argsort(values, kind="stable")
        self.mean = float(np.average(values, weights=weights))
        self._values, self._passed = values[order], np.cumsum(weights[order])

    def at(self, share: float) -> float:
        """The smallest value that at least this share of the draws does not exceed."""
        place = int(np.searchsorted(self._passed, share * self._passed[-1] - 1e-9))
        return float(self._values[min(place, len(self._values) - 1)])


def cases(
    result: SweepResult,
    *,
    devices: Sequence[Device] | None = None,
    links: Sequence[Link] | None = None,
    rhos: Iterable[float] | None = None,
    regime: Regime | None = None,
) -> Iterator[Case]:
    """Every combination of a result; of other devices, links or fewer ρ if asked. Rules that never ask the cloud come
    once, without a link."""
    wanted = set(result.settings.rhos if rhos is None else rhos)
    for unit in result.units:
        for one in [costs.regime for costs in unit.costs if regime in {None, costs.regime}]:
            combiner = Combiner(result, unit, one)
            for point in unit.points:
                alone = point.rule.strategy == "device"
                for index, mix in enumerate(point.mixes):
                    if mix.rho in wanted:
                        for device in result.devices if devices is None else devices:
                            for link in [None] if alone else (result.links if links is None else links):
                                yield combiner.case(point, index, device, link)
