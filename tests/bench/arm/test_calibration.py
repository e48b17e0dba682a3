"""Milliseconds come from MobileNetV1 alone; what is published of others says how far off they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmony.bench.arm.calibration import (
    CACHE_BYTES,
    CORE_OF,
    NETS,
    READ_BYTES_PER_MS,
    calibrated,
    describe,
    net_ms,
    net_on,
    per_millisecond,
    predict,
    reading_ms,
)  # fmt: skip
from harmony.bench.arm.results import NetsResult
from harmony.bench.arm.validate import BEGIN, END, block, checks
from harmony.bench.arm.wheels import EXECUTORCH
from harmony.bench.devices import DEVICES, REFERENCE
from harmony.bench.result_files import read_result
from harmony.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", CORE_OF)
def test_the_reference_takes_what_was_published(name: str) -> None:
    device, core = calibrated(name, None)
    assert net_ms(REFERENCE, device, core) == pytest.approx(device.reference.ms)
    assert f"{device.reference.ms:g} ms on {device.title}" in describe(device, core)


@pytest.mark.parametrize("name", CORE_OF)
def test_the_range_holds_every_published_latency_of_the_device_and_no_more(name: str) -> None:
    device, core = calibrated(name, None)
    ratios = []
    for row in device.checks:
        net = net_on(row.model, core)
        span = predict(net.hot, net.parameters, device, core)
        assert span.low <= row.ms * 1.000001
        assert span.high >= row.ms * 0.999999
        ratios.append(row.ms / span.ms)
    one = predict(1_000_000, 50_000, device, core)
    assert (one.low / one.ms, one.high / one.ms) == pytest.approx((min(1, *ratios), max(1, *ratios)))


def test_time_grows_with_instructions_and_with_weights_that_no_cache_holds() -> None:
    device, core = calibrated("pixel-3a", None)
    rate = per_millisecond(net_on(REFERENCE, core), device.reference.ms)
    fits = CACHE_BYTES // 4
    assert predict(2_000_000, fits, device, core).ms == pytest.approx(2e6 / rate)
    assert predict(2_000_000, fits + 1, device, core).ms == pytest.approx(
        2e6 / rate + 4 * (fits + 1) / READ_BYTES_PER_MS
    )
    assert reading_ms(1_000_000, speed=4e6) == pytest.approx(1)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'nokia' is no known device \(choose from pixel, pixel-2, pixel-3a\)"):
        calibrated("nokia", None)
    other = next(name for name in DEVICES if name not in CORE_OF)
    with pytest.raises(ConfigError, match=f"'{other}' has no published latency of XNNPACK on one thread"):
        calibrated(other, None)
    with pytest.raises(ConfigError, match=r"pixel-2 has no a53: it runs the kernels of a73 \(leave --core out"):
        calibrated("pixel-2", "a53")
    with pytest.raises(ConfigError, match="mobilenet-v2 was not counted on x1"):
        net_on("mobilenet-v2", "x1")


def test_it_was_calibrated_with_the_libraries_that_are_fetched() -> None:
    assert EXECUTORCH.requirement == f"executorch=={read_result(NETS, NetsResult).versions['executorch']}"


def test_what_is_published_is_what_was_counted() -> None:
    """The record in results/, the package's copy of it, and the tables of the document."""
    record = ROOT / "results" / "arm-mobilenets.json"
    assert record.read_bytes() == NETS.read_bytes()
    shown = (ROOT / "docs" / "arm.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == block(read_result(record, NetsResult))


def test_errors_are_of_nets_that_calibration_has_not_seen() -> None:
    rows = list(checks(read_result(NETS, NetsResult)))
    assert len(rows) == 9
    for row in rows:  # what validate says of a net is what `harmony bench arm` would say of it
        assert row.predicted == pytest.approx(net_ms(row.net, *calibrated(row.device, None)))
    assert REFERENCE not in {row.net for row in rows}
    assert {(row.device, row.net): row.published for row in rows} == {
        (name, check.model): check.ms for name in CORE_OF for check in DEVICES[name].checks
    }
