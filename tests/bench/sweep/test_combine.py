"""The arithmetic of a sweep, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from harmony.bench.devices import DEVICES
from harmony.bench.links import LINKS
from harmony.bench.predict import ANSWER_HEADERS, REQUEST_HEADERS
from harmony.bench.sweep.choices import choices, pareto
from harmony.bench.sweep.combine import Case, bounds_of, cases
from harmony.bench.sweep.schema import PathCost, RegimeCosts


def _case(found: list[Case], rule: str, link: str | None = "lte", device: str = "pixel-3a") -> Case:
    return next(one for one in found if (one.rule, one.link, one.device, one.rho) == (rule, link, device, 1.0))


@pytest.fixture
def found(sweep_of: Any) -> list[Case]:
    return list(cases(sweep_of()))


def test_every_combination_comes_once(found: list[Case]) -> None:
    asking, alone = 6 * 2 * 2 * 2, 1 * 2 * 2  # rules × ρ × devices (× links)
    assert len(found) == asking + alone
    assert len({(one.rule, one.rho, one.device, one.link) for one in found}) == len(found)


def test_a_device_alone_takes_its_cost_times_the_published_latency(found: list[Case]) -> None:
    one = _case(found, "device as shipped", None).latency
    assert one.min_s == pytest.approx(0.01 * 0.088)
    assert one.mean_s == pytest.approx(0.015 * 0.088)
    assert (one.median_s, one.p90_s) == pytest.approx((0.01 * 0.088, 0.02 * 0.088))
    assert _case(found, "device as shipped", None, "cortex-a53").latency.p90_s == pytest.approx(0.02 * 0.2449)


def test_the_cloud_adds_link_and_service(found: list[Case]) -> None:
    link = LINKS["lte"].exchange_s(1200 + REQUEST_HEADERS, 300 + ANSWER_HEADERS)
    cloud = 0.03 * 0.088 + link + 0.001
    one = _case(found, "fallback as shipped")
    assert (one.latency.median_s, one.latency.p90_s) == pytest.approx((0.01 * 0.088, cloud))
    assert one.latency.mean_s == pytest.approx(0.5 * 0.01 * 0.088 + 0.3 * 0.02 * 0.088 + 0.2 * cloud)
    assert one.sent_bytes == pytest.approx(0.2 * (1200 + REQUEST_HEADERS))
    assert one.macs == pytest.approx(0.5 * 1e6 + 0.5 * 3e6)
    promised = _case(found, "following 5 %")
    assert (promised.budget, promised.offload_id) == (0.05, 0.03)
    assert promised.sent_bytes == pytest.approx(0.03 * (1200 + REQUEST_HEADERS))


def test_an_image_needs_no_device(found: list[Case]) -> None:
    """The front end then runs on this host: 0.2 ms of CPU time, not scaled by any factor."""
    one = _case(found, "cloud-image")
    link = LINKS["lte"].exchange_s(200 + 784 + REQUEST_HEADERS, 300 + ANSWER_HEADERS)
    assert one.latency.median_s == pytest.approx(link + 0.001 + 0.02 / 100)
    assert (one.peak_bytes, one.file_bytes, one.macs, one.first_s) == (0, 0, 0, 0)
    assert one.latency.median_low_s == one.latency.median_high_s == one.latency.median_s


def test_ranges_cover_the_worst_published_figures_both_ways(found: list[Case]) -> None:
    """Predicted 0.1 where 0.05 was published, and 0.04 where it was 0.05: the truth is 0.5 to 1.25 of a prediction."""
    one = _case(found, "device as shipped", None).latency
    assert (one.median_low_s / one.median_s, one.median_high_s / one.median_s) == pytest.approx((0.5, 1.25))


def test_ranges_are_wider_for_figures_of_another_engine_or_precision(sweep_of: Any) -> None:
    calibration = sweep_of().calibrations[0]
    assert bounds_of(calibration, DEVICES["pixel"], "fp32") == pytest.approx((0.5, 1.25))
    assert bounds_of(calibration, DEVICES["cortex-a53"], "fp32") == pytest.approx((0.5 / 1.25, 1.25 * 1.25))
    assert bounds_of(calibration, DEVICES["raspberry-pi-5"], "fp32") == pytest.approx((0.4, 1.25 * 1.25 * 2))
    assert bounds_of(calibration, DEVICES["pixel"], "int8") == pytest.approx((0.25, 2.5))


def test_percentiles_weigh_paths_by_their_shares(sweep_of: Any, unit_of: Any) -> None:
    """Half of the answers come from exit 1, whose costs are 1 … 10; p90 is the eighth of ten of exit 2's 11 … 20."""
    first = tuple(float(one) for one in range(1, 11))
    second = tuple(float(one) for one in range(11, 21))
    old = unit_of().costs[0].paths
    paths = [
        PathCost(path=path.path, samples=samples, rounds=path.rounds, host_s=path.host_s)
        for path, samples in zip(old, (first, second, second), strict=True)
    ]
    unit = unit_of(costs=(RegimeCosts(regime="hot", paths=tuple(paths)),))
    one = _case(list(cases(sweep_of(unit))), "device as shipped", None).latency
    assert (one.median_s, one.p90_s, one.p99_s) == pytest.approx((10 * 0.088, 18 * 0.088, 20 * 0.088))


def test_choices_take_means_of_accuracies_and_the_worst_of_costs(sweep_of: Any, unit_of: Any) -> None:
    slower = tuple(
        PathCost(path=path.path, samples=(0.5,), rounds=path.rounds, host_s=path.host_s)
        for path in unit_of().costs[0].paths
    )
    points = [point.model_copy(update={"choice": (0.1, 0.1)}) for point in unit_of().points]
    other = unit_of(name="client-001", client=1, costs=(RegimeCosts(regime="hot", paths=slower),), points=tuple(points))
    sweep = sweep_of(unit_of(), other)
    found = choices(cases(sweep, devices=[DEVICES["pixel-3a"]], links=[LINKS["lte"]], rhos=[1.0]))
    one = next(one for one in found if one.rule == "device as shipped")
    assert one.clients == 2
    assert one.choice == pytest.approx((0.59 + 0.1) / 2)
    assert one.p90.value == pytest.approx(0.5 * 0.088)


def test_pareto_keeps_what_nothing_beats() -> None:
    assert pareto([(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.8), (4, 0.9), (1, 0.3)]) == [1, 3, 0]
