"""Milliseconds come from MobileNetV1 alone; what is published of others says how far off they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmony.bench.arm.calibration import CORE_OF, NETS, calibrated, describe, net_on, per_millisecond, predict
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
    assert predict(net_on(REFERENCE, core).hot, device, core).ms == pytest.approx(device.reference.ms)
    assert f"{device.reference.ms:g} ms on {device.title}" in describe(device, core)


@pytest.mark.parametrize("name", CORE_OF)
def test_the_range_holds_every_published_latency_of_the_device_and_no_more(name: str) -> None:
    device, core = calibrated(name, None)
    ratios = []
    for row in device.checks:
        span = predict(net_on(row.model, core).hot, device, core)
        assert span.low <= row.ms * 1.000001
        assert span.high >= row.ms * 0.999999
        ratios.append(row.ms / span.ms)
    one = predict(1_000_000, device, core)
    assert (one.low / one.ms, one.high / one.ms) == pytest.approx((min(1, *ratios), max(1, *ratios)))


def test_time_grows_with_instructions() -> None:
    device, core = calibrated("pixel-3a", None)
    assert predict(2_000_000, device, core).ms == pytest.approx(2e6 / per_millisecond(device, core))


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
    assert REFERENCE not in {row.net for row in rows}
    assert {(row.device, row.net): row.published for row in rows} == {
        (name, check.model): check.ms for name in CORE_OF for check in DEVICES[name].checks
    }
